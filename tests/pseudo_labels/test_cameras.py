"""Camera-normalised features and labels, against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccreid_cli.core.errors import UsageError
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.pseudo_labels import cameras
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels


def oracle(features: np.ndarray, camera_ids: np.ndarray) -> np.ndarray:
    """Every image by itself: the mean and deviation of its camera, or of all where the camera is unknown or rare."""
    features = features.astype(np.float64)
    rows = []
    for row, camera in zip(features, camera_ids, strict=True):
        own = features[camera_ids == camera]
        if camera < 0 or len(own) < cameras.LEAST_IMAGES:
            own = features
        row = (row - own.mean(axis=0)) / np.maximum(own.std(axis=0), 1e-6)
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


def test_features_are_standardised_within_each_camera(rng: np.random.Generator) -> None:
    camera_ids = np.repeat([0, 1, 2, -1], [40, 60, 5, 7])
    features = (rng.normal(size=(112, 300)) + camera_ids[:, None]).astype(np.float32)
    found = cameras.normalize_by_camera(SplitRows(torch.from_numpy(features)), camera_ids).own
    np.testing.assert_allclose(found.numpy(), oracle(features, camera_ids), atol=2e-6)


@pytest.mark.parametrize("camera_ids", [np.zeros(50, dtype=np.int64), np.repeat([-1, 3], 25)])
def test_one_known_camera_changes_nothing(camera_ids: np.ndarray, rng: np.random.Generator) -> None:
    features = torch.from_numpy(rng.normal(size=(50, 8)).astype(np.float32))
    assert torch.equal(cameras.normalize_by_camera(SplitRows(features), camera_ids).own, features)


def test_a_query_takes_the_statistics_of_the_gallery_s_cameras(rng: np.random.Generator) -> None:
    features, camera_ids = rng.normal(size=(80, 6)).astype(np.float32), np.arange(80) % 2
    gallery = torch.from_numpy(features)
    query, whole = cameras.normalize_pair_by_camera(gallery[:10], camera_ids[:10], gallery, camera_ids)
    np.testing.assert_allclose(whole.numpy(), oracle(features, camera_ids), atol=2e-6)
    assert torch.equal(query, whole[:10])
    stranger, _ = cameras.normalize_pair_by_camera(gallery[:1], np.array([9]), gallery, camera_ids)
    expected = (features[0] - features.mean(axis=0)) / features.std(axis=0)
    np.testing.assert_allclose(stranger[0].numpy(), expected / np.linalg.norm(expected), atol=2e-6)
    with pytest.raises(UsageError, match="two known cameras"):
        cameras.normalize_pair_by_camera(gallery, camera_ids, gallery, np.zeros(80, dtype=np.int64))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 3)), min_size=1, max_size=40))
def test_clusters_of_one_camera_lose_their_labels(images: list[tuple[int, int]]) -> None:
    labels, camera_ids = np.array(images).T
    names = np.unique(labels[labels >= 0])
    labels = np.where(labels >= 0, np.searchsorted(names, labels), -1)
    seen = {label: set(camera_ids[labels == label]) for label in range(len(names))}
    several = [label for label, found in seen.items() if len(found) > 1 or -1 in found]
    clustered = labels[labels >= 0]
    share = np.isin(clustered, several).mean() if len(clustered) else 0.0
    assert cameras.cross_camera_share(labels, camera_ids) == pytest.approx(share)
    found = cameras.without_single_camera_clusters(labels, camera_ids)
    if share < cameras.LEAST_SHARE or len(several) < 2:
        np.testing.assert_array_equal(found, labels)
    else:
        expected = [several.index(label) if label in several else -1 for label in labels]
        np.testing.assert_array_equal(found, expected)


def test_labels_follow_persons_where_features_follow_cameras(rng: np.random.Generator) -> None:
    persons, camera_ids = np.arange(240) % 12, np.arange(240) // 12 % 2
    rows = (
        rng.normal(size=(12, 32))[persons] + 4 * rng.normal(size=(2, 32))[camera_ids] + 0.2 * rng.normal(size=(240, 32))
    )
    plain = pseudo_labels(rows, ClusterSettings(eps=0.6, k1=20), camera_ids=camera_ids)
    normed = pseudo_labels(rows, ClusterSettings(eps=0.6, k1=20, camera_norm=True), camera_ids=camera_ids)
    assert plain.cross_camera_share == 0 and normed.cross_camera_share == 1
    np.testing.assert_array_equal(normed.labels, persons)
    unchanged = pseudo_labels(rows, ClusterSettings(eps=0.6, k1=20, camera_norm=True))
    np.testing.assert_array_equal(unchanged.labels, plain.labels)
    assert unchanged.cross_camera_share is None
