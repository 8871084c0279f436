"""The baselines that stages are timed beside compute the same."""

from __future__ import annotations

from pathlib import Path

import baseline
import numpy as np

from ccreid_cli.bench.stages import baseline_average_precision
from ccreid_cli.bench.synthetic import made_cameras, made_features
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels


def test_baseline_labels_are_the_same() -> None:
    features = np.load(Path(__file__).parents[1] / "golden" / "jaccard_labels.npz")["features"]
    ours = pseudo_labels(features, ClusterSettings(eps=0.5)).labels
    np.testing.assert_array_equal(baseline.label(features, 0.5), ours)


def test_baseline_scores_are_the_same() -> None:
    features, ids = made_features(300, 32)
    cams, rows = made_cameras(300), features.numpy()
    ours = evaluate_features(rows[:60], ids[:60].numpy(), cams[:60], rows[60:], ids[60:].numpy(), cams[60:])
    looped = baseline_average_precision(rows[:60], ids.numpy(), cams, rows[60:])
    np.testing.assert_allclose(looped, ours.average_precision, atol=1e-6)
