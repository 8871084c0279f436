from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.cluster import DBSCAN

from ccreid_cli.pseudo_labels.density import dbscan


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
        np.testing.assert_array_equal(dbscan(graph, eps, min_samples, counts), expected)


def test_a_border_image_joins_the_first_cluster_near_it() -> None:
    """Image 2 is near a core of both groups and no core itself."""
    near = [(0, 1), (0, 3), (1, 3), (4, 5), (4, 6), (5, 6), (2, 0), (2, 4)]
    rows, columns = np.array(near + [pair[::-1] for pair in near]).T
    graph = sparse.csr_matrix((np.full(16, 0.1, dtype=np.float32), (rows, columns)), shape=(7, 7))
    np.testing.assert_array_equal(dbscan(graph, 0.5, 4)[[0, 2, 4]], [0, 0, 1])


def test_no_images() -> None:
    assert dbscan(sparse.csr_matrix((0, 0), dtype=np.float32), 0.5).shape == (0,)


def test_stored_zeros_are_neighbours() -> None:
    """Five copies of one image are a cluster, though all their distances are zero."""
    rows, columns = np.nonzero(np.ones((5, 5)))
    graph = sparse.csr_matrix((np.zeros(25, dtype=np.float32), (rows, columns)), shape=(7, 7))
    np.testing.assert_array_equal(dbscan(graph, 0.5), [0, 0, 0, 0, 0, -1, -1])


def test_min_samples_counts_the_image_itself() -> None:
    rows, columns = np.nonzero(np.ones((3, 3)))
    graph = sparse.csr_matrix((np.full(9, 0.1, dtype=np.float32), (rows, columns)), shape=(3, 3))
    assert (dbscan(graph, 0.5, min_samples=3) == 0).all()
    assert (dbscan(graph, 0.5, min_samples=4) == -1).all()


def test_graph_is_left_as_it_was(rng: np.random.Generator) -> None:
    graph, _ = random_graph(rng, 50)
    before = graph.copy()
    dbscan(graph, 0.1)
    assert (graph != before).nnz == 0 and (graph.indices == before.indices).all()
