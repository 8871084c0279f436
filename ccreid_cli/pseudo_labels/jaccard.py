"""k-reciprocal Jaccard distance between all images, sparse: memory grows with N·k, never with N².

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017 (sections 3.2 to 3.4), as
Cluster Contrast uses it. Three steps, each of which works on a range of rows, so that several processes can share them:

1. `expansion_weights`: the expanded k-reciprocal set of each image, with weights that sum to one;
2. `average_weights`: the mean of these weights over the first k2 neighbours;
3. `overlap.OverlapSearch.pairs`: 1 - m/(2 - m) with m = Σ min(V_i, V_j), for the pairs i < j that are close enough.

Steps 2 and 3 need the rows of all processes from the step before. Weights are whole numbers of 1/scale (fixed point),
so that every sum is exact, whatever its order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from ccreid_cli.machine.device import one_thread
from ccreid_cli.pseudo_labels.neighbors import FeatureArray, FeatureTable
from ccreid_cli.pseudo_labels.overlap import OverlapSearch, Pairs, join_pairs
from ccreid_cli.pseudo_labels.sparse_rows import Scratch, SparseRows, concatenate, from_sorted_keys, scratch_bytes

Affinity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_UNIT = 1 << 30  # the largest sum of a row: leaves int32 room for rounding


class PairSimilarity(Protocol):
    """Anything that knows the similarity of pairs of rows, as `FeatureTable` does."""

    def similarities(self, owners: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Similarity of each pair, (P,) float32; owners ascend."""


def cosine_affinity(rows: torch.Tensor, similarities: torch.Tensor) -> torch.Tensor:
    """Exponent of the weights for unit rows: 2·cos, which is -(2 - 2·cos) up to a constant of the row."""
    return 2.0 * similarities


def half_size(k1: int) -> int:
    """How many columns (the image itself included) the half-size reciprocal sets are taken from."""
    return round(k1 / 2) + 1


def weight_unit(k2: int) -> int:
    """The whole number that stands for a weight of one before averaging over k2 rows; k2 times as much does after."""
    return _UNIT // max(1, k2)


