"""Jaccard distances of some rows to all rows, dense: 1 - m/(2 - m) with m = Σ min(V_i, V_j)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ccreid_cli.pseudo_labels.sparse_rows import SparseRows, expand_ranges, offsets_of, scratch_bytes


def distance_of(sums: torch.Tensor, scale: int) -> torch.Tensor:
    """Jaccard distance 1 - m/(2 - m) in double precision, from overlaps m in whole numbers of 1/scale."""
    share = sums.double() / scale
    return (1.0 - share / (2.0 - share)).clamp_(0.0, 1.0)


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
