"""Many processes that behave like one.

Every rank holds the whole feature matrix, labels and memory; the work of making them is split, the result is not.
An error of one rank becomes the error of all: who fails writes it down in the group's key-value store before it closes
its connections, and the others, whose next exchange then breaks, read it there.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ccreid_cli.core import errors
from ccreid_cli.core.errors import SAID_ELSEWHERE, CcreidError, DeviceError, Interrupted, UsageError

T = TypeVar("T")

_FAILURE, _LEFT = "failure", "left"
_POLL_SECONDS = 0.1
_LINGER_SECONDS = 3.0
"""How long the rank that keeps the store stays for the others, which may have to read why it failed."""


class Group:
    """The processes of a run; alone, every operation is the identity."""

    def __init__(
        self, rank: int = 0, world: int = 1, device: torch.device | None = None, notes: Store | None = None
    ) -> None:
        self.rank = rank
        self.world = world
        self.device = device or torch.device("cpu")
        self._notes = notes
        self._turns = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def bounds(self, count: int, rank: int | None = None) -> tuple[int, int]:
        """Return a rank's share [start, stop) of `count` rows, by default this one's; shares differ by at most one."""
        rank = self.rank if rank is None else rank
        return count * rank // self.world, count * (rank + 1) // self.world

    def gather_rows(self, rows: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
        """Concatenate every rank's rows in rank order, on every rank.

        Args:
            rows: (n_r, ...) of this rank.
            sizes: n_r of every rank. Without, they are exchanged first, and a GPU is waited for.
        """
        if self.world == 1:
            return rows
        sizes = sizes or self._sizes(len(rows))
        padded = rows
        if len(rows) < max(sizes):
            padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
            padded[: len(rows)] = rows
        parts = [torch.empty_like(padded, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def _sizes(self, count: int) -> list[int]:
        counts = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        counts[self.rank] = count
        dist.all_reduce(counts)
        sizes: list[int] = counts.tolist()
        return sizes

    def gather_array(self, rows: NDArray[Any]) -> NDArray[Any]:
        """As `gather_rows`, for a NumPy array."""
        if self.world == 1:
            return rows
        gathered = self.gather_rows(torch.from_numpy(np.ascontiguousarray(rows)).to(self.device))
        return np.asarray(gathered.cpu().numpy())

    def exchange_rows(
        self, rows: torch.Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int]
    ) -> torch.Tensor:
        """Send some rows to each rank, and receive some from each; all ranks take part.

        Args:
            rows: (sum of `send_sizes`, ...) those for rank 0, then those for rank 1, and so on.
            send_sizes: (W,) rows for each rank, this one included.
            receive_sizes: (W,) rows from each rank: what it has for this one. Nothing is waited for to learn them.

        Returns:
            (sum of `receive_sizes`, ...) the rows from rank 0, then those from rank 1, and so on.
        """
        if self.world == 1:
            return rows
        received = rows.new_empty((sum(receive_sizes), *rows.shape[1:]))
        dist.all_to_all_single(received, rows.contiguous(), list(receive_sizes), list(send_sizes))
        return received

    def on_main(self, action: Callable[[], T]) -> T:
        """Let rank 0 do something, however long it takes, while the others wait.

        Args:
            action: What to do; its result must be picklable.

        Returns:
            The result, on every rank.

        Raises:
            CcreidError: What `action` raised, on every rank.
        """
        if self.world == 1 or self._notes is None:
            return action()
        value = action() if self.is_main else None
        self._turns += 1
        key = f"turn-{self._turns}"
        if self.is_main:
            self._notes.set(key, "done")
        self._wait(lambda notes: notes.check([key]))
        return self.broadcast(cast(T, value))  # rank 0 puts the value in

    def broadcast(self, value: T) -> T:
        """Return rank 0's `value` (any picklable object) on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def maximum(self, value: int) -> int:
        """Return the largest of every rank's `value`."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` in place by its sum over ranks, and return it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for every rank, however long it takes."""
        if self.world == 1 or self._notes is None:
            return
        self._turns += 1
        key = f"turn-{self._turns}"
        self._notes.add(key, 1)
        self._wait(lambda notes: notes.add(key, 0) == self.world)

    def _wait(self, is_done: Callable[[Store], bool]) -> None:
        assert self._notes is not None
        while not is_done(self._notes):
            if failure := _read_failure(self._notes):
                raise failure
            time.sleep(_POLL_SECONDS)


def launched_world() -> int:
    """Return how many processes the launcher (torchrun or ``--gpus``) started; 1 without one.

    Raises:
        UsageError: WORLD_SIZE is no number.
    """
    return _from_environment("WORLD_SIZE", 1)


def is_launched() -> bool:
    """Whether a launcher started this process, alone or with others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Whether this process writes and prints, before any group is joined."""
    return os.environ.get("RANK", "0") == "0"


