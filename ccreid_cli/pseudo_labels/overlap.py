"""Pairs of rows whose weights overlap: m = Σ min(V_i, V_j), without looking at all pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.pseudo_labels.sparse_rows import Scratch, SparseRows, expand_ranges, offsets_of, scratch_bytes

_TAIL_SHARE = 0.7  # of the overlap asked for: more shortens the heads, but leaves more pairs to sum in full


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


class OverlapSums:
    """Jaccard distances of some rows to all rows, dense: for blocks of rows such as the queries of a re-ranking.

    Args:
        weights: Weights of all rows, N × N.
        scale: The whole number that a weight of one is written as.
    """

    def __init__(self, weights: SparseRows, scale: int) -> None:
        self.weights, self.scale = weights, scale
        by_column = weights.columns.argsort(stable=True)
        self._column_rows = weights.owners()[by_column]
        self._column_values = weights.values[by_column]
        self._column_offsets = offsets_of(weights.columns[by_column].long(), len(weights))

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Split rows [start, stop) so that a block of distances takes about `scratch_bytes`."""
        rows = max(16, min(1024, scratch_bytes(self.weights.device) // (8 * len(self.weights))))
        for first in range(start, stop, rows):
            yield first, min(first + rows, stop)

    def distances(self, first: int, last: int) -> torch.Tensor:
        """1 - m/(2 - m) of the rows [first, last), one of the `blocks`, to all rows: (last - first, N) float64."""
        weights, total = self.weights, len(self.weights)
        entries = slice(int(weights.offsets[first]), int(weights.offsets[last]))
        rows = torch.repeat_interleave(weights.offsets[first : last + 1].diff()) * total
        columns = weights.columns[entries].long()
        owners, positions = expand_ranges(self._column_offsets[columns], self._column_offsets[columns + 1])
        keys = rows.index_select(0, owners) + self._column_rows.index_select(0, positions)
        mine = weights.values[entries].index_select(0, owners)
        sums = torch.zeros((last - first) * total, dtype=torch.int32, device=weights.device)
        sums.scatter_add_(0, keys, torch.minimum(mine, self._column_values.index_select(0, positions)))
        return distance_of(sums.view(last - first, total), self.scale)


def distance_of(sums: torch.Tensor, scale: int) -> torch.Tensor:
    """Jaccard distance 1 - m/(2 - m) in double precision, from overlaps m in whole numbers of 1/scale."""
    share = sums.double() / scale
    return (1.0 - share / (2.0 - share)).clamp_(0.0, 1.0)


class OverlapSearch:
    """Finds the pairs of rows whose weights overlap enough.

    Columns are put in order, rare ones first, and each row is cut into a head and a tail of at most `slack` weight.
    What two rows share outside of both heads is at most `slack`, so a pair that overlaps by `least` does so by
    `least - slack` in its heads. Heads are short and rare columns hold few rows: the pairs that remain are few, and
    are summed in full.

    Args:
        weights: Weights of all rows, N × N.
        scale: The whole number that a weight of one is written as.
        max_distance: Pairs farther apart are left out; 1 leaves out only those that share nothing.

    Attributes:
        work_before: Candidate pairs of all rows before each row, and of all rows, (N + 1,) int64.
    """

    def __init__(self, weights: SparseRows, scale: int, max_distance: float = 1.0) -> None:
        self.weights, self.scale, self.max_distance = weights, scale, max_distance
        # Overlap m at a distance d: m = 2(1 - d)/(2 - d). The float32 distance decides in the end: leave it some room.
        least = 2 * (1 - min(max_distance, 1.0)) / (2 - min(max_distance, 1.0)) - 1e-5
        self.slack = max(0, int(least * scale * _TAIL_SHARE))
        self.least_in_heads = max(1, int(least * scale) - self.slack)
        self._cut_heads()

    def _cut_heads(self) -> None:
        """Keep the entries of the heads, row by row, and the same entries column by column."""
        weights, total = self.weights, len(self.weights)
        owners = weights.owners()
        columns = weights.columns.long()
        rarity = torch.bincount(columns, minlength=total).argsort(stable=True).argsort()
        order = (owners * total + rarity[columns]).argsort()
        values = weights.values[order].long()
        after = values.cumsum(0) - values  # weight before each entry, over all rows
        row_sums = torch.zeros(total, dtype=torch.int64, device=weights.device).index_add_(0, owners, values)
        through = row_sums.cumsum(0)[owners]
        kept = through - after > self.slack  # this entry and all behind it weigh more than the slack
        self.rows, self.columns, self.values = owners[kept], columns[order][kept], weights.values[order][kept]
        self.offsets = offsets_of(self.rows, total)
        by_column = self.columns.argsort(stable=True)
        self.column_rows, self.column_values = self.rows[by_column], self.values[by_column]
        # The entries behind this one in its column belong to later rows: each pair is met once.
        place = torch.empty_like(by_column)
        place[by_column] = torch.arange(len(by_column), device=weights.device)
        self.begin = place + 1
        self.end = offsets_of(self.columns[by_column], total)[1:][self.columns]

        work = torch.cat([self.begin.new_zeros(1), (self.end - self.begin).cumsum(0)])
        self.work_before = work[self.offsets].cpu().numpy()

    def pairs(self, start: int, stop: int) -> Pairs:
        """All pairs i < j with i in [start, stop) and a distance of at most `max_distance`, ordered by i and j."""
        scratch = Scratch(len(self.weights), self.weights.device)
        blocks = self._blocks(start, stop, scratch)
        return join_pairs([_NO_PAIRS, *(self._block_pairs(first, last, scratch) for first, last in blocks)])

    def _blocks(self, start: int, stop: int, scratch: Scratch) -> Iterator[tuple[int, int]]:
        """Split rows [start, stop) so that a block fits into the work table and its pairs into about as much."""
        while start < stop:
            limit = self.work_before[start] + scratch.budget_bytes // 32
            fitting = int(np.searchsorted(self.work_before, limit, side="right")) - 1
            last = min(max(fitting, start + 1), start + scratch.num_rows, stop)
            yield start, last
            start = last

    def _block_pairs(self, first: int, last: int, scratch: Scratch) -> Pairs:
        total = scratch.num_columns
        entries = slice(int(self.offsets[first]), int(self.offsets[last]))
        owners, positions = expand_ranges(self.begin[entries], self.end[entries])
        keys = ((self.rows[entries] - first) * total).index_select(0, owners)
        keys += self.column_rows.index_select(0, positions)
        mine = self.values[entries].index_select(0, owners)
        scratch.add(keys, torch.minimum(mine, self.column_values.index_select(0, positions)))
        enough = keys[scratch.get(keys) >= self.least_in_heads]
        scratch.clear(keys)
        distinct = scratch.distinct(enough).sort()[0]
        rows = torch.div(distinct, total, rounding_mode="floor")
        columns = distinct - rows * total
        distances = distance_of(self._full_overlaps(first, last, rows, columns, scratch), self.scale).float()
        near = distances <= self.max_distance
        return Pairs(
            (rows[near] + first).to(torch.int32).cpu().numpy(),
            columns[near].to(torch.int32).cpu().numpy(),
            distances[near].cpu().numpy(),
        )

    def _full_overlaps(
        self, first: int, last: int, rows: torch.Tensor, columns: torch.Tensor, scratch: Scratch
    ) -> torch.Tensor:
        """Σ min(V_i, V_j) of each pair, (P,) int64."""
        weights = self.weights
        entries = slice(int(weights.offsets[first]), int(weights.offsets[last]))
        owners = torch.repeat_interleave(weights.offsets[first : last + 1].diff())
        keys = owners * scratch.num_columns + weights.columns[entries]
        scratch.set(keys, weights.values[entries])
        sums = [weights.values.new_zeros(0, dtype=torch.int64)]
        for left, right in zip(torch.split(rows, 1 << 14), torch.split(columns, 1 << 14), strict=True):
            pair, positions = weights.expand(right)
            places = (left * scratch.num_columns).index_select(0, pair)
            places += weights.columns.index_select(0, positions)
            shared = torch.minimum(scratch.get(places), weights.values.index_select(0, positions))
            sums.append(shared.new_zeros(len(left)).scatter_add_(0, pair, shared).long())
        scratch.clear(keys)
        return torch.cat(sums)
