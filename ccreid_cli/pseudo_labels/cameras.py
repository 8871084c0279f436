"""Features and labels that follow persons rather than cameras: images of one camera resemble one another anyway.

Source: "Exploring the Camera Bias of Person Re-identification" (ICLR 2025, arXiv 2502.10195).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ccreid_cli.core.errors import UsageError
from ccreid_cli.machine.split_rows import SplitRows

UNKNOWN_CAMERA = -1
"""Any negative number says that the camera of an image is not known."""

LEAST_IMAGES = 30
"""A camera with fewer images takes the statistics of all images: its own would be noise."""

LEAST_SHARE = 0.5
"""Share of the clustered images in clusters of several cameras from which on the other clusters are dropped."""

_SMALLEST_DEVIATION = 1e-6
_COLUMNS_PER_BLOCK = 256

Int64Array = NDArray[np.int64]


class CameraNorm:
    """Subtracts the mean feature of an image's camera and divides by its deviation, dimension by dimension.

    Args:
        features: (N, D) float32 that the statistics are taken from.
        camera_ids: (N,) their cameras; negative where unknown.
    """

    def __init__(self, features: torch.Tensor, camera_ids: Int64Array) -> None:
        self._all = _statistics(features)
        cameras, counts = np.unique(camera_ids[camera_ids >= 0], return_counts=True)
        rows = torch.from_numpy(camera_ids).to(features.device)
        self._own = {
            camera: _statistics(features[rows == camera]) for camera in cameras[counts >= LEAST_IMAGES].tolist()
        }

    def __call__(self, features: torch.Tensor, camera_ids: Int64Array) -> torch.Tensor:
        """Return `standardised` features, scaled to length 1."""
        return functional.normalize(self.standardised(features, camera_ids), dim=1)

    def standardised(self, features: torch.Tensor, camera_ids: Int64Array) -> torch.Tensor:
        """Return (N, D) float32 rows on the features' device.

        Args:
            features: (N, D) float32.
            camera_ids: (N,) their cameras; one that is unknown, or was rare, takes the statistics of all images.
        """
        cameras = torch.from_numpy(camera_ids).to(features.device)
        result = (features - self._all[0]) / self._all[1]
        for camera, (mean, deviation) in self._own.items():
            rows = torch.nonzero(cameras == camera)[:, 0]
            result[rows] = (features[rows] - mean) / deviation
        return result


def normalize_by_camera(features: SplitRows, camera_ids: Int64Array) -> SplitRows:
    """Standardise features within each camera; with fewer than two known cameras they stay as they are.

    Args:
        features: (N, D) float32.
        camera_ids: (N,), negative where unknown.

    Returns:
        (N, D) float32 unit rows.
    """
    if num_known(camera_ids) < 2:
        return features
    found = features.by_columns(lambda columns: CameraNorm(columns, camera_ids).standardised(columns, camera_ids))
    return features.with_own(functional.normalize(found.own, dim=1))


def normalize_pair_by_camera(
    query: torch.Tensor, query_cameras: Int64Array, gallery: torch.Tensor, gallery_cameras: Int64Array
) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardise query and gallery within each camera by the gallery's statistics; see `normalize_by_camera`.

    Args:
        query: (Q, D) float32.
        query_cameras: (Q,), negative where unknown.
        gallery: (G, D) float32.
        gallery_cameras: (G,) likewise.

    Raises:
        UsageError: The gallery has fewer than two known cameras.
    """
    if num_known(gallery_cameras) < 2:
        raise UsageError(
            "--camera-norm needs a gallery of at least two known cameras.",
            "Score without it: there are no cameras to tell apart.",
        )
    norm = CameraNorm(gallery, gallery_cameras)
    return norm(query, query_cameras), norm(gallery, gallery_cameras)


def _statistics(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each column, (D,) float32, computed in double precision."""
    on_cpu = rows.cpu() if rows.device.type == "mps" else rows  # which has no double precision
    blocks = [
        torch.std_mean(block.to(torch.float64), dim=0, correction=0)
        for block in torch.split(on_cpu, _COLUMNS_PER_BLOCK, dim=1)
    ]
    deviation, mean = (torch.cat(parts).to(rows.device, torch.float32) for parts in zip(*blocks, strict=True))
    return mean, deviation.clamp_min(_SMALLEST_DEVIATION)


def num_known(camera_ids: Int64Array) -> int:
    """Return how many different known cameras there are."""
    return len(np.unique(camera_ids[camera_ids >= 0]))


def cross_camera_share(labels: Int64Array, camera_ids: Int64Array) -> float:
    """Return the share of clustered images that are in clusters seen by several cameras, 0 to 1; 0 without clusters.

    Args:
        labels: (N,) cluster of each image, -1 for outliers.
        camera_ids: (N,), negative where unknown.
    """
    clustered = labels >= 0
    if not clustered.any():
        return 0.0
    return float((~_seen_by_one(labels, camera_ids))[labels[clustered]].mean())


def without_single_camera_clusters(labels: Int64Array, camera_ids: Int64Array) -> Int64Array:
    """Take their labels from clusters that only one camera sees, and number the others anew, in their order.

    All keep their labels where less than `LEAST_SHARE` of the clustered images are in clusters of several cameras, as
    at the start from a network that tells cameras apart better than persons, and where fewer than two clusters would
    stay. A cluster with an image of unknown camera stays.

    Args:
        labels: (N,) 0 to C-1; -1 for outliers.
        camera_ids: (N,), negative where unknown.
    """
    kept = ~_seen_by_one(labels, camera_ids)
    if kept.sum() < 2 or cross_camera_share(labels, camera_ids) < LEAST_SHARE:
        return labels
    numbers = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last is that of outliers
    renumbered: Int64Array = numbers[labels]
    return renumbered


def _seen_by_one(labels: Int64Array, camera_ids: Int64Array) -> NDArray[np.bool_]:
    """Return (C,) whether all images of each cluster are of one known camera."""
    clustered = labels >= 0
    pairs = np.unique(np.stack([labels[clustered], np.maximum(camera_ids[clustered], UNKNOWN_CAMERA)]), axis=1)
    counts = np.bincount(pairs[0], minlength=int(labels.max(initial=-1)) + 1)
    counts += np.bincount(pairs[0][pairs[1] < 0], minlength=len(counts))
    return np.asarray(counts == 1)
