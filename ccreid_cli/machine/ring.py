"""Rows that are split over processes, and how one process gets at those of the others.

Pieces of rows travel around the ring of processes, the next one copied while the last is used; single rows are asked
for by number. In a group of one nothing is copied, and the same code finds everything in its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from ccreid_cli.machine.distributed import Group

_RANGES_AT_ONCE = 4096


def rotate(
    group: Group, piece: Callable[[int], torch.Tensor], sizes: Sequence[Sequence[int]], steps: int | None = None
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Go through the pieces of all processes: first pieces, own before those of the next process, then second ones.

    At any time a process holds one piece of another and receives the next. All processes take part to the end.

    Args:
        group: The processes.
        piece: Gives this process's pieces by number; all have the same type and trailing shape.
        sizes: Rows of each piece, of each process: the same in all of them, none of them 0.
        steps: How many processes' pieces are seen, from this one on; None for all.

    Yields:
        Rank and number of the piece, and the piece (n, ...).
    """
    steps = group.world if steps is None else steps
    for number in range(max(map(len, sizes))):
        current = piece(number) if number < len(sizes[group.rank]) else piece(0)[:0]
        for step in range(steps):
            owner = (group.rank + step) % group.world
            following = sizes[(owner + 1) % group.world]
            coming = current.new_empty((0, *current.shape[1:]))
            works: list[dist.Work] = []
            if step + 1 < steps:
                count = following[number] if number < len(following) else 0
                coming = current.new_empty((count, *current.shape[1:]))
                works = group.pass_on(current, coming)
            if len(current):
                yield owner, number, current
            group.finish(works)
            current = coming


class Requests:
    """Rows that this process needs, asked of the processes that hold them.

    Args:
        group: The processes; all make their requests together.
        wanted: Numbers of rows, (M,) int64, ascending, each once.
        total: Rows of all processes, N, split as `Group.bounds` does.

    Attributes:
        place: (N,) int32, where each wanted row is among those that come; of other rows it says nothing.
    """

    def __init__(self, group: Group, wanted: torch.Tensor, total: int) -> None:
        self._group = group
        self.place = torch.arange(total, dtype=torch.int32, device=wanted.device)
        if group.world == 1:
            return
        self.place[wanted] = torch.arange(len(wanted), dtype=torch.int32, device=wanted.device)
        cuts = [group.bounds(total, rank)[0] for rank in range(group.world)]
        starts = torch.searchsorted(wanted, torch.tensor([*cuts, total], device=wanted.device))
        self._coming: list[int] = starts.diff().tolist()
        self._going = exchange_counts(group, self._coming)
        asked = group.exchange_rows(wanted.to(torch.int32), self._coming, self._going)
        self._asked = asked.long() - group.bounds(total)[0]

    def dense(self, own: torch.Tensor) -> torch.Tensor:
        """Return the wanted rows, (M, ...), given those of this process (n, ...); alone, all rows as they are."""
        if self._group.world == 1:
            return own
        return self._group.exchange_rows(own.index_select(0, self._asked), self._going, self._coming)

    def ragged(self, lengths: torch.Tensor, entries: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the wanted rows of a table whose rows differ in length.

        Args:
            lengths: Entries of each of this process's rows, (n,) int64.
            entries: Tables of the entries, (sum of `lengths`,) each.

        Returns:
            Lengths of the wanted rows (M,) and their entries; alone, everything as it is.
        """
        if self._group.world == 1:
            return lengths, list(entries)
        going = lengths[self._asked]
        coming = self.dense(lengths.to(torch.int32)).long()
        sizes = _sums(going, self._going), _sums(coming, self._coming)
        begins = (lengths.cumsum(0) - lengths)[self._asked]
        return coming, [self._group.exchange_rows(_of_ranges(part, begins, going), *sizes) for part in entries]


def _of_ranges(numbers: torch.Tensor, begins: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Some ranges of numbers, one after another: a few at a time, since their places take more room than they do."""
    found = numbers.new_empty(int(lengths.sum()))
    first = 0
    for begin, length in zip(torch.split(begins, _RANGES_AT_ONCE), torch.split(lengths, _RANGES_AT_ONCE), strict=True):
        shifts = begin - (length.cumsum(0) - length)
        last = first + int(length.sum())
        places = torch.repeat_interleave(shifts, length, output_size=last - first)
        places += torch.arange(last - first, device=places.device)
        torch.index_select(numbers, 0, places, out=found[first:last])
        first = last
    return found


def exchange_counts(group: Group, counts: Sequence[int]) -> list[int]:
    """Tell each process a number, (W,), and learn those that the others have for this one."""
    ones = [1] * group.world
    found = group.exchange_rows(torch.tensor(list(counts), device=group.device), ones, ones)
    numbers: list[int] = found.tolist()
    return numbers


def send_to_main(group: Group, rows: torch.Tensor) -> torch.Tensor:
    """Put the rows (n, ...) of all processes under one another in the first; the others get none."""
    if group.world == 1:
        return rows
    going = [len(rows), *[0] * (group.world - 1)]
    return group.exchange_rows(rows.to(group.device), going, exchange_counts(group, going))


def _sums(lengths: torch.Tensor, sizes: Sequence[int]) -> list[int]:
    return [int(part.sum()) for part in torch.split(lengths, list(sizes))]
