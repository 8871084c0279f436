"""k-reciprocal Jaccard distance between all images, sparse: memory grows with N·k, never with N².

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017 (sections 3.2 to 3.4), as
Cluster Contrast uses it. Three steps, in each of which a process works on its share of the rows:

1. `expansion_weights`: the expanded k-reciprocal set of each image, with weights that sum to one;
2. `average_weights`: the mean of these weights over the first k2 neighbours;
3. `overlap.OverlapSearch.pairs`: 1 - m/(2 - m) with m = Σ min(V_i, V_j), for the pairs i < j that are close enough.

What they need of the rows of other processes they ask for; `reciprocal_weights` does 1 and 2, `near_pairs` 3.
Weights are whole numbers of 1/scale (fixed point), so that every sum is exact, whatever its order.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse

from ccreid_cli.machine.device import one_thread
from ccreid_cli.machine.ring import Requests, exchange_counts
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.overlap import OverlapSearch, Pairs
from ccreid_cli.pseudo_labels.sparse_rows import Scratch, SparseRows, concatenate, distinct_numbers, from_sorted_keys

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


def reciprocal_neighbors(table: FeatureTable, indices: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which neighbours of this process's rows have the row among their own neighbours.

    Args:
        table: All rows.
        indices: Neighbours of this process's rows, (n, k) int32.
        half: How many of the first neighbours make up the half-size sets.

    Returns:
        (n, k) bool among all k neighbours, and (n, half) bool among the first `half`, of both.
    """
    near = indices[:, :half]
    whole, first = _edges_of_others(table, indices, half)
    return _mutual(indices, table.start, whole, len(table)), _mutual(near, table.start, first, len(table))


