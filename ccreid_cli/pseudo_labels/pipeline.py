"""The whole pseudo-label step: unit features in, cluster labels out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.words import plural
from ccreid_cli.machine.stopwatch import Stopwatch
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.neighbors import FeatureArray, FeatureTable
from ccreid_cli.pseudo_labels.registry import CLUSTERERS

__all__ = ["ClusterSettings", "PseudoLabels", "pseudo_labels"]


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of one epoch.

    Attributes:
        labels: (N,), 0 to num_clusters - 1, or -1 for outliers.
        num_clusters: How many clusters there are.
        num_outliers: How many images are in none.
        seconds: Time per stage: `neighbors`, `jaccard` (DBSCAN only), `clustering`.
    """

    labels: NDArray[np.int64]
    num_clusters: int
    num_outliers: int
    seconds: dict[str, float]


def pseudo_labels(
    features: FeatureArray,
    settings: ClusterSettings,
    *,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> PseudoLabels:
    """Cluster images by their features.

    The labels do not depend on block sizes, threads, the number format of the search or the device.

    Args:
        features: (N, D), any float type; rows that are not of unit length are normalised.
        settings: Method and thresholds.
        device: Where to compute; None keeps a tensor where it is.
        reporter: Where the result is told.

    Returns:
        Labels, counts and times.

    Raises:
        DataError: A row is zero, infinite or not a number.
        UsageError: The method needs a package that is not installed.
    """
    reporter = reporter or SilentReporter()
    watch = Stopwatch(_device_of(features, device))
    if len(features) == 0:
        labels = np.empty(0, dtype=np.int64)
    else:
        with watch.stage("neighbors"):
            table = FeatureTable(_unit_rows(features, device), device)
        labels = CLUSTERERS[settings.method].load()(table, settings, watch)
    num_clusters, num_outliers = int(labels.max(initial=-1)) + 1, int((labels == -1).sum())
    reporter.message(
        f"{settings.method}: {plural(num_clusters, 'cluster')}, {num_outliers:,} of {len(labels):,} images in none"
    )
    return PseudoLabels(labels, num_clusters, num_outliers, watch.seconds)


def _device_of(features: FeatureArray, device: torch.device | None) -> torch.device:
    return device or (features.device if isinstance(features, torch.Tensor) else torch.device("cpu"))


def _unit_rows(features: FeatureArray, device: torch.device | None) -> torch.Tensor:
    rows = features if isinstance(features, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(features))
    rows = rows.detach().to(_device_of(features, device), torch.float32)
    lengths = torch.linalg.vector_norm(rows, dim=1)
    bad = torch.nonzero(~(torch.isfinite(lengths) & (lengths > 0)))[:, 0]
    if len(bad):
        raise DataError(
            f"{len(bad):,} of {len(rows):,} features are zero, infinite or not a number (first: row {int(bad[0])})",
            hint="if this happened in training, the model has diverged: try a smaller --lr",
        )
    if bool(((lengths - 1).abs() > 1e-5).any()):
        rows = rows / lengths[:, None]
    return rows
