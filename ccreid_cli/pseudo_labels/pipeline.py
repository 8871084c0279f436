"""The whole pseudo-label step: features in, cluster labels out, in one process or many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.machine.device import unless_out_of_memory
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.machine.stopwatch import Stopwatch
from ccreid_cli.pseudo_labels.approximate import LEAST_ROWS, ApproximateTable, Approximation, assess
from ccreid_cli.pseudo_labels.background import without_background
from ccreid_cli.pseudo_labels.cameras import (
    cross_camera_share,
    normalize_by_camera,
    num_known,
    without_single_camera_clusters,
)
from ccreid_cli.pseudo_labels.choosing_eps import EpsChoice
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.constraints import Constraints
from ccreid_cli.pseudo_labels.neighbors import FeatureArray, FeatureTable
from ccreid_cli.pseudo_labels.registry import check_eps, load_clusterer
from ccreid_cli.pseudo_labels.separating import separate


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of one epoch.

    Attributes:
        labels: (N,), 0 to num_clusters - 1, or -1 for outliers.
        num_clusters: How many clusters there are.
        num_outliers: How many images are in none.
        cross_camera_share: Of the images in clusters as the clusterer made them, those in clusters that several cameras
            see, 0 to 1; None where fewer than two cameras are known.
        seconds: Time per stage, as the clusterer names them: `neighbors`, `jaccard`, `clustering`.
        eps_choice: How eps was chosen, where it was "auto".
        approximation: How well approximate neighbours did, where they were used.
    """

    labels: NDArray[np.int64]
    num_clusters: int
    num_outliers: int
    seconds: dict[str, float]
    cross_camera_share: float | None = None
    eps_choice: EpsChoice | None = None
    approximation: Approximation | None = None


def pseudo_labels(
    features: FeatureArray,
    settings: ClusterSettings,
    *,
    total: int | None = None,
    camera_ids: NDArray[np.int64] | None = None,
    edges: torch.Tensor | None = None,
    constraints: Constraints | None = None,
    group: Group | None = None,
    reporter: Reporter | None = None,
) -> PseudoLabels:
    """Cluster images by their features.

    With exact neighbours the labels do not depend on block sizes, threads, the number format of the search, the device
    or the number of processes.

    Args:
        features: (N, D), any float type, the same in every process; rows that are not of unit length are normalised.
        settings: Clusterer and thresholds.
        total: N, where `features` are only the share of this process, (n, D), as `Group.bounds(N)` has it. For
            approximate neighbours each process collects all of them all the same.
        camera_ids: (N,) camera of each image, negative where unknown, for the settings that use them.
        edges: (N, E) what the edges of the images look like; what they tell of the features is taken out first.
        constraints: Which images show one object and which do not; all labels keep to it.
        group: The processes that share the work, and the device; None computes alone where the features are.
        reporter: Told how well approximate neighbours did, and when a GPU has too little memory and the CPU computes
            the same; without one that is an error.

    Returns:
        Labels of all images, counts and times; the same labels in every process.

    Raises:
        DataError: A row is zero, infinite or not a number.
        UsageError: There is no such clusterer, it needs a package that is not installed, or cannot choose eps.
    """
    group = group or Group(device=features.device if isinstance(features, torch.Tensor) else None)
    if reporter is None or group.world > 1 or group.device.type == "cpu":
        return _label(features, total, settings, camera_ids, edges, constraints, group, reporter)
    found = unless_out_of_memory(
        lambda: _label(features, total, settings, camera_ids, edges, constraints, group, reporter)
    )
    if found is not None:
        return found
    reporter.warning(f"the pseudo-labels do not fit into the memory of {group.device}: computing the same on the CPU.")
    torch.cuda.empty_cache()
    return _label(features, total, settings, camera_ids, edges, constraints, Group(), reporter)


def _label(
    features: FeatureArray,
    total: int | None,
    settings: ClusterSettings,
    camera_ids: NDArray[np.int64] | None,
    edges: torch.Tensor | None,
    constraints: Constraints | None,
    group: Group,
    reporter: Reporter | None,
) -> PseudoLabels:
    cluster = load_clusterer(settings.method)
    check_eps(settings.method, settings.eps)
    if (len(features) if total is None else total) == 0:
        return PseudoLabels(np.empty(0, dtype=np.int64), 0, 0, {})
    watch = Stopwatch(group.device)
    with watch.stage("neighbors"):
        rows = SplitRows(_unit_rows(features, total, group), total, group)
        if edges is not None:
            rows = without_background(rows, edges)
        if settings.camera_norm and camera_ids is not None:
            rows = normalize_by_camera(rows, camera_ids)
        counts = None
        if constraints is not None:
            settings = constraints.scaled(settings)
            rows, counts = constraints.pool(rows), constraints.sizes()
        split = None if total is None else rows.total
        if settings.neighbors == "approximate" and rows.total >= LEAST_ROWS:
            table: FeatureTable = ApproximateTable(
                rows.own, group.device, settings.recall, settings.k1, counts=counts, group=group, total=split
            )
        else:
            table = FeatureTable(rows.own, group.device, group=group, total=split, counts=counts)
    found, approximation = cluster(table, settings, group, watch), None
    if isinstance(table, ApproximateTable):
        with watch.stage("sample"):
            approximation = assess(table, settings, cluster, group)
        if reporter:
            reporter.message(approximation.in_words())
    labels, share = found.labels, None
    if constraints is not None:
        labels = constraints.spread(separate(table, labels, constraints, settings))
    if camera_ids is not None and num_known(camera_ids) > 1:
        share = cross_camera_share(labels, camera_ids)
        if settings.drop_single_camera:
            labels = without_single_camera_clusters(labels, camera_ids)
    num_clusters, num_outliers = int(labels.max(initial=-1)) + 1, int((labels == -1).sum())
    return PseudoLabels(labels, num_clusters, num_outliers, watch.seconds, share, found.eps_choice, approximation)


def _unit_rows(features: FeatureArray, total: int | None, group: Group) -> torch.Tensor:
    """Return the rows in float32 and of unit length, themselves where they are that already."""
    rows = features if isinstance(features, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(features))
    rows = rows.detach().to(group.device, torch.float32)
    lengths = torch.linalg.vector_norm(rows, dim=1)
    bad = torch.nonzero(~(torch.isfinite(lengths) & (lengths > 0)))[:, 0]
    uneven = bool(((lengths - 1).abs() > 1e-5).any())
    if total is not None:
        bad = group.gather_rows(bad + group.bounds(total)[0])
        uneven = bool(group.maximum(int(uneven)))
    if len(bad):
        raise DataError(
            f"{len(bad):,} of {total or len(rows):,} features are zero, infinite or not a number "
            f"(first: row {int(bad[0])})",
            hint="if this happened in training, the model has diverged: try a smaller --lr",
        )
    return rows / lengths[:, None] if uneven else rows
