from __future__ import annotations

import sys

import numpy as np
import pytest

from ccreid_cli.core.errors import UsageError
from ccreid_cli.pseudo_labels.clustering import agreement, infomap, label_quality


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


def test_agreement_of_two_labelings() -> None:
    labels = np.array([0, 0, 0, 1, 1, -1, -1])
    assert agreement(labels, labels) == 1.0
    assert agreement(labels, np.array([5, 5, 5, 2, 2, -1, -1])) == 1.0
    assert agreement(labels, np.array([0, 0, 0, 1, 1, 2, 2])) < 1.0  # outliers are alone, not together
    assert agreement(labels, np.array([0, 1, 0, 1, 0, 1, 0])) < 0.3
    assert agreement(np.full(3, -1), np.full(3, -1)) == 1.0