def _edges_of_others(table: FeatureTable, indices: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Learn which rows of other processes have rows of this one among their neighbours, and among the first `half`.

    Returns:
        Ascending keys row·N + row of another process, (P,) int64 each; rows are counted from this process's first.
    """
    group, total = table.group, len(table)
    keys = indices.new_empty(0, dtype=torch.int64)
    if group.world == 1:
        return keys, keys
    cuts = torch.tensor([group.bounds(total, rank)[1] for rank in range(group.world)], device=indices.device)
    owners = torch.searchsorted(cuts, indices.flatten(), right=True)
    order = owners.argsort(stable=True)
    order = order[owners[order] != group.rank]
    rows, places = order // indices.shape[1], order % indices.shape[1]
    sources = (rows + table.start).to(torch.int32)
    edges = torch.stack([indices.flatten()[order], torch.where(places < half, sources, ~sources)], dim=1)
    going = torch.bincount(owners[order], minlength=group.world).tolist()
    edges = group.exchange_rows(edges, going, exchange_counts(group, going)).long()
    is_first = edges[:, 1] >= 0
    keys = (edges[:, 0] - table.start) * total + torch.where(is_first, edges[:, 1], ~edges[:, 1])
    return keys.sort()[0], keys[is_first].sort()[0]


def _mutual(indices: torch.Tensor, start: int, keys: torch.Tensor, total: int) -> torch.Tensor:
    """Which neighbours (n, k) have the row among theirs: own rows by their lists, those of others by their `keys`."""
    num_rows, k = indices.shape
    mask = torch.empty((num_rows, k), dtype=torch.bool, device=indices.device)
    step = max(1, (1 << 20 if indices.device.type == "cpu" else 1 << 26) // max(1, k * k))
    for first in range(0, num_rows, step):
        block = indices[first : first + step]
        rows = torch.arange(first, first + len(block), device=indices.device)
        places = block.long() - start
        here = (places >= 0) & (places < num_rows)
        theirs = indices.index_select(0, places.where(here, 0).flatten()).view(*block.shape, k)
        mask[first : first + step] = (theirs == (rows + start)[:, None, None]).any(2) & here
        if len(keys):
            wanted = rows[:, None] * total + block
            found = keys[torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)] == wanted
            mask[first : first + step] |= found & ~here
    return mask


def expansion_weights(
    table: FeatureTable,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    *,
    half: int,
    unit: int,
    affinity: Affinity = cosine_affinity,
) -> SparseRows:
    """Weights over the expanded k-reciprocal set of each of this process's rows (Zhong et al., equations 3 to 7).

    A member c of the k-reciprocal set R brings its own half-size set H(c) in when |H(c) ∩ R| > 2/3·|H(c)|.

    Args:
        table: All rows.
        similarities: Of the neighbours of this process's rows, (n, k1).
        indices: Neighbours of these rows, (n, k1) int32, each row itself first.
        half: Columns that the half-size sets are taken from, the row itself included.
        unit: The whole number that a weight of one is written as.
        affinity: Gives the exponents of the weights from row numbers (P,) and similarities (P,) float64.

    Returns:
        Weights of this process's rows, n × N, each row summing to `unit` up to rounding.
    """
    total = len(table)
    mask, near_mask = reciprocal_neighbors(table, indices, half)
    scratch = Scratch(total, indices.device)
    new_rows, new_columns = _new_members(table, indices, mask, near_mask, scratch)
    new_similarities = table.similarities(new_rows, new_columns)
    blocks = list(scratch.row_blocks(0, len(indices)))
    cuts = torch.tensor([0, *(last for _, last in blocks)], dtype=new_rows.dtype, device=new_rows.device)
    edges = torch.searchsorted(new_rows, cuts).tolist()  # of one type with the rows, which are copied otherwise

    def weigh(first: int, last: int, begin: int, end: int) -> SparseRows:
        rows, places = torch.nonzero(mask[first:last], as_tuple=True)
        old_keys = rows * total + indices[first:last][rows, places]
        new_keys = (new_rows[begin:end] - first).long() * total + new_columns[begin:end]
        keys, order = torch.cat([old_keys, new_keys]).sort()
        cosines = torch.cat([similarities[first:last][rows, places], new_similarities[begin:end]])[order]
        rows = torch.div(keys, total, rounding_mode="floor")
        weights = affinity(rows + (first + table.start), cosines.double()).exp()
        sums = weights.new_zeros(last - first).index_add_(0, rows, weights)
        return from_sorted_keys(keys, (weights / sums[rows] * unit).round(), last - first, total)

    return concatenate(weigh(*rows, *ends) for rows, ends in zip(blocks, pairwise(edges), strict=True))


def _new_members(
    table: FeatureTable, indices: torch.Tensor, mask: torch.Tensor, near_mask: torch.Tensor, scratch: Scratch
) -> tuple[torch.Tensor, torch.Tensor]:
    """What expansion adds to the k-reciprocal sets: rows, counted from this process's first, and members, (P,)."""
    total = len(table)
    near = indices[:, : near_mask.shape[1]].masked_fill(~near_mask, -1)
    members = Requests(table.group, distinct_numbers(indices[mask], total), total)
    sets = members.dense(near)
    found_rows, found_columns = [], []
    for first, last in scratch.row_blocks(0, len(indices)):
        rows, places = torch.nonzero(mask[first:last], as_tuple=True)
        own = indices[first:last][rows, places].long()
        own_keys = rows * total + own
        scratch.set(own_keys, 1)
        candidates = sets.index_select(0, members.place[own])
        is_candidate = candidates >= 0
        candidate_keys = (rows * total)[:, None] + candidates.clamp_min(0)
        shared = (scratch.get(candidate_keys) == 1) & is_candidate
        joins = 3 * shared.sum(1) > 2 * is_candidate.sum(1)
        new_keys = candidate_keys[joins[:, None] & is_candidate & ~shared]
        scratch.clear(own_keys)
        new_keys = scratch.distinct(new_keys).sort()[0]
        rows = torch.div(new_keys, total, rounding_mode="floor")
        found_columns.append((new_keys - rows * total).to(torch.int32))
        found_rows.append((rows + first).to(torch.int32))
    return torch.cat(found_rows), torch.cat(found_columns)


def average_weights(table: FeatureTable, weights: SparseRows, indices: torch.Tensor, k2: int) -> SparseRows:
    """Sum of the weights of the first k2 neighbours of this process's rows (local query expansion, equation 10).

    Args:
        table: All rows.
        weights: Weights of this process's rows, n × N, in whole numbers of 1/unit.
        indices: Neighbours of these rows, (n, k1) int32.
        k2: How many neighbours, the row itself included; at most k1 are used.

    Returns:
        Weights of this process's rows, in whole numbers of 1/(k2·unit).
    """
    total, near = len(table), indices[:, :k2]
    needed = Requests(table.group, distinct_numbers(near, total), total)
    lengths, (columns, values) = needed.ragged(weights.offsets.diff(), [weights.columns, weights.values])
    theirs = SparseRows(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), columns, values)
    scratch = Scratch(total, weights.device)

    def add_up(first: int, last: int) -> SparseRows:
        owners, positions = theirs.expand(needed.place[near[first:last].reshape(-1).long()].long())
        owners = torch.div(owners, near.shape[1], rounding_mode="floor")
        keys = owners.mul_(total).add_(theirs.columns.index_select(0, positions))
        distinct = scratch.distinct(keys).sort()[0]
        scratch.add(keys, theirs.values.index_select(0, positions))
        found = from_sorted_keys(distinct, scratch.get(distinct), last - first, total)
        scratch.clear(distinct)
        return found

    return concatenate(add_up(*rows) for rows in scratch.row_blocks(0, len(indices)))


def reciprocal_weights(
    table: FeatureTable,
    similarities: torch.Tensor,
    indices: torch.Tensor,
    k1: int,
    k2: int,
    affinity: Affinity = cosine_affinity,
) -> tuple[SparseRows, int]:
    """Averaged weights of this process's rows.

    Args:
        table: All rows.
        similarities: Of this process's rows and their neighbours, (n, k).
        indices: The neighbours, (n, k) int32, each row itself first.
        k1: What the half-size sets are half of.
        k2: Neighbours whose weights are averaged, the row itself included; 1 leaves the weights alone.
        affinity: Exponents of the weights, as in `expansion_weights`.

    Returns:
        Weights, n × N, and the whole number that stands for a weight of one.
    """
    unit = weight_unit(k2)
    with one_thread():
        weights = expansion_weights(table, similarities, indices, half=half_size(k1), unit=unit, affinity=affinity)
        if k2 > 1:
            weights = average_weights(table, weights, indices, k2)
    return weights, unit * min(k2, indices.shape[1])


def near_pairs(table: FeatureTable, weights: SparseRows, scale: int, max_distance: float = 1.0) -> Pairs:
    """All pairs whose k-reciprocal Jaccard distance is small enough.

    Args:
        table: All rows.
        weights: Of this process's rows, as `reciprocal_weights` gives them; they are put into another order.
        scale: The whole number that stands for a weight of one.
        max_distance: Pairs farther apart are left out; 1 leaves out only pairs at distance 1.

    Returns:
        Each pair in one of the processes, in no fixed order.
    """
    with one_thread():
        return OverlapSearch(table, weights, scale, max_distance).pairs()


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
