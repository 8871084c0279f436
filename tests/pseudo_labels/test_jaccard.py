from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import oracles
import pytest
import steps_in_ranks
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from ccreid_cli.pseudo_labels import overlap, sparse_rows
from ccreid_cli.pseudo_labels.dense_overlap import OverlapSums
from ccreid_cli.pseudo_labels.jaccard import (
    expansion_weights,
    graph_from_pairs,
    near_pairs,
    reciprocal_weights,
)
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.overlap import OverlapSearch, join_pairs

SMALL = Path(__file__).parents[1] / "golden"


def graph_of(features: NDArray[np.float32], k1: int, k2: int, max_distance: float = 1.0) -> sparse.csr_matrix:
    table = FeatureTable(features)
    return graph_from_pairs(
        near_pairs(table, *reciprocal_weights(table, *table.nearest(k1), k1, k2), max_distance), len(table)
    )


@pytest.mark.parametrize(("k1", "k2"), [(30, 6), (20, 6), (15, 1)])
def test_reference_distances(k1: int, k2: int) -> None:
    features = np.load(SMALL / "jaccard_labels.npz")["features"]
    expected = np.load(SMALL / "jaccard_distances.npz")
    found = oracles.dense(graph_of(features, k1, k2))
    np.testing.assert_allclose(found[expected["rows"]], expected[f"dist_k1_{k1}_k2_{k2}"], atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize(("k1", "k2"), [(30, 6), (20, 6), (15, 1)])
def test_all_reference_distances(golden: Path, k1: int, k2: int) -> None:
    reference = np.load(golden / "jaccard.npz")
    found = oracles.dense(graph_of(reference["features"], k1, k2))
    np.testing.assert_allclose(found, reference[f"dist_k1_{k1}_k2_{k2}"], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    total=st.integers(1, 70),
    k1=st.integers(1, 32),
    k2=st.integers(1, 7),
    clusters=st.integers(0, 8),
    duplicates=st.integers(0, 10),
)
def test_distances_equal_the_dense_oracle(
    seed: int, total: int, k1: int, k2: int, clusters: int, duplicates: int
) -> None:
    rng = np.random.default_rng(seed)
    features = oracles.unit_rows(rng, total, 8, clusters)
    features[rng.integers(total, size=duplicates)] = features[0]
    similarities, order = oracles.ranking(features)
    half = int(np.around(k1 / 2)) + 1
    # The neighbour lists hold k1 columns, so no set reaches farther.
    exponents = 2.0 * similarities.astype(np.float64)
    expected = oracles.jaccard_distance(order[:, :k1], exponents, k1, min(half, k1), min(k2, k1))
    graph = graph_of(features, k1, k2)
    found = oracles.dense(graph)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found == found.T).all() and found.min() >= 0 and found.max() <= 1
    assert (found.diagonal() == 0).all() and graph.nnz - np.count_nonzero(graph.data) >= total  # the zeros are stored


def test_renumbering_the_images_renumbers_the_distances(rng: np.random.Generator) -> None:
    features = oracles.unit_rows(rng, 150, 16, clusters=10)
    order = rng.permutation(150)
    expected = oracles.dense(graph_of(features, 12, 4))[np.ix_(order, order)]
    np.testing.assert_allclose(oracles.dense(graph_of(features[order], 12, 4)), expected, atol=1e-7)


@pytest.mark.parametrize("max_distance", [1.0, 0.7, 0.5, 0.2])
def test_cut_graph_holds_exactly_the_near_pairs(rng: np.random.Generator, max_distance: float) -> None:
    features = oracles.unit_rows(rng, 400, 16, clusters=30)
    everything = oracles.dense(graph_of(features, 15, 4))
    cut = oracles.dense(graph_of(features, 15, 4, max_distance))
    assert 400 < (cut < 1).sum() <= (everything < 1).sum()
    np.testing.assert_array_equal(cut, np.where(everything <= np.float32(max_distance), everything, 1))