def reciprocal_mask(indices: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Which neighbours of the rows [start, stop) have the row among their own neighbours.

    Args:
        indices: Neighbours of all rows, (N, k) int32, all k of them counted.
        start: First row.
        stop: One past the last row.

    Returns:
        (stop - start, k) bool.
    """
    k = indices.shape[1]
    mask = torch.empty((stop - start, k), dtype=torch.bool, device=indices.device)
    step = max(1, (1 << 20 if indices.device.type == "cpu" else 1 << 26) // max(1, k * k))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        rows = torch.arange(first, last, dtype=torch.int32, device=indices.device)
        theirs = indices.index_select(0, indices[first:last].reshape(-1)).view(last - first, k, k)
        mask[first - start : last - start] = (theirs == rows[:, None, None]).any(2)
    return mask


def expansion_weights(
    table: PairSimilarity,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    start: int,
    stop: int,
    *,
    half: int,
    unit: int,
    affinity: Affinity = cosine_affinity,
    block_bytes: int | None = None,
) -> SparseRows:
    """Weights over the expanded k-reciprocal set of each of the rows [start, stop) (Zhong et al., equations 3 to 7).

    A member c of the k-reciprocal set R brings its own half-size set H(c) in when |H(c) ∩ R| > 2/3·|H(c)|.

    Args:
        table: Similarity of pairs that are not neighbours.
        similarities: Of the neighbours of the rows [start, stop), (stop - start, k1).
        indices: Neighbours of all rows, (N, k1) int32, each row itself first.
        start: First row.
        stop: One past the last row.
        half: Columns that the half-size sets are taken from, the row itself included.
        unit: The whole number that a weight of one is written as.
        affinity: Gives the exponents of the weights from row numbers (P,) and similarities (P,) float64.
        block_bytes: Memory of the work table; None takes a size that suits the device.

    Returns:
        Weights of the rows [start, stop), (stop - start) × N, each row summing to `unit` up to rounding.
    """
    total = len(indices)
    mask = reciprocal_mask(indices, start, stop)
    near = indices[:, :half]
    near_mask = reciprocal_mask(near, 0, total)
    scratch = Scratch(total, indices.device, block_bytes or scratch_bytes(indices.device))
    parts = []
    for first, last in scratch.row_blocks(start, stop):
        block = slice(first - start, last - start)
        keys, cosines = _expanded_set(table, similarities[block], mask[block], indices, near, near_mask, first, scratch)
        rows = torch.div(keys, total, rounding_mode="floor")
        weights = affinity(rows + first, cosines.double()).exp()
        sums = weights.new_zeros(last - first).index_add_(0, rows, weights)
        values = (weights / sums[rows] * unit).round()
        parts.append(from_sorted_keys(keys, values, last - first, total))
    return concatenate(parts)


def _expanded_set(
    table: PairSimilarity,
    similarities: torch.Tensor,
    mask: torch.Tensor,
    indices: torch.Tensor,
    near: torch.Tensor,
    near_mask: torch.Tensor,
    first: int,
    scratch: Scratch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending keys (row - first)·N + member of the expanded sets of a block of rows, and the similarity of each."""
    total = len(indices)
    rows, places = torch.nonzero(mask, as_tuple=True)
    members = indices[rows + first, places].long()
    own_keys = rows * total + members
    scratch.set(own_keys, 1)
    candidate_keys = rows[:, None] * total + near.index_select(0, members)
    candidate_mask = near_mask.index_select(0, members)
    shared = (scratch.get(candidate_keys) == 1) & candidate_mask
    joins = 3 * shared.sum(1) > 2 * candidate_mask.sum(1)
    new_keys = candidate_keys[joins[:, None] & candidate_mask & ~shared]
    scratch.clear(own_keys)
    new_keys = scratch.distinct(new_keys).sort()[0]
    new_rows = torch.div(new_keys, total, rounding_mode="floor")
    new_similarities = table.similarities(new_rows + first, new_keys - new_rows * total)
    keys, order = torch.cat([own_keys, new_keys]).sort()
    return keys, torch.cat([similarities[rows, places], new_similarities])[order]


def average_weights(
    weights: SparseRows, indices: torch.Tensor, k2: int, start: int, stop: int, *, block_bytes: int | None = None
) -> SparseRows:
    """Sum of the weights of the first k2 neighbours of the rows [start, stop) (local query expansion, equation 10).

    Args:
        weights: Weights of all rows, N × N, in whole numbers of 1/unit.
        indices: Neighbours of all rows, (N, k1) int32.
        k2: How many neighbours, the row itself included; at most k1 are used.
        start: First row.
        stop: One past the last row.
        block_bytes: Memory of the work table; None takes a size that suits the device.

    Returns:
        Weights of the rows [start, stop), in whole numbers of 1/(k2·unit).
    """
    total = len(indices)
    near = indices[:, :k2]
    scratch = Scratch(total, weights.device, block_bytes or scratch_bytes(weights.device))
    parts = []
    for first, last in scratch.row_blocks(start, stop):
        owners, positions = weights.expand(near[first:last].reshape(-1).long())
        owners = torch.div(owners, near.shape[1], rounding_mode="floor")
        keys = owners.mul_(total).add_(weights.columns.index_select(0, positions))
        distinct = scratch.distinct(keys).sort()[0]
        scratch.add(keys, weights.values.index_select(0, positions))
        parts.append(from_sorted_keys(distinct, scratch.get(distinct), last - first, total))
        scratch.clear(distinct)
    return concatenate(parts)


def jaccard_graph(
    similarities: NDArray[np.float32] | torch.Tensor,
    indices: NDArray[np.int32] | torch.Tensor,
    k1: int,
    k2: int,
    *,
    features: FeatureArray | FeatureTable,
    max_distance: float = 1.0,
    block_bytes: int | None = None,
) -> sparse.csr_matrix:
    """k-reciprocal Jaccard distances of all pairs that are close enough.

    Args:
        similarities: Of the neighbours, (N, k) with k at least k1 (or N), each row itself first.
        indices: The neighbours, (N, k).
        k1: Neighbours that the reciprocal sets are taken from, the row itself included.
        k2: Neighbours whose weights are averaged, the row itself included; 1 leaves the weights alone.
        features: Unit rows, (N, D), or a table of them.
        max_distance: Pairs farther apart are left out; 1 leaves out only pairs at distance 1.
        block_bytes: Memory of the work tables; None takes a size that suits the device.

    Returns:
        (N, N) symmetric float32 with ascending columns. The diagonal and pairs at distance 0 are stored, as zeros.
    """
    table = features if isinstance(features, FeatureTable) else FeatureTable(features)
    near = torch.as_tensor(indices)[:, :k1].to(table.device, torch.int32).contiguous()
    cosines = torch.as_tensor(similarities)[:, :k1].to(table.device)
    total, unit = len(near), weight_unit(k2)
    with one_thread():
        weights = expansion_weights(
            table, cosines, near, 0, total, half=half_size(k1), unit=unit, block_bytes=block_bytes
        )
        if k2 > 1:
            weights = average_weights(weights, near, k2, 0, total, block_bytes=block_bytes)
        scale = unit * min(max(1, k2), max(1, near.shape[1]))
        search = OverlapSearch(weights, scale, max_distance, block_bytes=block_bytes)
        return graph_from_pairs([search.pairs(0, total)], total)


def graph_from_pairs(parts: Sequence[Pairs], total: int) -> sparse.csr_matrix:
    """The symmetric graph of all row ranges' pairs, (total, total), with a diagonal of stored zeros."""
    pairs = join_pairs(parts)
    diagonal = np.arange(total, dtype=np.int32)
    both = (
        np.concatenate([pairs.rows, pairs.columns, diagonal]),
        np.concatenate([pairs.columns, pairs.rows, diagonal]),
    )
    values = np.concatenate([pairs.distances, pairs.distances, np.zeros(total, dtype=np.float32)])
    graph = sparse.csr_matrix((values, both), shape=(total, total))
    graph.sort_indices()
    return graph
