"""Pairs of rows whose weights overlap: m = Σ min(V_i, V_j), without looking at all pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.ring import exchange_counts, rotate
from ccreid_cli.pseudo_labels.dense_overlap import distance_of
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.sparse_rows import Scratch, SparseRows, expand_ranges, scratch_bytes

_TAIL_SHARE = 0.7  # of the overlap asked for: more shortens the heads, but leaves more pairs to sum in full

_ENTRIES_AT_ONCE = 1 << 21
_LEAST_ENTRIES = 1 << 17
"""Entries of the weights that are worked on, and travel, together: where several processes share a CPU's memory, an
eighth of those of one, within these bounds. More make fewer passes, fewer need less room."""


@dataclass(frozen=True)
class Pairs:
    """Pairs i < j of images and their Jaccard distance.

    Attributes:
        rows: i, (P,) int32.
        columns: j, (P,) int32.
        distances: (P,) float32 in [0, 1].
    """

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    distances: NDArray[np.float32]


_NO_PAIRS = Pairs(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of several row ranges in one; at least one part."""
    return Pairs(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.columns for part in parts]),
        np.concatenate([part.distances for part in parts]),
    )


@dataclass(frozen=True)
class _Tile:
    """Some consecutive rows of all: their weights, the rarest columns first, of which the first ones are the head.

    Attributes:
        first: Number of the first row.
        heads: Entries in the head of each row, (m,) int64.
        weights: All entries, m × N.
    """

    first: int
    heads: torch.Tensor
    weights: SparseRows

    @classmethod
    def unpack(cls, first: int, num_rows: int, numbers: torch.Tensor) -> _Tile:
        """Make one of what `OverlapSearch` sends: lengths, heads, columns and values, int32."""
        lengths, heads = numbers[:num_rows].long(), numbers[num_rows : 2 * num_rows].long()
        columns, values = numbers[2 * num_rows :].chunk(2)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return cls(first, heads, SparseRows(offsets, columns, values))


class _Lists:
    """The heads of a tile, column by column.

    Args:
        tile: The tile.
        total: Columns there are.
        odd_only: Whether only rows of odd number count.
    """

    def __init__(self, tile: _Tile, total: int, odd_only: bool) -> None:
        offsets = tile.weights.offsets
        rows, positions = expand_ranges(offsets[:-1], offsets[:-1] + tile.heads)
        if odd_only:
            kept = (rows + tile.first) % 2 == 1
            rows, positions = rows[kept], positions[kept]
        columns = tile.weights.columns[positions].long()
        self._order = columns.argsort(stable=True)
        self.rows, self.values = rows[self._order], tile.weights.values[positions[self._order]]
        ends = torch.bincount(columns, minlength=total).cumsum(0)
        self.offsets = torch.cat([ends.new_zeros(1), ends])

    @cached_property
    def after(self) -> torch.Tensor:
        """Where later rows begin in the list of each entry of the heads, which go row by row, (E,) int64."""
        places = torch.empty_like(self._order)
        places[self._order] = torch.arange(1, len(places) + 1, device=places.device)
        return places


