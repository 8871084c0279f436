"""What tests of a store that is sharded by rank run in several processes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from steps_in_ranks import CPU, Fixed, share_of
from torch import Tensor

from ccreid_cli.core.errors import DeviceError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.images import opening
from ccreid_cli.images.opening import ImageSettings, keep_on_device, open_paths
from ccreid_cli.images.sharded_store import ShardedStore
from ccreid_cli.images.store import ImageStore
from ccreid_cli.machine.distributed import process_group
from ccreid_cli.models.reid_net import ReidNet


def images_of(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, 4, 2, 3), dtype=np.uint8)


def batch_of(seed: int, world: int) -> tuple[int, NDArray[np.int64], list[int]]:
    """Return a number of images, a batch of them with repeats, and how the processes share it: from nothing to all."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 30))
    indices = random.integers(random.integers(0, count), count, random.integers(0, 40))
    cuts = np.sort(random.integers(0, len(indices) + 1, world - 1))
    return count, indices, np.diff([0, *cuts, len(indices)]).tolist()


def exchange_batches(seeds: range) -> list[tuple[Tensor, NDArray[np.int64]]]:
    """Return this process's share of each batch, and the rows that it received for it."""
    found = []
    with process_group(CPU, 30) as group:
        for seed in seeds:
            count, indices, sizes = batch_of(seed, group.world)
            received = share_of(images_of(count), group).exchange(indices, sizes)
            first = sum(sizes[: group.rank])
            share = indices[first : first + sizes[group.rank]]
            assert len(received.images) == len(received.rows)
            found.append((received.gather(share, CPU), received.rows))
    return found


def refused_rows() -> list[str]:
    """Return what is said of rows that a process does not hold, or nobody does."""
    with process_group(CPU, 30) as group:
        store = share_of(images_of(5), group)
        said = []
        for attempt in (
            lambda: store.gather(torch.tensor([0, 4]), CPU),
            lambda: store.exchange(np.array([1, 5]), [1, 1]),
            lambda: store.exchange(np.array([-1, 2]), [1, 1]),
            lambda: ShardedStore(store.local, 9, group),
        ):
            try:
                attempt()
            except (IndexError, ValueError) as error:
                said.append(str(error))
    return said


def open_shares(paths: list[Path], cache: Path | None, sharded: bool) -> dict[str, Any]:
    """Return what a process holds of a list of images, and all that it reads of it for extraction."""
    with process_group(CPU, 30) as group:
        settings = ImageSettings(32, 16, 2, cache, sharded)
        store = open_paths(paths, settings, group, SilentReporter())
        assert not keep_on_device(store, CPU)
        held = store.local if isinstance(store, ShardedStore) else store
        rows = np.arange(*group.bounds(len(paths)))
        read = group.gather_rows(store.gather(rows, CPU).contiguous())
        store.release_pages()
        assert torch.equal(store.gather(rows, CPU), read[rows])
        assert isinstance(held, ImageStore)
        return {"count": len(store), "held": len(held), "bytes": held.images.nbytes, "read": read}


def train_short_of_memory(options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train where the last process has no room for more than 8 images at a time, and the others have."""
    forward = ReidNet.forward

    def limited(self: ReidNet, inputs: Tensor) -> Tensor:
        if len(inputs) > 8 and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, inputs)

    with mock.patch.object(ReidNet, "forward", limited), process_group(CPU, 30) as group:
        fixed = Fixed(group, **options)
        return {**fixed.train(steps), "parts": fixed.step.micro_batches.count}


def decode_until_killed(killed: int, folder: Path, timeout: float) -> tuple[str, float]:
    """Decode shares of some images, one process being killed meanwhile; return what the others are told, and when."""
    paths = sorted(folder.glob("*.png"))
    read = opening._read

    def read_or_die(*arguments: Any) -> ImageStore:
        if int(os.environ["RANK"]) == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*arguments)

    message, seconds = "nothing was noticed", 0.0
    with (
        contextlib.suppress(DeviceError),
        mock.patch.object(opening, "_read", read_or_die),
        process_group(CPU, timeout) as group,
    ):
        begin = time.monotonic()
        try:
            open_paths(paths, ImageSettings(4, 4, 1, None, sharded=True), group, SilentReporter())
        except DeviceError as error:
            message, seconds = error.message, time.monotonic() - begin
            raise
    return message, seconds