def is_first_of_machine() -> bool:
    """Whether this process does what every machine needs once."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def local_world() -> int:
    """Return how many of the launched processes are on this machine: all, where the launcher does not say."""
    return _from_environment("LOCAL_WORLD_SIZE", launched_world())


def spans_machines() -> bool:
    """Whether the launched processes are on more than one machine."""
    return local_world() < launched_world()


def threads_per_process(num_processes: int) -> int:
    """Return this machine's share of processors for each of `num_processes` processes on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_processes)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit() or (name.endswith("SIZE") and int(text) < 1):
        raise UsageError(f'{name} is "{text}", not a number of processes.', "Start ranks with torchrun.")
    return int(text)


@contextmanager
def process_group(device: torch.device, timeout_seconds: float = 600.0) -> Iterator[Group]:
    """Join the group that the launcher's environment describes; alone, a group of one.

    Args:
        device: This rank's device: NCCL on CUDA, gloo elsewhere.
        timeout_seconds: How long a rank waits for the others before it gives up.

    Raises:
        DeviceError: Another rank was killed or did not answer in time.
        CcreidError: Another rank failed: its error.
        UsageError: The launcher's variables are incomplete.
    """
    world = launched_world()
    if world == 1:
        yield Group(device=device)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"WORLD_SIZE is {world} but {', '.join(missing)} is not set.", "Start ranks with torchrun.")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_per_process(local_world()))
    rank, notes = _from_environment("RANK", 0), None
    try:
        timeout = timedelta(seconds=timeout_seconds)
        store, rank, world = next(rendezvous("env://", rank, world, timeout=timeout))
        notes = PrefixStore("ccreid", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
        yield Group(rank, world, device, notes)
        _leave(notes, rank, world, together=True)
    except BaseException as error:
        shown = _as_everyone_sees_it(error, notes, rank, world)
        # What the failed frames hold keeps the connections open, and the others waiting.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        _leave(notes, rank, world, together=isinstance(error, Interrupted))
        if shown is error:
            raise
        raise shown from error


def _as_everyone_sees_it(error: BaseException, notes: Store | None, rank: int, world: int) -> BaseException:
    """Write the error down for the others, or, if another failed first, take over what that one wrote."""
    who = f"process {rank} of {world}"
    if isinstance(error, Interrupted):
        if rank:
            error.add_note(SAID_ELSEWHERE)
        return error
    if not isinstance(error, Exception):
        _write_failure(notes, DeviceError(f"{who} was stopped."))
        return error
    if not isinstance(error, CcreidError) and not _is_communication(error):
        _write_failure(notes, DeviceError(f"{who} failed: {type(error).__name__}: {error}"))
        return error
    if not isinstance(error, CcreidError):
        error = DeviceError(
            f"{who} lost the others: {str(error).splitlines()[0]}",
            "Another process was killed, or did not answer within the time-out. `ccreid resume` goes on.",
        )
    return _write_failure(notes, error) or error


def _write_failure(notes: Store | None, error: CcreidError) -> CcreidError | None:
    """Write an error down, unless there is one already: then return that."""
    if notes is None or SAID_ELSEWHERE in getattr(error, "__notes__", []):
        return None
    own = json.dumps([type(error).__name__, error.message, error.hint])
    try:
        found = notes.compare_set(_FAILURE, "", own).decode()
    except (dist.DistError, RuntimeError):
        return None  # the rank that keeps the store was killed
    return None if found == own else _failure_from(found)


def _read_failure(notes: Store) -> CcreidError | None:
    return _failure_from(notes.get(_FAILURE).decode()) if notes.check([_FAILURE]) else None


def _failure_from(text: str) -> CcreidError:
    name, message, hint = json.loads(text)
    kind = getattr(errors, name, CcreidError)
    error: CcreidError = kind(message, hint)
    error.add_note(SAID_ELSEWHERE)
    return error


def _leave(notes: Store | None, rank: int, world: int, *, together: bool) -> None:
    """Leave the group; the rank that keeps the store waits until the others need it no more.

    Args:
        notes: The group's store.
        rank: This process.
        world: How many there are.
        together: Whether all ranks leave now. If not, closing gloo's connections wakes those who wait for this rank,
            but NCCL would wait for all ranks of this machine: its communicator is left to the end of the process.
    """
    if dist.is_initialized() and (together or dist.get_backend() != "nccl"):
        dist.destroy_process_group()
    if notes is None:
        return
    with contextlib.suppress(dist.DistError, RuntimeError):
        left = notes.add(_LEFT, 1)
        deadline = time.monotonic() + _LINGER_SECONDS
        while rank == 0 and left < world and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            left = notes.add(_LEFT, 0)


def _is_communication(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    words = ("Connection", "connection", "gloo", "Gloo", "NCCL", "Timed out", "timed out", "Broken pipe", "Socket")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
