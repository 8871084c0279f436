"""A matrix of which each process holds some rows, and what is computed column by column over all of them.

For that the processes exchange rows for columns: none ever holds the whole, and a column is computed from all its rows
in their order, so the result has the same bits for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.ring import exchange_counts

COLUMNS_PER_BLOCK = 32
"""Columns that are computed at once: as many for any number of processes, as sums may round by the width."""


class SplitRows:
    """Rows of a matrix (N, D), split over processes.

    Args:
        own: Rows of this process, (n, D), as `Group.bounds(total)` has them.
        total: N; None where `own` are all rows, and this process computes by itself.
        group: The processes; all call the same methods together.

    Attributes:
        own: As given.
        total: N.
    """

    def __init__(self, own: Tensor, total: int | None = None, group: Group | None = None) -> None:
        self.own = own
        self.total = len(own) if total is None else total
        self._group = group if group and total is not None else Group(device=own.device)

    @classmethod
    def collected(cls, rows: Tensor, numbers: Tensor, total: int, group: Group) -> SplitRows:
        """Split rows as `Group.bounds` does that are split otherwise.

        Args:
            rows: Those that this process has, (n, D).
            numbers: Which of all rows they are, (n,) int64, ascending, on the same device; each is in one process.
            total: N.
            group: The processes.
        """
        start, stop = group.bounds(total)
        ends = torch.tensor([group.bounds(total, rank)[1] for rank in range(group.world)], device=rows.device)
        going = torch.bincount(torch.searchsorted(ends, numbers, right=True), minlength=group.world).tolist()
        coming = going if group.world == 1 else exchange_counts(group, going)
        places = group.exchange_rows(numbers, going, coming) - start
        own = group.exchange_rows(rows, going, coming)
        if not torch.equal(places, torch.arange(stop - start, device=rows.device)):
            own = torch.empty_like(own).index_copy_(0, places, own)
        return cls(own, total, group)

    def with_own(self, own: Tensor) -> SplitRows:
        """Return other rows, split as these are."""
        return SplitRows(own, self.total, self._group)

    def by_columns(
        self, compute: Callable[[Tensor], Tensor], num_rows: int | None = None, dtype: torch.dtype = torch.float32
    ) -> SplitRows:
        """Compute a matrix (M, D), each column from the same column of this one.

        Args:
            compute: Gives columns (M, b) for the columns (N, b) of a block, on their device.
            num_rows: M, where it is not N.
            dtype: What `compute` gives.

        Returns:
            The matrix, split as `Group.bounds(M)` has its rows.
        """
        total, world = self.total if num_rows is None else num_rows, self._group.world
        blocks = torch.split(self.own, COLUMNS_PER_BLOCK, dim=1)
        rounds = [blocks[first : first + world] for first in range(0, len(blocks), world)]
        parts = [self._round(blocks, compute, total, dtype) for blocks in rounds]
        return SplitRows(torch.cat(parts, dim=1), total, self._group)

    def _round(
        self, blocks: Sequence[Tensor], compute: Callable[[Tensor], Tensor], total: int, dtype: torch.dtype
    ) -> Tensor:
        """Let each process compute a block, (M, b); return this process's rows of all these blocks, side by side."""
        group = self._group
        widths = [block.shape[1] for block in blocks] + [0] * (group.world - len(blocks))
        before, after = self._shares(self.total), self._shares(total)
        mine, here = widths[group.rank], after[group.rank]
        columns = group.exchange_rows(
            torch.cat([block.reshape(-1) for block in blocks]),
            [len(self.own) * width for width in widths],
            [count * mine for count in before],
        )
        found = compute(columns.view(-1, mine)) if mine else columns.to(dtype)
        sizes = [here * width for width in widths]
        rows = torch.split(group.exchange_rows(found.reshape(-1), [count * mine for count in after], sizes), sizes)
        return torch.cat([rows[rank].view(here, block.shape[1]) for rank, block in enumerate(blocks)], dim=1)

    def _shares(self, total: int) -> list[int]:
        bounds = (self._group.bounds(total, rank) for rank in range(self._group.world))
        return [stop - start for start, stop in bounds]

    def gathered(self) -> Tensor:
        """Return all rows, (N, D), in every process."""
        return self._group.gather_rows(self.own, self._shares(self.total))
