from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import steps_in_ranks
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import dense, pairs_of
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from ccreid_cli.core.errors import UsageError
from ccreid_cli.pseudo_labels.choosing_eps import EPS_VALUES, choose_eps, silhouette, smoothed
from ccreid_cli.pseudo_labels.clustering import ClusterSettings, label_quality
from ccreid_cli.pseudo_labels.density import dbscan
from ccreid_cli.pseudo_labels.jaccard import graph_from_pairs, near_pairs, reciprocal_weights
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels

AUTO = ClusterSettings(eps="auto", k1=15, k2=4)


def noisy_rows(seed: int, noise: float, total: int = 150) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Unit rows around 12 centres, and which centre each is of."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.integers(0, 12, total))
    rows = rng.normal(size=(12, 24))[ids] + noise * rng.normal(size=(total, 24))
    return torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1), ids


def graph_of(rows: torch.Tensor) -> sparse.csr_matrix:
    table = FeatureTable(rows)
    return graph_from_pairs(
        near_pairs(table, *reciprocal_weights(table, *table.nearest(15), 15, 4), EPS_VALUES[-1]), len(rows)
    )


def slow_silhouette(distances: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Rousseeuw's definition, image by image; outliers, and images alone in their cluster, count 0."""
    total, clusters = 0.0, set(labels.tolist()) - {-1}
    if len(clusters) < 2:
        return 0.0
    for image, label in enumerate(labels):
        own = [other for other in np.flatnonzero(labels == label) if other != image]
        if label < 0 or not own:
            continue
        inside = distances[image, own].astype(float).mean()
        outside = min(distances[image, labels == cluster].astype(float).mean() for cluster in clusters - {int(label)})
        if max(inside, outside) > 0:
            total += (outside - inside) / max(inside, outside)
    return total / len(labels)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), noise=st.floats(0.2, 3), eps=st.sampled_from(EPS_VALUES), least=st.integers(1, 6))
def test_silhouette_equals_the_slow_one(seed: int, noise: float, eps: float, least: int) -> None:
    rows, _ = noisy_rows(seed, noise, 60)
    graph = graph_of(rows)
    labels = dbscan(pairs_of(graph), len(rows), eps, least)
    assert silhouette(graph, labels) == pytest.approx(slow_silhouette(dense(graph), labels), abs=1e-9)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999), noise=st.floats(0.1, 4))
def test_labels_are_those_of_the_chosen_value(seed: int, noise: float) -> None:
    rows, _ = noisy_rows(seed, noise)
    auto = pseudo_labels(rows, AUTO)
    choice = auto.eps_choice
    assert choice is not None and choice.eps in EPS_VALUES
    assert [trial.eps for trial in choice.trials] == list(EPS_VALUES)
    fixed = pseudo_labels(rows, ClusterSettings(eps=choice.eps, k1=15, k2=4))
    np.testing.assert_array_equal(auto.labels, fixed.labels)
    assert fixed.eps_choice is None
    assert (choice.chosen.num_clusters, choice.chosen.num_outliers) == (auto.num_clusters, auto.num_outliers)
    usable = [trial for trial in choice.trials if trial.num_clusters > 1] or choice.trials
    assert choice.chosen.score == max(trial.score for trial in usable)


@pytest.mark.parametrize("noise", [0.6, 1.0, 1.4, 1.8])
def test_the_chosen_value_is_about_as_good_as_the_best(noise: float) -> None:
    rows, ids = noisy_rows(1, noise, 300)
    graph = graph_of(rows)
    quality = [label_quality(dbscan(pairs_of(graph), 300, eps), ids)["ari"] for eps in EPS_VALUES]
    chosen = EPS_VALUES.index(choose_eps(pairs_of(graph), 300, 4).eps)
    assert quality[chosen] >= max(quality) - 0.1


def test_smoothing_keeps_the_middle_and_repeats_the_ends() -> None:
    assert smoothed([0.0, 1.0, 0.0]) == [0.25, 0.5, 0.25]
    assert smoothed([4.0]) == [4.0]
    assert smoothed([1.0, 1.0, 1.0]) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("total", [0, 1, 3, 10])
def test_hardly_any_images(total: int) -> None:
    rows, _ = noisy_rows(0, 0.5, total)
    found = pseudo_labels(rows, AUTO)
    assert len(found.labels) == total


def test_a_single_value_with_two_clusters_is_taken() -> None:
    """Two groups of four that touch at 0.5: smaller values find nobody, larger ones find one cluster."""
    blocks = np.kron(np.eye(2), np.full((4, 4), 0.49)) + np.kron(1 - np.eye(2), np.full((4, 4), 0.51))
    np.fill_diagonal(blocks, 0)
    graph = sparse.csr_matrix(blocks.astype(np.float32))
    assert choose_eps(pairs_of(graph), 8, 4).eps == 0.5


def test_several_processes_choose_the_same(tmp_path: Path) -> None:
    rows, ids = noisy_rows(3, 1.3)
    alone = pseudo_labels(rows, AUTO)
    assert adjusted_rand_score(ids, alone.labels) > 0.3
    for labels in tiny.call_in_ranks(steps_in_ranks.labels_in_group, 3, tmp_path, rows, AUTO):
        np.testing.assert_array_equal(labels, alone.labels)


def test_a_similarity_cannot_be_chosen() -> None:
    rows, _ = noisy_rows(0, 1.0)
    with pytest.raises(UsageError, match="--eps auto does not go with --cluster infomap") as caught:
        pseudo_labels(rows, ClusterSettings("infomap", "auto"))
    assert "0.5" in (caught.value.hint or "") and "dbscan" in (caught.value.hint or "")


def test_the_choice_in_words_and_as_json() -> None:
    choice = choose_eps(pairs_of(graph_of(noisy_rows(1, 1.0)[0])), 150, 4)
    assert choice.why().startswith(f"eps {choice.eps:g}: ")
    assert choice.as_json()["eps"] == choice.eps and len(choice.as_json()["trials"]) == len(EPS_VALUES)


@pytest.mark.shared
@pytest.mark.slow
def test_the_choice_on_real_features(golden: Path) -> None:
    """The first of the real identities: as good as the best value, and better than 0.6."""
    reference = np.load(golden / "market1501_mobilenet_v2_train.npz")
    rows, ids = reference["features"][:2000].astype(np.float32), reference["ids"][:2000]
    found = pseudo_labels(rows, ClusterSettings(eps="auto"))
    assert found.eps_choice is not None
    quality = {
        eps: label_quality(pseudo_labels(rows, ClusterSettings(eps=eps)).labels, ids)["ari"] for eps in (0.4, 0.5, 0.6)
    }
    assert label_quality(found.labels, ids)["ari"] >= max(quality.values()) - 0.02
