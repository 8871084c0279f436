from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import sparse
from sklearn.cluster import DBSCAN

from ccreid_cli.core.errors import UsageError
from ccreid_cli.pseudo_labels.clustering import dbscan, infomap, label_quality


def random_graph(rng: np.random.Generator, total: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    places = rng.uniform(size=(total, 2))
    distances = np.minimum(np.linalg.norm(places[:, None] - places, axis=2), 1).astype(np.float32)
    rows, columns = np.nonzero(distances < 0.4)
    return sparse.csr_matrix((distances[rows, columns], (rows, columns)), shape=(total, total)), distances


@pytest.mark.parametrize("eps", [0.03, 0.035, 0.04])
def test_sparse_and_dense_labels_are_equal(rng: np.random.Generator, eps: float) -> None:
    graph, distances = random_graph(rng, 300)
    expected = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(distances).labels_
    assert expected.max() > 2
    np.testing.assert_array_equal(dbscan(graph, eps), expected)


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


def blocks_of(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Neighbour lists of groups that are alike inside (0.9) and unlike outside (0.1)."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    similarities = np.where(groups[:, None] == groups, 0.9, 0.1).astype(np.float32)
    np.fill_diagonal(similarities, 1)
    indices = np.argsort(-similarities, axis=1, kind="stable").astype(np.int32)
    return np.take_along_axis(similarities, indices, 1), indices


def test_infomap_keeps_groups_of_more_than_the_limit() -> None:
    pytest.importorskip("infomap")
    similarities, indices = blocks_of([4, 6, 1, 5])
    labels = infomap(similarities, indices, 0.5, 4)
    np.testing.assert_array_equal(labels, [-1] * 4 + [0] * 6 + [-1] + [1] * 5)
    np.testing.assert_array_equal(infomap(similarities, indices, 0.5, 4), labels)


def test_infomap_without_links_leaves_everybody_out() -> None:
    pytest.importorskip("infomap")
    similarities, indices = blocks_of([3, 3])
    assert (infomap(similarities, indices, 0.95, 1) == -1).all()


def test_missing_infomap_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "infomap", None)
    with pytest.raises(UsageError) as caught:
        infomap(*blocks_of([3, 3]), 0.5, 4)
    assert "pip install 'ccreid[infomap]'" in (caught.value.hint or "")


def test_quality_of_perfect_labels() -> None:
    ids = np.array([7, 7, 7, 9, 9, 4])
    assert label_quality(np.array([1, 1, 1, 0, 0, 2]), ids) == pytest.approx({"ari": 1, "nmi": 1, "purity": 1})


def test_quality_counts_outliers_as_clusters_of_their_own() -> None:
    ids = np.array([0, 0, 0, 0, 1, 1])
    quality = label_quality(np.array([0, 0, 0, 0, -1, -1]), ids)
    assert quality["purity"] == 1 and quality["ari"] < 1 and quality["nmi"] < 1


def test_quality_of_a_mixed_cluster() -> None:
    assert label_quality(np.zeros(4, dtype=np.int64), np.array([0, 0, 0, 1]))["purity"] == pytest.approx(0.75)


def test_quality_leaves_unknown_identities_out() -> None:
    labels, ids = np.array([0, 0, 1, 1]), np.array([3, 3, -1, -1])
    assert label_quality(labels, ids) == label_quality(labels[:2], ids[:2])
    assert label_quality(labels, np.full(4, -1)) == {}
    assert label_quality(np.full(2, -1), ids[:2])["purity"] == 0
