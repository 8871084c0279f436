from __future__ import annotations

from pathlib import Path

import numpy as np
import steps_in_ranks
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import pairs_of
from scipy import sparse
from sklearn.cluster import DBSCAN

from ccreid_cli.pseudo_labels.density import dbscan
from ccreid_cli.pseudo_labels.overlap import Pairs


def random_graph(rng: np.random.Generator, total: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    places = rng.uniform(size=(total, 2))
    distances = np.minimum(np.linalg.norm(places[:, None] - places, axis=2), 1).astype(np.float32)
    rows, columns = np.nonzero(distances < 0.4)
    return sparse.csr_matrix((distances[rows, columns], (rows, columns)), shape=(total, total)), distances


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), total=st.integers(1, 150), eps=st.floats(0.01, 0.2), min_samples=st.integers(1, 9))
def test_labels_are_those_of_scikit_learn(seed: int, total: int, eps: float, min_samples: int) -> None:
    rng = np.random.default_rng(seed)
    graph, distances = random_graph(rng, total)
    for counts in (None, rng.integers(1, 4, total)):
        clusterer = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
        expected = clusterer.fit(distances, sample_weight=counts).labels_
        np.testing.assert_array_equal(dbscan(pairs_of(graph), total, eps, min_samples, counts), expected)


def test_a_border_image_joins_the_first_cluster_near_it() -> None:
    """Image 2 is near a core of both groups and no core itself."""
    near = [(0, 1), (0, 3), (1, 3), (4, 5), (4, 6), (5, 6), (2, 0), (2, 4)]
    rows, columns = np.array(near + [pair[::-1] for pair in near]).T
    graph = sparse.csr_matrix((np.full(16, 0.1, dtype=np.float32), (rows, columns)), shape=(7, 7))
    np.testing.assert_array_equal(dbscan(pairs_of(graph), 7, 0.5, 4)[[0, 2, 4]], [0, 0, 1])


def test_no_images() -> None:
    assert dbscan(pairs_of(sparse.csr_matrix((0, 0), dtype=np.float32)), 0, 0.5).shape == (0,)


def test_stored_zeros_are_neighbours() -> None:
    """Five copies of one image are a cluster, though all their distances are zero."""
    rows, columns = np.nonzero(np.ones((5, 5)))
    graph = sparse.csr_matrix((np.zeros(25, dtype=np.float32), (rows, columns)), shape=(7, 7))
    np.testing.assert_array_equal(dbscan(pairs_of(graph), 7, 0.5), [0, 0, 0, 0, 0, -1, -1])


def test_min_samples_counts_the_image_itself() -> None:
    rows, columns = np.nonzero(np.ones((3, 3)))
    graph = sparse.csr_matrix((np.full(9, 0.1, dtype=np.float32), (rows, columns)), shape=(3, 3))
    assert (dbscan(pairs_of(graph), 3, 0.5, min_samples=3) == 0).all()
    assert (dbscan(pairs_of(graph), 3, 0.5, min_samples=4) == -1).all()


def test_chains_over_several_processes_are_one_cluster(tmp_path: Path) -> None:
    """Links of a long chain, and of a few short ones, lie in three processes at random."""
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(np.arange(99) % 40 != 39).astype(np.int32)
    pairs = Pairs(rows, rows + 1, np.full(len(rows), 0.1, dtype=np.float32))
    alone = dbscan(pairs, 100, 0.5, 2)
    assert set(alone) == {0, 1, 2}
    owners = rng.integers(0, 3, len(rows))
    for labels in tiny.call_in_ranks(steps_in_ranks.clusters_in_group, 3, tmp_path, pairs, owners, 100):
        np.testing.assert_array_equal(labels, alone)