def test_same_bits_for_any_block_size(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    features = oracles.unit_rows(rng, 500, 16, clusters=30)
    expected = graph_of(features, 15, 4, 0.6)
    for block_bytes in (1 << 8, 1 << 12, 1 << 18, 1 << 26):
        monkeypatch.setattr(sparse_rows, "scratch_bytes", lambda device, block_bytes=block_bytes: block_bytes)
        found = graph_of(features, 15, 4, 0.6)
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_tiles_of_few_entries_give_the_same_bits(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    features = oracles.unit_rows(rng, 300, 16, clusters=20)
    expected = graph_of(features, 12, 4, 0.6)
    for entries in (600, 5000):
        monkeypatch.setattr(overlap, "_ENTRIES_AT_ONCE", entries)
        found = graph_of(features, 12, 4, 0.6)
        assert (found != expected).nnz == 0 and found.nnz == expected.nnz


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_find_each_pair_once(world: int, tmp_path: Path, rng: np.random.Generator) -> None:
    """Each process has only its rows; in a ring of 2 and 4 two processes meet half-way round."""
    features = oracles.unit_rows(rng, 203, 16, clusters=15)
    ranks = tiny.call_in_ranks(steps_in_ranks.pairs_in_group, world, tmp_path, features, 12, 4, 0.6)
    assert min(len(pairs.rows) for pairs in ranks) > 0.2 * max(len(pairs.rows) for pairs in ranks)
    found, expected = graph_from_pairs(join_pairs(ranks), 203), graph_of(features, 12, 4, 0.6)
    assert (found != expected).nnz == 0 and found.nnz == expected.nnz


def test_weights_of_a_row_sum_to_one(rng: np.random.Generator) -> None:
    table = FeatureTable(oracles.unit_rows(rng, 200, 16, clusters=10))
    similarities, indices = table.nearest(20, 0, 200)
    weights = expansion_weights(table, similarities, indices, half=11, unit=1 << 28)
    sums = torch.zeros(200, dtype=torch.int64).index_add_(0, weights.owners(), weights.values.long())
    torch.testing.assert_close(sums.double() / (1 << 28), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-6)


def test_dense_rows_agree_with_the_graph(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "scratch_bytes", lambda device: 1 << 10)
    table = FeatureTable(oracles.unit_rows(rng, 200, 16, clusters=10))
    similarities, indices = table.nearest(12, 0, 200)
    sums = OverlapSums(*reciprocal_weights(table, similarities, indices, 12, 1))
    found = torch.cat([sums.distances(first, last) for first, last in sums.blocks(0, 200)]).float()
    np.testing.assert_allclose(found.numpy(), oracles.dense(graph_of(table.own.numpy(), 12, 1)), atol=1e-7)


def test_duplicates_are_at_distance_zero(rng: np.random.Generator) -> None:
    features = oracles.unit_rows(rng, 60, 16)
    features[10:15] = features[10]
    graph = graph_of(features, 8, 1)
    for i in range(10, 15):
        stored = dict(zip(graph[i].indices, graph[i].data, strict=True))
        assert all(stored[j] < 1e-7 for j in range(10, 15))


def work_of(total: int) -> tuple[int, int, int]:
    """Stored weights, pair sums done, and peak bytes of the NumPy side for a set of `total` images."""
    features = oracles.unit_rows(np.random.default_rng(1), total, 24, clusters=total // 16)
    table = FeatureTable(features)
    similarities, indices = table.nearest(12, 0, total)
    weights, scale = reciprocal_weights(table, similarities, indices, 12, 4)
    num_weights = len(weights.columns)
    search = OverlapSearch(table, weights, scale, 0.5)
    tracemalloc.start()
    graph_from_pairs(search.pairs(), total)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return num_weights, search.num_candidates, peak


def test_work_and_memory_grow_with_the_number_of_images() -> None:
    """Counts, not seconds: four times the images may take some four times as much, not sixteen."""
    for small, large in zip(work_of(1000), work_of(4000), strict=True):
        assert large < 6 * small