class OverlapSearch:
    """Finds the pairs of rows whose weights overlap enough.

    Columns are put in order, rare ones first, and each row is cut into a head and a tail of at most `slack` weight.
    What two rows share outside of both heads is at most `slack`, so a pair that overlaps by `least` does so by
    `least - slack` in its heads. Heads are short and rare columns hold few rows: the pairs that remain are few, and
    are summed in full. Each process compares its rows with its own, and with those of half of the others.

    Args:
        table: All rows, for their number and the processes that share them.
        weights: Weights of this process's rows, n × N, which are put into another order.
        scale: The whole number that a weight of one is written as.
        max_distance: Pairs farther apart are left out; 1 leaves out only those that share nothing.

    Attributes:
        num_candidates: Entries of two heads that were compared so far.
    """

    def __init__(self, table: FeatureTable, weights: SparseRows, scale: int, max_distance: float = 1.0) -> None:
        self._group, self._total, self._start = table.group, len(table), table.start
        self.weights, self.scale, self.max_distance = weights, scale, max_distance
        # Overlap m at a distance d: m = 2(1 - d)/(2 - d). The float32 distance decides in the end: leave it some room.
        least = 2 * (1 - min(max_distance, 1.0)) / (2 - min(max_distance, 1.0)) - 1e-5
        self.slack = max(0, int(least * scale * _TAIL_SHARE))
        self.least_in_heads = max(1, int(least * scale) - self.slack)
        self.num_candidates = 0
        self._at_once = _ENTRIES_AT_ONCE
        if self._group.world > 1 and weights.device.type == "cpu":
            self._at_once = min(_ENTRIES_AT_ONCE, max(_LEAST_ENTRIES, len(weights.columns) // 8))
        self._heads = torch.zeros(len(weights), dtype=torch.int64, device=weights.device)
        self._cut_heads()
        # Whose place a column takes in a table of the columns of a few rows; 0 for those of other rows.
        self._columns = torch.zeros(self._total, dtype=torch.int32, device=weights.device)
        self._budget = scratch_bytes(weights.device)
        self._table = weights.values.new_zeros(0)

    def _cut_heads(self) -> None:
        """Put the rare columns of each row first, and count those that weigh more than the slack with all behind."""
        weights = self.weights
        counts = torch.zeros(self._total, dtype=torch.int64, device=weights.device)
        for part in torch.split(weights.columns, self._at_once):
            counts += torch.bincount(part, minlength=self._total)
        rarity = self._group.sum_(counts).argsort(stable=True).argsort()
        for first, last in self._row_ranges(self._at_once):
            entries = slice(int(weights.offsets[first]), int(weights.offsets[last]))
            owners = torch.repeat_interleave(weights.offsets[first : last + 1].diff())
            order = (owners * self._total + rarity[weights.columns[entries]]).argsort()
            weights.columns[entries] = weights.columns[entries][order]
            values = weights.values[entries][order]
            weights.values[entries] = values
            values = values.long()
            after = values.cumsum(0) - values  # weight before each entry, over all of these rows
            sums = values.new_zeros(last - first).index_add_(0, owners, values)
            kept = sums.cumsum(0)[owners] - after > self.slack  # this entry and all behind it weigh more than the slack
            self._heads[first:last] = torch.bincount(owners[kept], minlength=last - first)

    def _row_ranges(self, num_entries: int) -> list[tuple[int, int]]:
        """Split this process's rows into ranges of about so many entries, at least one row each."""
        offsets, total = self.weights.offsets, len(self.weights)
        ranges, first = [], 0
        while first < total:
            fitting = int(torch.searchsorted(offsets, int(offsets[first]) + num_entries, right=True)) - 1
            last = min(max(fitting, first + 1), total)
            ranges.append((first, last))
            first = last
        return ranges

    def pairs(self) -> Pairs:
        """All pairs i < j at a distance of at most `max_distance`, each in one process, in no fixed order."""
        return join_pairs(
            [_NO_PAIRS, *(pairs for tile, step in self._tiles() for pairs in self._with_tile(tile, step))]
        )

    def _tiles(self) -> Iterator[tuple[_Tile, int]]:
        """Go through the rows of this process and of the next half of them, and how many processes away they are."""
        ranges, offsets = self._row_ranges(self._at_once), self.weights.offsets
        sizes = [[last - first, int(offsets[last] - offsets[first])] for first, last in ranges]
        counts = torch.tensor(sizes, dtype=torch.int64, device=self.weights.device).reshape(-1, 2)
        numbers = exchange_counts(self._group, [len(sizes)] * self._group.world)
        shapes = [part.tolist() for part in torch.split(self._group.gather_rows(counts, numbers), numbers)]

        def piece(number: int) -> torch.Tensor:
            if not ranges:
                return self.weights.columns
            first, last = ranges[number]
            entries = slice(int(offsets[first]), int(offsets[last]))
            parts = (self.weights.columns[entries], self.weights.values[entries])
            lengths = offsets[first : last + 1].diff()
            return torch.cat([lengths.int(), self._heads[first:last].int(), *parts])

        world, lengths = self._group.world, [[2 * (rows + entries) for rows, entries in shape] for shape in shapes]
        for rank, number, part in rotate(self._group, piece, lengths, world // 2 + 1):
            before = sum(rows for rows, _ in shapes[rank][:number])
            first = self._group.bounds(self._total, rank)[0] + before
            yield _Tile.unpack(first, shapes[rank][number][0], part), (rank - self._group.rank) % world

    def _with_tile(self, tile: _Tile, step: int) -> Iterator[Pairs]:
        """Find the pairs of this process's rows and those of a tile, where this process is to."""
        # Of two processes that are half the ring apart both see the other: even rows of the lower, odd of the lower.
        shared = step > 0 and 2 * step == self._group.world
        is_lower = self._start < tile.first
        lists = _Lists(tile, self._total, odd_only=shared and not is_lower)
        scratch = Scratch(len(tile.heads), self.weights.device)
        inside = tile.first - self._start
        stop = inside + len(tile.heads) if step == 0 else len(self.weights)
        for first, last in self._row_ranges(self._at_once // 2):
            if first < stop:
                yield from self._search(tile, lists, scratch, first, min(last, stop), shared and is_lower, step == 0)

    def _search(
        self, tile: _Tile, lists: _Lists, scratch: Scratch, start: int, stop: int, even_only: bool, is_own: bool
    ) -> Iterator[Pairs]:
        """Find the pairs of the rows [start, stop) with a tile, a few rows at a time."""
        offsets = self.weights.offsets
        owners, positions = expand_ranges(offsets[start:stop], offsets[start:stop] + self._heads[start:stop])
        if even_only:
            kept = (owners + (start + self._start)) % 2 == 0
            owners, positions = owners[kept], positions[kept]
        columns = self.weights.columns[positions].long()
        begin, end = lists.offsets[columns], lists.offsets[columns + 1]
        inside = tile.first - self._start
        if is_own and stop > inside:  # each pair is met once, at its first row: later rows are behind it in the lists
            skipped, seen = int(self._heads[start:inside].sum()), int(self._heads[inside:start].sum())
            begin[skipped:] = lists.after[seen : seen + len(begin) - skipped]
        work = torch.cat([begin.new_zeros(1), (end - begin).cumsum(0)])
        rows = torch.arange(stop - start + 1, device=owners.device)
        entries_before = torch.searchsorted(owners, rows)
        work_before = work[entries_before].cpu().numpy()
        before = entries_before.tolist()
        self.num_candidates += int(work_before[-1])
        first = 0
        while first < stop - start:
            limit = work_before[first] + self._budget // 32
            fitting = int(np.searchsorted(work_before, limit, side="right")) - 1
            last = min(max(fitting, first + 1), first + self._rows_at_once(scratch), stop - start)
            part = slice(before[first], before[last])
            if work_before[last] > work_before[first]:
                entries = _Entries(owners[part] - first, self.weights.values[positions[part]], begin[part], end[part])
                yield self._block_pairs(tile, lists, scratch, start + first, start + last, entries)
            first = last

    def _rows_at_once(self, scratch: Scratch) -> int:
        """How many rows fit into both tables: that of rows and the tile's rows, and that of rows and their columns."""
        columns = min(self._total, self._at_once)
        length = max(1, len(self.weights.columns) // max(1, len(self.weights)))
        return min(scratch.num_rows, max(16, self._budget // (4 * columns), int((self._budget / (4 * length)) ** 0.5)))

    def _block_pairs(
        self, tile: _Tile, lists: _Lists, scratch: Scratch, first: int, last: int, entries: _Entries
    ) -> Pairs:
        width = scratch.num_columns
        owners, positions = expand_ranges(entries.begin, entries.end)
        keys = (entries.owners * width).index_select(0, owners)
        keys += lists.rows.index_select(0, positions)
        mine = entries.values.index_select(0, owners)
        scratch.add(keys, torch.minimum(mine, lists.values.index_select(0, positions)))
        enough = keys[scratch.get(keys) >= self.least_in_heads]
        scratch.clear(keys)
        distinct = scratch.distinct(enough).sort()[0]
        rows = torch.div(distinct, width, rounding_mode="floor")
        others = distinct - rows * width
        distances = distance_of(self._full_overlaps(tile, rows + first, others), self.scale).float()
        near = distances <= self.max_distance
        one, other = rows[near] + (first + self._start), others[near] + tile.first
        return Pairs(
            torch.minimum(one, other).to(torch.int32).cpu().numpy(),
            torch.maximum(one, other).to(torch.int32).cpu().numpy(),
            distances[near].cpu().numpy(),
        )

    def _full_overlaps(self, tile: _Tile, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Σ min(V_i, V_j) of each pair, (P,) int64, of ascending rows and of others, which are in the tile."""
        sums = [torch.zeros(0, dtype=torch.int64, device=rows.device)]
        if not len(rows):
            return sums[0]
        weights = self.weights
        rows, places_of = torch.unique_consecutive(rows, return_inverse=True)
        owners, entries = weights.expand(rows)
        columns = weights.columns[entries].long()
        order = torch.arange(len(columns), dtype=torch.int32, device=rows.device)
        self._columns.scatter_(0, columns, order)  # whichever write wins, exactly one entry of a column reads itself
        distinct = columns[self._columns[columns] == order]
        self._columns[distinct] = torch.arange(1, len(distinct) + 1, dtype=torch.int32, device=rows.device)
        width = len(distinct) + 1
        if len(self._table) < len(rows) * width:
            self._table = weights.values.new_zeros(len(rows) * width)
        keys = owners.mul_(width).add_(self._columns[columns])
        self._table.scatter_(0, keys, weights.values[entries])
        for left, right in zip(torch.split(places_of, 1 << 13), torch.split(others, 1 << 13), strict=True):
            pair, positions = tile.weights.expand(right)
            places = (left * width).index_select(0, pair)
            places += self._columns.index_select(0, tile.weights.columns.index_select(0, positions))
            shared = torch.minimum(self._table.index_select(0, places), tile.weights.values.index_select(0, positions))
            sums.append(shared.new_zeros(len(left)).scatter_add_(0, pair, shared).long())
        self._columns[distinct] = 0
        self._table.index_fill_(0, keys, 0)
        return torch.cat(sums)


@dataclass(frozen=True)
class _Entries:
    """Entries of the heads of a few rows: (E,) row, value, and where their column's list begins and ends."""

    owners: torch.Tensor
    values: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor
