"""k-reciprocal Jaccard distance between all images, sparse: memory grows with N·k, never with N².

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017 (sections 3.2 to 3.4), as
Cluster Contrast uses it. Three steps, each of which works on a range of rows, so that several processes can share them:

1. `expansion_weights`: the expanded k-reciprocal set of each image, with weights that sum to one;
2. `average_weights`: the mean of these weights over the first k2 neighbours;
3. `overlap.OverlapSearch.pairs`: 1 - m/(2 - m) with m = Σ min(V_i, V_j), for the pairs i < j that are close enough.

Steps 2 and 3 need the rows of all processes from the step before; `reciprocal_weights` does 1 and 2, `near_pairs` all
three, in one process or many. Weights are whole numbers of 1/scale (fixed point), so that every sum is exact, whatever
its order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from ccreid_cli.machine.device import one_thread
from ccreid_cli.machine.distributed import Group
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.overlap import OverlapSearch, Pairs
from ccreid_cli.pseudo_labels.sparse_rows import Scratch, SparseRows, concatenate, from_sorted_keys, gather

Affinity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_UNIT = 1 << 30  # the largest sum of a row: leaves int32 room for rounding


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
    table: FeatureTable,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    start: int,
    stop: int,
    *,
    half: int,
    unit: int,
    affinity: Affinity = cosine_affinity,
) -> SparseRows:
    """Weights over the expanded k-reciprocal set of each of the rows [start, stop) (Zhong et al., equations 3 to 7).

    A member c of the k-reciprocal set R brings its own half-size set H(c) in when |H(c) ∩ R| > 2/3·|H(c)|.

    Args:
        table: All rows.
        similarities: Of the neighbours of the rows [start, stop), (stop - start, k1).
        indices: Neighbours of all rows, (N, k1) int32, each row itself first.
        start: First row.
        stop: One past the last row.
        half: Columns that the half-size sets are taken from, the row itself included.
        unit: The whole number that a weight of one is written as.
        affinity: Gives the exponents of the weights from row numbers (P,) and similarities (P,) float64.

    Returns:
        Weights of the rows [start, stop), (stop - start) × N, each row summing to `unit` up to rounding.
    """
    total = len(indices)
    mask = reciprocal_mask(indices, start, stop)
    near = indices[:, :half]
    near_mask = reciprocal_mask(near, 0, total)
    scratch = Scratch(total, indices.device)
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
    table: FeatureTable,
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


def average_weights(weights: SparseRows, indices: torch.Tensor, k2: int, start: int, stop: int) -> SparseRows:
    """Sum of the weights of the first k2 neighbours of the rows [start, stop) (local query expansion, equation 10).

    Args:
        weights: Weights of all rows, N × N, in whole numbers of 1/unit.
        indices: Neighbours of all rows, (N, k1) int32.
        k2: How many neighbours, the row itself included; at most k1 are used.
        start: First row.
        stop: One past the last row.

    Returns:
        Weights of the rows [start, stop), in whole numbers of 1/(k2·unit).
    """
    total = len(indices)
    near = indices[:, :k2]
    scratch = Scratch(total, weights.device)
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


def reciprocal_weights(
    table: FeatureTable,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    k1: int,
    k2: int,
    group: Group,
    affinity: Affinity = cosine_affinity,
) -> tuple[SparseRows, int]:
    """Averaged weights of all rows, each process computing those of its share.

    Args:
        table: All rows.
        similarities: Of this process's rows and their neighbours, (n, k).
        indices: Neighbours of all rows, (N, k) int32, each row itself first.
        k1: What the half-size sets are half of.
        k2: Neighbours whose weights are averaged, the row itself included; 1 leaves the weights alone.
        group: The processes that share the work.
        affinity: Exponents of the weights, as in `expansion_weights`.

    Returns:
        Weights, N × N, and the whole number that stands for a weight of one.
    """
    start, stop = group.bounds(len(table))
    unit = weight_unit(k2)
    own = expansion_weights(table, similarities, indices, start, stop, half=half_size(k1), unit=unit, affinity=affinity)
    weights = gather(own, group)
    if k2 > 1:
        weights = gather(average_weights(weights, indices, k2, start, stop), group)
    return weights, unit * min(k2, indices.shape[1])


def near_pairs(
    table: FeatureTable,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    k1: int,
    k2: int,
    group: Group,
    max_distance: float = 1.0,
) -> Pairs:
    """All pairs whose k-reciprocal Jaccard distance is small enough, each process searching its share of the rows.

    Args:
        table: All rows.
        similarities: Of this process's rows and their neighbours, (n, k1), or (n, N) with fewer rows.
        indices: Neighbours of all rows, (N, k1) int32, each row itself first.
        k1: Neighbours that the reciprocal sets are taken from, the row itself included.
        k2: Neighbours whose weights are averaged, the row itself included; 1 leaves the weights alone.
        group: The processes that share the work.
        max_distance: Pairs farther apart are left out; 1 leaves out only pairs at distance 1.

    Returns:
        The pairs of all rows, the same in every process.
    """
    with one_thread():
        weights, scale = reciprocal_weights(table, similarities, indices, k1, k2, group)
        search = OverlapSearch(weights, scale, max_distance)
        own = search.pairs(*_share_of_work(search.work_before, group))
    return Pairs(*(group.gather_array(part) for part in (own.rows, own.columns, own.distances)))


def _share_of_work(work_before: NDArray[np.int64], group: Group) -> tuple[int, int]:
    """Rows [start, stop) of this process, cut so that all have as many candidates: early rows have more."""
    goals = work_before[-1] * np.arange(1, group.world) // group.world
    cuts = [0, *np.searchsorted(work_before, goals).tolist(), len(work_before) - 1]
    return cuts[group.rank], cuts[group.rank + 1]


def graph_from_pairs(pairs: Pairs, total: int) -> sparse.csr_matrix:
    """The symmetric graph of all pairs, (total, total) float32 with ascending columns.

    The diagonal and pairs at distance 0 are stored, as zeros.
    """
    diagonal = np.arange(total, dtype=np.int32)
    both = (
        np.concatenate([pairs.rows, pairs.columns, diagonal]),
        np.concatenate([pairs.columns, pairs.rows, diagonal]),
    )
    values = np.concatenate([pairs.distances, pairs.distances, np.zeros(total, dtype=np.float32)])
    graph = sparse.csr_matrix((values, both), shape=(total, total))
    graph.sort_indices()
    return graph
