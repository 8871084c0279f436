from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import steps_in_ranks
import third_clusterer
import tiny
import torch
from sklearn.metrics import adjusted_rand_score

from ccreid_cli.cli.app import main
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.pseudo_labels.clustering import ClusterSettings, dbscan
from ccreid_cli.pseudo_labels.jaccard import near_pairs, reciprocal_weights
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels
from ccreid_cli.pseudo_labels.registry import CLUSTERERS

SMALL = Path(__file__).parents[1] / "golden"
CASES = [(30, 6, 0.4), (30, 6, 0.5), (30, 6, 0.6), (30, 6, 0.7), (20, 6, 0.5), (20, 6, 0.6), (15, 1, 0.6)]


@pytest.fixture
def features() -> np.ndarray:
    return np.load(SMALL / "jaccard_labels.npz")["features"]


@pytest.mark.parametrize(("k1", "k2", "eps"), CASES)
def test_reference_labels(features: np.ndarray, k1: int, k2: int, eps: float) -> None:
    expected = np.load(SMALL / "jaccard_labels.npz")[f"labels_k1_{k1}_k2_{k2}_eps_{eps}"]
    found = pseudo_labels(features, ClusterSettings(eps=eps, k1=k1, k2=k2))
    np.testing.assert_array_equal(found.labels, expected)
    assert found.num_clusters == expected.max() + 1
    assert found.num_outliers == (expected == -1).sum()
    assert set(found.seconds) == {"neighbors", "jaccard", "clustering"}


@pytest.mark.shared
@pytest.mark.slow
def test_reference_labels_at_real_scale(golden: Path) -> None:
    reference = np.load(golden / "market1501_mobilenet_v2_train.npz")
    features = reference["features"].astype(np.float32)
    table = FeatureTable(torch.from_numpy(features / np.linalg.norm(features, axis=1, keepdims=True)))
    weights, scale = reciprocal_weights(table, *table.nearest(30), 30, 6)
    pairs = near_pairs(table, weights, scale, 0.6)  # the nearer ones are among them
    for eps in (0.4, 0.5, 0.6):
        expected = reference[f"labels_k1_30_k2_6_eps_{eps}"]
        found = dbscan(pairs, len(table), eps)
        assert adjusted_rand_score(expected, found) >= 0.99
        assert abs(found.max() - expected.max()) <= 0.01 * (expected.max() + 1)


def test_scale_and_type_of_the_rows_do_not_matter(features: np.ndarray) -> None:
    settings = ClusterSettings(eps=0.5)
    expected = pseudo_labels(features, settings).labels
    for same in (features * 3.0, torch.from_numpy(features), features.astype(np.float64), np.asfortranarray(features)):
        np.testing.assert_array_equal(pseudo_labels(same, settings).labels, expected)
    half = pseudo_labels(features.astype(np.float16), settings).labels
    assert adjusted_rand_score(half, expected) > 0.95


def test_labels_do_not_depend_on_threads(features: np.ndarray) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = pseudo_labels(features, ClusterSettings(eps=0.5)).labels
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(one, pseudo_labels(features, ClusterSettings(eps=0.5)).labels)
    assert torch.get_num_threads() == threads  # the step leaves the process's setting alone


def test_renumbering_the_images_keeps_the_clusters(features: np.ndarray, rng: np.random.Generator) -> None:
    order = rng.permutation(len(features))
    expected = pseudo_labels(features, ClusterSettings(eps=0.5)).labels[order]
    found = pseudo_labels(features[order], ClusterSettings(eps=0.5)).labels
    assert adjusted_rand_score(expected, found) > 0.99


@pytest.mark.parametrize("method", ["dbscan", "infomap"])
@pytest.mark.parametrize("total", [0, 1, 3, 10])
def test_fewer_images_than_neighbours(method: str, total: int, rng: np.random.Generator) -> None:
    if method == "infomap":
        pytest.importorskip("infomap")
    rows = rng.normal(size=(total, 8)).astype(np.float32)
    found = pseudo_labels(rows, ClusterSettings(method=method))
    assert found.labels.shape == (total,) and found.labels.dtype == np.int64
    assert found.num_outliers == (found.labels == -1).sum()


