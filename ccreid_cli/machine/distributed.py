"""Many processes that behave like one.

Every rank holds the labels and the memory; features, and the work of making labels of them, are split.
An error of one rank becomes the error of all: the failing rank writes it to the key-value store before it closes
its connections, and the others, whose next exchange then breaks, read it there.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ccreid_cli.core.errors import Interrupted, UsageError
from ccreid_cli.machine.heartbeats import Heartbeats
from ccreid_cli.machine.ranks import launched_rank, launched_world, local_world, threads_per_process
from ccreid_cli.machine.shared_failures import exchanging, lost, raise_shared, share_error

T = TypeVar("T")

_LEFT = "left"
_POLL_SECONDS = 0.1
_LINGER_SECONDS = 3.0
"""How long the rank that serves the store waits for the others, which may have to read why it failed."""


class Group:
    """The processes of a run; in a group of one every operation is the identity.

    Every operation raises DeviceError when another rank was killed or does not answer in time.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
        notes: Store | None = None,
        beats: Heartbeats | None = None,
        timeout: timedelta | None = None,
    ) -> None:
        self.rank = rank
        self.world = world
        self.device = device or torch.device("cpu")
        self._notes = notes
        self._beats = beats
        self._timeout = timeout
        self._side: dist.ProcessGroup | None = None
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
        with self._exchange():
            dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def _sizes(self, count: int) -> list[int]:
        counts = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        counts[self.rank] = count
        sizes: list[int] = self.sum_(counts).tolist()
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
        with self._exchange():
            dist.all_to_all_single(received, rows.contiguous(), list(receive_sizes), list(send_sizes))
        return received

    def begin_exchange_rows(
        self, rows: torch.Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int]
    ) -> Callable[[], torch.Tensor]:
        """As `exchange_rows`, while the program goes on: over connections of its own, which nothing else uses.

        Args:
            rows: As for `exchange_rows`; unchanged until it is done.
            send_sizes: Likewise.
            receive_sizes: Likewise.

        Returns:
            What waits until it is done, and returns the rows received.
        """
        if self.world == 1:
            return lambda: rows
        received = rows.new_empty((sum(receive_sizes), *rows.shape[1:]))
        with self._exchange():
            if self._side is None:
                self._side = cast(dist.ProcessGroup, dist.new_group(timeout=self._timeout))
            work: Any = dist.all_to_all_single(
                received, rows.contiguous(), list(receive_sizes), list(send_sizes), group=self._side, async_op=True
            )

        def wait() -> torch.Tensor:
            with self._exchange():
                work.wait()
            return received

        return wait

    def pass_on(self, rows: torch.Tensor, coming: torch.Tensor) -> list[dist.Work]:
        """Begin to send rows to the process before this one, and to receive from the one after it.

        Args:
            rows: To send; unchanged until all is done. Nothing is sent where there are none.
            coming: Where those of the next process go; likewise.

        Returns:
            What `finish` waits for.
        """
        before, after = (self.rank - 1) % self.world, (self.rank + 1) % self.world
        parts = [(dist.isend, rows.contiguous(), before), (dist.irecv, coming, after)]
        operations = [dist.P2POp(what, part, peer) for what, part, peer in parts if len(part)]
        with self._exchange():
            works: list[dist.Work] = dist.batch_isend_irecv(operations) if operations else []
        return works

    def finish(self, works: Sequence[dist.Work]) -> None:
        """Wait for exchanges that were begun."""
        with self._exchange():
            for work in works:
                work.wait()

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
            with self._exchange():
                self._notes.set(key, "done")
        self._wait(lambda notes: notes.check([key]))
        return self.broadcast(cast(T, value))  # rank 0 puts the value in

    def broadcast(self, value: T) -> T:
        """Return rank 0's `value` (any picklable object) on every rank."""
        if self.world == 1:
            return value
        box = [value]
        with self._exchange():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def maximum(self, value: int) -> int:
        """Return the largest of every rank's `value`."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        with self._exchange():
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` in place by its sum over ranks, and return it."""
        if self.world > 1:
            with self._exchange():
                dist.all_reduce(tensor)
        return tensor

    def minimum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` in place by its smallest over ranks, place by place, and return it."""
        if self.world > 1:
            with self._exchange():
                dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return tensor

    def barrier(self) -> None:
        """Wait for every rank, however long it takes."""
        if self.world == 1 or self._notes is None:
            return
        self._turns += 1
        key = f"turn-{self._turns}"
        with self._exchange():
            self._notes.add(key, 1)
        self._wait(lambda notes: notes.add(key, 0) == self.world)

    def tally(self) -> Callable[[int], int]:
        """Return a count that all ranks share: called with an amount, it adds that and returns what the count is then.

        All ranks ask for their counts in the same order; to count, none waits for another. Counting raises the error of
        a rank that failed, as an exchange does.
        """
        self._turns += 1
        key, notes, own = f"tally-{self._turns}", self._notes, [0]

        def count(amount: int) -> int:
            if self.world == 1 or notes is None:
                own[0] += amount
                return own[0]
            with self._exchange():
                self._check_others(notes)
                return notes.add(key, amount)

        return count

    def share_out(self, count: int) -> Iterator[int]:
        """Yield the pieces of `count` that this rank is to do: whoever has done one gets the next.

        Args:
            count: How many pieces there are, the same on every rank.
        """
        given = self.tally()

        def pieces() -> Iterator[int]:
            while (number := given(1) - 1) < count:
                yield number

        return pieces()

    def _wait(self, is_done: Callable[[Store], bool]) -> None:
        assert self._notes is not None
        with self._exchange():
            while not is_done(self._notes):
                self._check_others(self._notes)
                time.sleep(_POLL_SECONDS)

    def _check_others(self, notes: Store) -> None:
        """Raise the error of a rank that failed, or one that names a rank that was killed."""
        raise_shared(notes)
        if self._beats and (silent := self._beats.silent()) is not None:
            raise lost(silent, self.world)

    def _exchange(self) -> AbstractContextManager[None]:
        return exchanging(self.rank, self.world)


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
    rank, notes, beats = launched_rank(), None, None
    try:
        timeout = timedelta(seconds=timeout_seconds)
        with exchanging(rank, world):
            store, rank, world = next(rendezvous("env://", rank, world, timeout=timeout))
            notes = PrefixStore("ccreid", store)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
            beats = Heartbeats(notes, rank, world, timeout_seconds)
        yield Group(rank, world, device, notes, beats, timeout)
        with exchanging(rank, world):
            _leave(notes, beats, rank, world, together=True)
    except BaseException as error:
        shared = share_error(error, notes, rank, world)
        # What the failed frames hold keeps the connections open, and the others waiting.
        for failed in filter(None, (error, error.__cause__)):
            traceback.clear_frames(failed.__traceback__)
        gc.collect()
        _leave(notes, beats, rank, world, together=isinstance(error, Interrupted))
        if shared is error:
            raise
        raise shared from error


def _leave(notes: Store | None, beats: Heartbeats | None, rank: int, world: int, *, together: bool) -> None:
    """Leave the group; the rank that serves the store waits until the others need it no more.

    Args:
        notes: The group's store.
        beats: This process's signs of life, which end.
        rank: This process.
        world: How many there are.
        together: Whether all ranks leave now. If not, closing gloo's connections wakes those who wait for this rank,
            but NCCL would wait for all ranks of this machine: its communicator is left to the end of the process.
    """
    if beats:
        beats.stop()
    if dist.is_initialized() and (together or dist.get_backend() != "nccl"):
        dist.destroy_process_group()
    if notes is None:
        return
    with contextlib.suppress(RuntimeError):
        left = notes.add(_LEFT, 1)
        deadline = time.monotonic() + _LINGER_SECONDS
        while rank == 0 and left < world and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            left = notes.add(_LEFT, 0)
