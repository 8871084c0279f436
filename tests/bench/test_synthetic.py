from __future__ import annotations

from pathlib import Path

import torch

from ccreid_cli.bench.synthetic import made_features, write_images
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels


def test_made_features_are_unit_rows_with_overlapping_identities() -> None:
    features, ids = made_features(3000, 64)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3000))
    assert torch.equal(features, made_features(3000, 64)[0])
    found = pseudo_labels(features, ClusterSettings(eps=0.5))
    assert 0.1 < found.num_outliers / 3000 < 0.7
    assert 30 < found.num_clusters < 176  # of 176 identities


def test_written_images_are_like_the_real_ones(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    assert paths == sorted(paths) and len(paths) == 3
    assert all(1500 < path.stat().st_size < 4000 for path in paths)
