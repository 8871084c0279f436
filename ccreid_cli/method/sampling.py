"""Which images make a batch: a few images of each of a few clusters, preferably seen by different cameras.

The rules are those of the reference's ``RandomMultipleGallery`` sampler, drawn for all groups of an epoch at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError

Int64Array = NDArray[np.int64]


def samples_per_pass(labels: Int64Array, num_instances: int) -> int:
    """Return how many images one pass over all clusters gives: `num_instances` each, one for a cluster of one image.

    Args:
        labels: (N,) cluster of each image, -1 for outliers.
        num_instances: Images per cluster, K.
    """
    _, sizes = np.unique(labels[labels >= 0], return_counts=True)
    return int(np.where(sizes > 1, num_instances, 1).sum())


def batches_are_short(labels: Int64Array, batch_size: int, num_instances: int) -> bool:
    """Tell whether one pass over all clusters does not fill a batch, so that a batch repeats clusters.

    Worth a warning: the loss then compares with fewer clusters than the settings ask for.

    Args:
        labels: (N,) cluster of each image, -1 for outliers.
        batch_size: Images per batch.
        num_instances: Images per cluster.
    """
    return samples_per_pass(labels, num_instances) < batch_size


def sample_epoch(
    labels: Int64Array,
    camera_ids: Int64Array,
    *,
    batch_size: int,
    num_instances: int,
    num_batches: int,
    use_cameras: bool = True,
    generator: np.random.Generator,
) -> Int64Array:
    """Draw all batches of an epoch; a pure function of the generator's state.

    A pass visits the clusters in random order. Each gives an anchor image, then K-1 others from cameras other than the
    anchor's; if there are none, from the rest of the cluster; a cluster of one image gives that image alone. The others
    are drawn without replacement where there are at least K to choose from, with replacement where there are fewer.
    Batches are cut from a pass in order and its incomplete last batch is dropped; then a new pass begins. Where a pass
    is shorter than one batch (see `batches_are_short`), passes are joined instead.

    Args:
        labels: (N,) cluster of each image, -1 for outliers, which are never drawn.
        camera_ids: (N,) camera of each image.
        batch_size: Images per batch, over all processes.
        num_instances: Images per cluster, K.
        num_batches: Batches to draw.
        use_cameras: False draws the others from the whole cluster, whatever their camera.
        generator: The source of randomness.

    Returns:
        (num_batches, batch_size) indices of images.

    Raises:
        DataError: No image belongs to a cluster.
        ValueError: Lengths differ, or a size is below one.
    """
    if labels.shape != camera_ids.shape or min(batch_size, num_instances, num_batches) < 1:
        raise ValueError("labels and cameras must have one length; batch size, instances and batches be at least 1")
    length = samples_per_pass(labels, num_instances)
    if length == 0:
        raise DataError(
            f"there is nothing to train on: none of {len(labels)} images belongs to a cluster.",
            "Raise --eps so that images join clusters (infomap: lower it), or lower --min-samples.",
        )
    usable = length // batch_size * batch_size or length
    num_passes = -(-num_batches * batch_size // usable)
    members = _order_members(labels, camera_ids)
    drawn = _draw_passes(members, num_passes, num_instances, use_cameras, generator).reshape(num_passes, length)
    return drawn[:, :usable].reshape(-1)[: num_batches * batch_size].reshape(num_batches, batch_size)


@dataclass(frozen=True)
class _Members:
    """Clustered images in order of (cluster, camera), so that what an anchor excludes is one run of positions.

    Attributes:
        images: (M,) image at each position.
        cluster_start: (C + 1,) where each cluster's positions begin; the last entry is M.
        camera_start: (M,) first position of the same cluster and camera.
        camera_stop: (M,) one past the last such position.
    """

    images: Int64Array
    cluster_start: Int64Array
    camera_start: Int64Array
    camera_stop: Int64Array


def _order_members(labels: Int64Array, camera_ids: Int64Array) -> _Members:
    """Sort the clustered images and mark the runs of clusters and cameras."""
    images = np.flatnonzero(labels >= 0)
    images = images[np.lexsort((camera_ids[images], labels[images]))]
    new_cluster = np.diff(labels[images], prepend=-1) != 0
    new_run = new_cluster | (np.diff(camera_ids[images], prepend=camera_ids[images[:1]]) != 0)
    run_start = np.append(np.flatnonzero(new_run), len(images))
    run = np.cumsum(new_run) - 1
    cluster_start = np.append(np.flatnonzero(new_cluster), len(images))
    return _Members(images, cluster_start, run_start[run], run_start[run + 1])


def _draw_passes(
    members: _Members, num_passes: int, num_instances: int, use_cameras: bool, generator: np.random.Generator
) -> Int64Array:
    """Return the images of `num_passes` passes one after another, each pass in its own cluster order."""
    num_clusters = len(members.cluster_start) - 1
    clusters = generator.permuted(np.tile(np.arange(num_clusters), (num_passes, 1)), axis=1).reshape(-1)
    start, stop = members.cluster_start[clusters], members.cluster_start[clusters + 1]
    anchors = generator.integers(start, stop)
    excluded_start, excluded_stop = anchors, anchors + 1
    if use_cameras:
        camera_start, camera_stop = members.camera_start[anchors], members.camera_stop[anchors]
        has_other_camera = camera_stop - camera_start < stop - start
        excluded_start = np.where(has_other_camera, camera_start, excluded_start)
        excluded_stop = np.where(has_other_camera, camera_stop, excluded_stop)
    num_excluded = excluded_stop - excluded_start
    num_candidates = stop - start - num_excluded
    others = start[:, None] + _choose(num_candidates, num_instances, generator)
    others += np.where(others >= excluded_start[:, None], num_excluded[:, None], 0)
    positions: Int64Array = np.concatenate([anchors[:, None], others], axis=1)
    exists = np.ones(positions.shape, dtype=np.bool_)
    exists[num_candidates == 0, 1:] = False
    return members.images[positions[exists]]


def _choose(num_candidates: Int64Array, num_instances: int, generator: np.random.Generator) -> Int64Array:
    """Draw K-1 of n candidates for every group: without replacement where n >= K, else with.

    Args:
        num_candidates: (S,) n of each group; a group of none gets zeros that the caller leaves out.
        num_instances: K.
        generator: The source of randomness.

    Returns:
        (S, K-1) candidate numbers, 0 to n-1.
    """
    chosen = generator.integers(0, np.maximum(num_candidates, 1)[:, None], (len(num_candidates), num_instances - 1))
    enough = np.flatnonzero(num_candidates >= num_instances)
    distinct = np.empty((len(enough), num_instances - 1), dtype=np.int64)
    # Floyd's method: a uniform subset in K-1 draws, whatever n is; it favours late places, so the order is shuffled.
    for k in range(num_instances - 1):
        last = num_candidates[enough] - num_instances + 1 + k
        draw = generator.integers(0, last + 1)
        taken = (distinct[:, :k] == draw[:, None]).any(axis=1)
        distinct[:, k] = np.where(taken, last, draw)
    chosen[enough] = generator.permuted(distinct, axis=1)
    return chosen