@pytest.mark.parametrize("k2", [1, 6])
def test_many_copies_of_few_images(k2: int, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(3, 16)).astype(np.float32).repeat(20, axis=0)
    found = pseudo_labels(rows, ClusterSettings(k1=20, k2=k2))
    np.testing.assert_array_equal(found.labels, np.arange(3).repeat(20))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_rows_that_are_no_direction_are_named(features: np.ndarray, value: float) -> None:
    broken = features.copy()
    broken[17] = value
    with pytest.raises(DataError, match="row 17"):
        pseudo_labels(broken, ClusterSettings())


def test_infomap_separates_well_separated_clusters(rng: np.random.Generator) -> None:
    pytest.importorskip("infomap")
    ids = np.arange(120) // 12
    rows = rng.normal(size=(10, 64))[ids] + 0.3 * rng.normal(size=(120, 64))
    found = pseudo_labels(rows, ClusterSettings(method="infomap", eps=0.5, k1=15, k2=4))
    np.testing.assert_array_equal(found.labels, ids)
    assert set(found.seconds) == {"neighbors", "clustering"}


def noisy_rows(rng: np.random.Generator, noise: float) -> tuple[torch.Tensor, np.ndarray]:
    """301 unit rows around 12 centres, and which centre each is of."""
    ids = np.sort(rng.integers(0, 12, 301))
    rows = rng.normal(size=(12, 24))[ids] + noise * rng.normal(size=(301, 24))
    return torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1), ids


@pytest.mark.parametrize("method", ["dbscan", "infomap"])
def test_labels_do_not_depend_on_the_number_of_processes(method: str, tmp_path: Path, rng: np.random.Generator) -> None:
    if method == "infomap":
        pytest.importorskip("infomap")
    rows, _ = noisy_rows(rng, 1.3)
    settings = ClusterSettings(method, 0.6, 15, 4)
    alone = pseudo_labels(rows, settings)
    assert alone.num_clusters > 3 and (method == "infomap" or alone.num_outliers > 3)
    for labels in tiny.call_in_ranks(steps_in_ranks.labels_in_group, 3, tmp_path, rows, settings):
        np.testing.assert_array_equal(labels, alone.labels)


@pytest.mark.parametrize(("world", "eps"), [(2, 0.6), (3, "auto")])
def test_processes_with_their_share_alone_give_the_same_labels(
    world: int, eps: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    rows, _ = noisy_rows(rng, 1.3)
    settings = ClusterSettings("dbscan", eps, 15, 4)
    alone = pseudo_labels(rows, settings)
    for labels in tiny.call_in_ranks(steps_in_ranks.labels_of_shares, world, tmp_path, 3.0 * rows, settings):
        np.testing.assert_array_equal(labels, alone.labels)


def test_a_row_that_is_no_direction_is_named_by_its_number_among_all(tmp_path: Path, rng: np.random.Generator) -> None:
    rows, _ = noisy_rows(rng, 1.0)
    rows[217] = torch.nan
    for said in tiny.call_in_ranks(steps_in_ranks.labels_of_shares, 2, tmp_path, rows, ClusterSettings()):
        assert "1 of 301" in said and "row 217" in said


def test_a_clusterer_needs_one_row(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, ids = noisy_rows(rng, 0.2)
    settings = ClusterSettings("third", 0.7, 40)
    with pytest.raises(UsageError, match='there is no clusterer "third"'):
        pseudo_labels(rows, settings)
    monkeypatch.setitem(CLUSTERERS, "third", third_clusterer.ROW)
    alone = pseudo_labels(rows, settings)
    np.testing.assert_array_equal(alone.labels, ids)
    assert set(alone.seconds) == {"neighbors", "components"}
    for labels in tiny.call_in_ranks(steps_in_ranks.labels_in_group, 2, tmp_path, rows, settings):
        np.testing.assert_array_equal(labels, ids)


def test_a_run_takes_another_clusterer(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLUSTERERS, "third", third_clusterer.ROW)
    command = tiny.command(tiny_data, tmp_path, cluster="third", eps=0.999, epochs=1, iters=1)
    monkeypatch.setattr(sys, "argv", ["ccreid", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    line = tiny.run_of(tmp_path).read_metrics()[0]
    assert line["num_clusters"] > 1 and "components" in line["seconds"]


def test_rows_that_are_no_direction_are_named_by_every_process(tmp_path: Path, rng: np.random.Generator) -> None:
    rows, _ = noisy_rows(rng, 1.0)
    rows[17] = torch.nan
    for said in tiny.call_in_ranks(steps_in_ranks.labels_in_group, 2, tmp_path, rows, ClusterSettings()):
        assert "row 17" in said
