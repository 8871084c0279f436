"""Names against slow plain NumPy: loops over images, one at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.inference import identities
from ccreid_cli.inference.identities import (
    centroids,
    choose_thresholds,
    cluster_names,
    in_order,
    margins,
    name_after_known,
    name_by_clusters,
)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def unit(rng: np.random.Generator, count: int, dim: int = 6) -> Floats:
    rows = rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def around(rng: np.random.Generator, centres: Floats, labels: Ints, spread: float = 0.1) -> Floats:
    rows = centres[labels] + spread * rng.normal(size=(len(labels), centres.shape[1]))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def mean_of(rows: Floats) -> Floats:
    mean = rows.sum(axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def test_margins_and_centroids(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "_BLOCK_BYTES", 100)  # a block is a few rows
    features, labels = unit(rng, 40), rng.integers(-1, 5, 40)
    centres = centroids(features, labels)
    assert np.allclose(centres, [mean_of(features[labels == label]) for label in range(5)], atol=1e-6)
    for row, margin in enumerate(margins(features, labels, centres)):
        if labels[row] < 0:
            assert np.isnan(margin)
            continue
        similar = centres @ features[row]
        assert np.isclose(margin, similar[labels[row]] - np.delete(similar, labels[row]).max(), atol=1e-5)


def test_the_margin_of_a_single_identity_is_its_similarity(rng: np.random.Generator) -> None:
    features, labels = unit(rng, 4), np.zeros(4, dtype=np.int64)
    centres = centroids(features, labels)
    assert np.allclose(margins(features, labels, centres), features @ centres[0], atol=1e-6)


@given(st.lists(st.integers(-1, 4), max_size=12))
@settings(max_examples=30, deadline=None)
def test_clusters_are_numbered_by_their_first_image(labels: list[int]) -> None:
    numbers = {label: place for place, label in enumerate(dict.fromkeys(label for label in labels if label >= 0))}
    found = in_order(np.array(labels, dtype=np.int64))
    assert found.tolist() == [numbers.get(label, -1) for label in labels]


def test_names_go_on_after_the_largest_number() -> None:
    assert cluster_names(2) == ["0001", "0002"]
    assert cluster_names(2, ["ada", "0007", "12", "-3", "１９"]) == ["0013", "0014"]
    assert cluster_names(1, ["9999"]) == ["10000"]


def test_outliers_have_neither_name_nor_confidence(rng: np.random.Generator) -> None:
    found = name_by_clusters(unit(rng, 5), lambda rows: np.array([-1, 3, 0, 3, -1]))
    assert found.names == ("", "0001", "0002", "0001", "")
    assert np.isnan(found.confidence).tolist() == [True, False, False, False, True]
    assert (found.num_identities, found.num_outliers, found.num_unsure) == (2, 2, 0)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_thresholds_against_one_image_at_a_time(rng: np.random.Generator, rate: float) -> None:
    labels = np.array([0] * 8 + [1] * 9 + [2] + [-1, -1])
    features = around(rng, unit(rng, 3), labels.clip(0), 0.5)
    centres = centroids(features, labels)
    found = choose_thresholds(features, labels, centres, rate)
    strangers, own = [], []
    for row in range(18):
        similar = centres @ features[row]
        strangers.append(np.delete(similar, labels[row]).max())
        others = np.flatnonzero((labels == labels[row]) & (np.arange(20) != row))
        if len(others):
            own.append(mean_of(features[others]) @ features[row])
    stranger = np.sort(strangers)[::-1][min(int(rate * 18), 17)]
    member = np.sort(own)[int(0.05 * 17)]
    assert (found.accept, found.refuse) == pytest.approx((max(stranger, member), min(stranger, member)), abs=1e-5)
    passing = sum(value > found.accept + 1e-6 for value in strangers)
    assert passing <= rate * 18 and found.false_match_rate == pytest.approx(passing / 18) and found.num_images == 18


def test_one_known_identity_is_not_enough(rng: np.random.Generator) -> None:
    with pytest.raises(DataError, match="two or more are needed"):
        name_after_known(unit(rng, 3), ["ada"] * 3, np.array([True, True, False]), 0.01, lambda rows: rows)


def scene(rng: np.random.Generator) -> tuple[Floats, list[str], NDArray[np.bool_], Ints]:
    """Four people of which two are known, five images each; and one image half-way between the known ones."""
    labels = np.repeat(np.arange(4), 5)
    centres = np.eye(6, dtype=np.float32)[:4]
    centres[2:, :2] = -0.4  # the strangers are unlike both
    features = around(rng, centres, labels, 0.05)
    between = mean_of(centres[:2])[None]
    ids = ["ada" if label == 0 else "0007" if label == 1 else "" for label in labels]
    is_known = np.zeros(21, dtype=np.bool_)
    is_known[[0, 1, 2, 5, 6, 7]] = True
    return np.concatenate([features, between]), [*ids, ""], is_known, labels


def by_nearest_axis(features: Floats, seen: list[Ints]) -> identities.Cluster:
    def cluster(rows: Ints) -> Ints:
        seen.append(rows)
        return features[rows].argmax(axis=1)

    return cluster


def test_known_identities_keep_their_names_and_new_ones_are_added(rng: np.random.Generator) -> None:
    features, ids, is_known, labels = scene(rng)
    seen: list[Ints] = []
    found = name_after_known(features, ids, is_known, 0.001, by_nearest_axis(features, seen))
    assert found.names[:20] == ("ada",) * 5 + ("0007",) * 5 + ("0008",) * 5 + ("0009",) * 5
    (rest,) = seen
    assert set(range(10, 20)) <= set(rest.tolist()) <= set(range(10, 21))
    assert (found.confidence[:20] > 0.5).all() and found.num_new == 2


def test_what_is_known_is_never_renamed_and_the_unsure_are_told(rng: np.random.Generator) -> None:
    features, ids, is_known, _ = scene(rng)
    ids[7] = "ada"  # a person says so, against all likeness
    features[2] = mean_of(np.stack([features[0], -features[5]]))  # a known image far from its identity: all are nearer
    found = name_after_known(features, ids, is_known, 0.001, lambda rows: np.full(len(rows), -1))
    assert [found.names[row] for row in np.flatnonzero(is_known)] == [ids[row] for row in np.flatnonzero(is_known)]
    assert found.num_unsure > 0 and found.thresholds is not None
    for name, nearest, confidence in zip(found.names, found.nearest, found.confidence, strict=True):
        if nearest:
            assert name == "" and nearest in ("ada", "0007")
            assert found.thresholds.refuse - found.thresholds.accept - 1e-6 <= confidence <= 0


def test_more_images_do_not_change_the_names_of_those_that_were_known(rng: np.random.Generator) -> None:
    features, ids, is_known, _ = scene(rng)
    cluster = by_nearest_axis(features, [])
    first = name_after_known(features, ids, is_known, 0.001, cluster)
    grown = np.concatenate([features, unit(rng, 7)])
    names = [*first.names, *[""] * 7]
    known = np.array([name != "" for name in names])
    again = name_after_known(grown, names, known, 0.001, by_nearest_axis(grown, []))
    assert [one for one, was in zip(again.names, known, strict=True) if was] == [name for name in first.names if name]
