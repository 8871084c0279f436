"""Opening the decoded images of a list of files: whole, from a cache, or this process's share of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.images.cache import CACHE_FOLDER
from ccreid_cli.images.decoding import BICUBIC
from ccreid_cli.images.sharded_store import ShardedStore
from ccreid_cli.images.source import ImageFiles, ImageSet
from ccreid_cli.images.store import ImageStore, open_store
from ccreid_cli.machine.device import free_gpu_bytes
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.ranks import is_first_of_machine, launched_world, local_world, spans_machines


@dataclass(frozen=True)
class ImageSettings:
    """How images are read.

    Attributes:
        height: Rows of a decoded image.
        width: Columns of a decoded image.
        workers: Threads that decode.
        cache_folder: Where decoded images are kept between runs; None keeps them in memory only.
        sharded: Whether each of several processes decodes and holds its share only.
        resize: A name of `images.decoding.RESIZES`.
    """

    height: int
    width: int
    workers: int
    cache_folder: Path | None
    sharded: bool = False
    resize: str = BICUBIC


def image_settings(
    height: int, width: int, workers: int, data_dir: Path, *, resize: str = BICUBIC, sharded: bool = False
) -> ImageSettings:
    """Return the settings with the cache in the data directory and no more workers than processors."""
    return ImageSettings(height, width, min(workers, os.cpu_count() or 1), data_dir / CACHE_FOLDER, sharded, resize)


def is_sharded(wanted: bool | None) -> bool:
    """Resolve `TrainConfig.shard_images`: by default images are sharded where several machines train."""
    return spans_machines() if wanted is None else wanted


def open_paths(paths: list[Path], settings: ImageSettings, group: Group, reporter: Reporter) -> ImageSet:
    """Decode images once, or open what an earlier run decoded.

    Rank 0 decodes and the others then read its cache; or, sharded, each process decodes its share.

    Raises:
        DataError: There are no images, or some are broken.
    """
    if not paths:
        raise DataError("there are no images to read.", "`ccreid data verify` shows what a dataset holds.")
    if settings.sharded and group.world > 1:
        return _open_share(paths, settings, group, reporter)
    if settings.sharded and launched_world() > 1:  # rank 0 alone, after training: it holds only its share
        return ImageFiles(paths, settings.height, settings.width, settings.workers, settings.resize)
    if group.world == 1:
        return _read(paths, settings, reporter)

    def read() -> ImageStore:
        return _read(paths, settings, reporter)

    # First the main process, then one on each machine that does not share its disk, then all from the cache.
    group.on_main(lambda: len(read()))
    store = read() if is_first_of_machine() else None
    group.barrier()
    return store or read()


def _open_share(paths: list[Path], settings: ImageSettings, group: Group, reporter: Reporter) -> ShardedStore:
    """Let every process decode its share of the images, those of one machine with its share of the threads."""
    start, stop = group.bounds(len(paths))
    threads = max(1, settings.workers // local_world())
    local = _read(paths[start:stop], replace(settings, workers=threads), reporter)
    group.barrier()  # waits for the slowest; one process's error about broken images reaches all here
    return ShardedStore(local, len(paths), group)


def _read(paths: list[Path], settings: ImageSettings, reporter: Reporter) -> ImageStore:
    return open_store(
        paths,
        settings.height,
        settings.width,
        cache_folder=settings.cache_folder,
        workers=settings.workers,
        resize=settings.resize,
        reporter=reporter,
    )


def keep_on_device(store: ImageSet, device: torch.device, share: float = 0.3) -> bool:
    """Keep the images that this process holds on a CUDA device when they take at most `share` of its free memory.

    Returns:
        Whether they are there now.
    """
    if device.type != "cuda":
        return False
    return store.to_device(device, int(share * free_gpu_bytes(device)))
