"""Rows of a sparse matrix as three tensors, and the few operations on them that pseudo-labels need.

The values are whole numbers (fixed point), so their sums do not depend on any order: the same on every device, for
every block size and every split of the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ccreid_cli.machine.device import free_gpu_bytes

_ENTRIES_PER_PIECE = 1 << 23
"""32 MiB of each tensor: more than glibc ever keeps in its heap."""


@dataclass(frozen=True)
class SparseRows:
    """Compressed sparse rows.

    Attributes:
        offsets: Where each row begins, (n + 1,) int64.
        columns: Column of each entry, (nnz,) int32, ascending within a row.
        values: Value of each entry, (nnz,) int32.
    """

    offsets: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.columns.device

    def owners(self) -> torch.Tensor:
        """Row of each entry, (nnz,) int64."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.columns))

    def expand(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All entries of the given rows.

        Args:
            rows: Row numbers, (P,) int64, in any order and with repeats.

        Returns:
            For each entry, which of `rows` it belongs to (E,), ascending, and its place in `columns` and `values` (E,).
        """
        return expand_ranges(self.offsets[rows], self.offsets[rows + 1])


def concatenate(parts: Iterable[SparseRows]) -> SparseRows:
    """Put row ranges under one another; at least one.

    They are joined as they come, into pieces large enough for the system to take back: small parts would leave behind,
    in holes of the heap, as much as the whole takes.
    """
    pieces: list[SparseRows] = []
    waiting: list[SparseRows] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part.columns)
        if count >= _ENTRIES_PER_PIECE:
            pieces.append(_joined(waiting))
            count = 0
    pieces += waiting
    waiting.clear()
    return _joined(pieces)


def _joined(parts: list[SparseRows]) -> SparseRows:
    """Join parts and empty the list: their memory goes as that of the whole fills."""
    lengths = torch.cat([part.offsets.diff() for part in parts])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    columns, values = (field.new_empty(int(offsets[-1])) for field in (parts[0].columns, parts[0].values))
    parts.reverse()
    first = 0
    while parts:
        part = parts.pop()
        last = first + len(part.columns)
        columns[first:last], values[first:last] = part.columns, part.values
        first = last
    return SparseRows(offsets, columns, values)


def distinct_numbers(numbers: torch.Tensor, total: int) -> torch.Tensor:
    """Each of the numbers below `total` once, ascending, (M,) int64."""
    seen = torch.zeros(total, dtype=torch.bool, device=numbers.device)
    for part in torch.split(numbers.flatten(), 1 << 20):
        seen[part.long()] = True
    return torch.nonzero(seen)[:, 0]


def from_sorted_keys(keys: torch.Tensor, values: torch.Tensor, num_rows: int, num_columns: int) -> SparseRows:
    """Rows from ascending keys row·num_columns + column, (nnz,) int64, and their values."""
    rows = torch.div(keys, num_columns, rounding_mode="floor")
    return SparseRows(offsets_of(rows, num_rows), (keys - rows * num_columns).to(torch.int32), values.to(torch.int32))


def offsets_of(owners: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Where each row begins, (num_rows + 1,) int64, given the ascending row of each entry."""
    return torch.searchsorted(owners, torch.arange(num_rows + 1, device=owners.device))


def expand_ranges(begin: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """List the numbers of many half-open ranges.

    Args:
        begin: First number of each range, (P,) int64.
        end: One past the last number of each range, (P,) int64.

    Returns:
        The range each number belongs to (E,), ascending, and the numbers (E,).
    """
    lengths = end - begin
    ends = lengths.cumsum(0)
    owners = torch.repeat_interleave(lengths, output_size=int(ends[-1]) if len(ends) else 0)
    numbers = (begin - (ends - lengths)).index_select(0, owners)
    return owners, numbers.add_(torch.arange(len(owners), device=begin.device))


def scratch_bytes(device: torch.device) -> int:
    """Memory for one work table: about a cache's worth on the CPU, a fraction of what is free on a GPU."""
    if device.type == "cpu":
        return 16 << 20
    return max(32 << 20, min(4 << 30, free_gpu_bytes(device) // 32))


class Scratch:
    """A table of rows × columns int32 zeros for sums and sets of keys row·columns + column.

    It is made once and cleared by key after each use: the work is that of the keys, never that of the table.

    Args:
        num_columns: Columns of the matrix.
        device: Where it lies.

    Attributes:
        budget_bytes: Upper bound of its memory, unless 16 rows need more.
    """

    def __init__(self, num_columns: int, device: torch.device) -> None:
        self.budget_bytes = scratch_bytes(device)
        self.num_rows = max(16, min(4096, self.budget_bytes // (4 * max(1, num_columns))))
        self.num_columns = num_columns
        self._table = torch.zeros(self.num_rows * num_columns, dtype=torch.int32, device=device)

    def add(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add values (P,) int32 at keys (P,), repeats included."""
        self._table.scatter_add_(0, keys, values)

    def set(self, keys: torch.Tensor, values: torch.Tensor | int) -> None:
        """Write at keys (P,) that do not repeat."""
        if isinstance(values, int):
            self._table.index_fill_(0, keys, values)
        else:
            self._table.scatter_(0, keys, values)

    def get(self, keys: torch.Tensor) -> torch.Tensor:
        """Read at keys, any shape."""
        return self._table.gather(0, keys.reshape(-1)).view(keys.shape)

    def clear(self, keys: torch.Tensor) -> None:
        """Zero at keys."""
        self._table.index_fill_(0, keys, 0)

    def distinct(self, keys: torch.Tensor) -> torch.Tensor:
        """Each of the keys once, in no fixed order; what the table holds at the keys is lost and cleared."""
        order = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        self._table.scatter_(0, keys, order)  # whichever write wins, exactly one position reads itself back
        kept = keys[self.get(keys) == order]
        self.clear(kept)
        return kept

    def row_blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Split rows [start, stop) into blocks that fit into the table: at least one, empty if need be."""
        for first in range(start, max(stop, start + 1), self.num_rows):
            yield first, min(first + self.num_rows, stop)
