"""From features to cluster labels, and how well labels match identities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from ccreid_cli.core.components import require
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.ring import send_to_main
from ccreid_cli.machine.stopwatch import Stopwatch
from ccreid_cli.pseudo_labels.choosing_eps import EPS_VALUES, EpsChoice, choose_eps
from ccreid_cli.pseudo_labels.density import dbscan
from ccreid_cli.pseudo_labels.jaccard import near_pairs, reciprocal_weights
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.overlap import Pairs


@dataclass(frozen=True)
class ClusterSettings:
    """How features become labels; the limits of the values are those of `TrainConfig`.

    Attributes:
        method: A name in `registry.CLUSTERERS`.
        eps: DBSCAN: largest Jaccard distance of two neighbours, or "auto": what `choosing_eps` finds best for the
            features at hand. Infomap: smallest similarity of two linked images.
        k1: Nearest neighbours, the image itself included.
        k2: DBSCAN: neighbours that weights are averaged over. Infomap: clusters of at most so many images are dropped.
        min_samples: DBSCAN: images within eps, itself included, that make an image a core of a cluster.
        neighbors: "exact", or "approximate": `approximate.ApproximateTable`.
        recall: Share of the neighbours that approximate ones are to hold.
        camera_norm: Standardise features within each camera first.
        drop_single_camera: Give no label to clusters that only one camera sees, once most images are in others.
    """

    method: str = "dbscan"
    eps: float | Literal["auto"] = 0.6
    k1: int = 30
    k2: int = 6
    min_samples: int = 4
    neighbors: str = "exact"
    recall: float = 0.95
    camera_norm: bool = False
    drop_single_camera: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> ClusterSettings:
        """Return those of a training run."""
        shared = {field.name: getattr(config, field.name) for field in fields(cls) if field.name != "method"}
        return cls(config.cluster, **shared)


@dataclass(frozen=True)
class Clustering:
    """What a clusterer found.

    Attributes:
        labels: (N,), 0 to num_clusters - 1, or -1 for outliers.
        eps_choice: How eps was chosen, where it was "auto".
    """

    labels: NDArray[np.int64]
    eps_choice: EpsChoice | None = None


Clusterer = Callable[[FeatureTable, ClusterSettings, Group, Stopwatch], Clustering]
"""Gives each row of a table a label.

It runs in every process of the group and gives the same labels of all rows in each. A process works on its share of
the rows (`FeatureTable.nearest`); it may collect what it found in the first process (`ring.send_to_main`) and leave the
rest to that one (`Group.on_main`); in a group of one these do nothing. The stopwatch takes the seconds of its stages.
"""


def cluster_by_dbscan(table: FeatureTable, settings: ClusterSettings, group: Group, watch: Stopwatch) -> Clustering:
    """DBSCAN on the k-reciprocal Jaccard distance (Cluster Contrast, section 3.1)."""
    with watch.stage("neighbors"):
        similarities, indices = table.nearest(settings.k1)
    with watch.stage("jaccard"):
        farthest = EPS_VALUES[-1] if settings.eps == "auto" else settings.eps
        weights, scale = reciprocal_weights(table, similarities, indices, settings.k1, settings.k2)
        del similarities, indices  # a quarter of a GB for a million images
        pairs = near_pairs(table, weights, scale, farthest)
        del weights
    with watch.stage("clustering"):
        if settings.eps != "auto":
            return Clustering(dbscan(pairs, len(table), settings.eps, settings.min_samples, table.counts, group))
        gathered = Pairs(*(_on_main(group, part) for part in (pairs.rows, pairs.columns, pairs.distances)))
        choice = group.on_main(lambda: choose_eps(gathered, len(table), settings.min_samples, table.counts))
        labels = dbscan(pairs, len(table), choice.eps, settings.min_samples, table.counts, group)
        return Clustering(labels, choice)


def _on_main(group: Group, rows: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(send_to_main(group, torch.from_numpy(rows)).cpu().numpy())


def cluster_by_infomap(table: FeatureTable, settings: ClusterSettings, group: Group, watch: Stopwatch) -> Clustering:
    """Infomap on the cosine neighbour graph (the second label method of Cluster Contrast's November 2021 version)."""
    assert settings.eps != "auto"
    with watch.stage("neighbors"):
        similarities, indices = (send_to_main(group, part).cpu().numpy() for part in table.nearest(settings.k1))
    with watch.stage("clustering"):
        return Clustering(group.on_main(partial(infomap, similarities, indices, settings.eps, settings.k2)))


def infomap(
    similarities: NDArray[np.float32], indices: NDArray[np.int32], min_similarity: float, max_dropped: int
) -> NDArray[np.int64]:
    """Cluster by Infomap (Rosvall and Bergstrom, PNAS 2008): two levels, directed links weighted by similarity.

    Args:
        similarities: Of the neighbours, (N, k).
        indices: The neighbours, (N, k).
        min_similarity: Less similar neighbours are not linked.
        max_dropped: Clusters of at most so many images become outliers.

    Returns:
        Labels (N,), in the order of the clusters' first images; -1 marks outliers.

    Raises:
        UsageError: The package infomap is not installed.
    """
    network = require("infomap", "infomap").Infomap("--two-level --directed --silent --seed 123")
    labels = np.full(len(indices), -1, dtype=np.int64)
    rows, places = np.nonzero((similarities >= min_similarity) & (indices != np.arange(len(indices))[:, None]))
    if len(rows) == 0:
        return labels
    network.add_links(np.stack([rows, indices[rows, places], similarities[rows, places].astype(np.float64)], axis=1))
    network.run()
    nodes = np.array(list(network.get_modules().items()), dtype=np.int64)
    labels[nodes[:, 0]] = nodes[:, 1]
    return _keep_large(labels, max_dropped)


def _keep_large(labels: NDArray[np.int64], max_dropped: int) -> NDArray[np.int64]:
    """Number the clusters of more than `max_dropped` images by their first image; the others become outliers."""
    clustered = labels >= 0
    _, first, inverse, counts = np.unique(labels[clustered], return_index=True, return_inverse=True, return_counts=True)
    large = counts > max_dropped
    numbers = np.full(len(counts), -1, dtype=np.int64)
    numbers[large] = np.argsort(np.argsort(first[large]))
    result = np.full(len(labels), -1, dtype=np.int64)
    result[clustered] = numbers[inverse]
    return result


def agreement(labels: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Adjusted Rand index of two labelings of the same images, each outlier a cluster of its own.

    Args:
        labels: (N,), -1 for outliers.
        others: (N,), likewise.
    """
    return float(adjusted_rand_score(_outliers_apart(labels), _outliers_apart(others)))


def _outliers_apart(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give each outlier a label of its own."""
    is_outlier = labels < 0
    apart = labels.copy()
    apart[is_outlier] = labels.max(initial=-1) + 1 + np.arange(int(is_outlier.sum()))
    return apart


def label_quality(labels: NDArray[np.int64], person_ids: NDArray[np.int64]) -> dict[str, float]:
    """How well labels match the true identities: a diagnosis, never a training signal.

    Args:
        labels: (N,), -1 for outliers.
        person_ids: (N,), negative where the identity is not known; such images are left out.

    Returns:
        `ari` (adjusted Rand index) and `nmi` (normalised mutual information) with each outlier as a cluster of its own,
        and `purity`, the share of clustered images that belong to the most frequent identity of their cluster (0
        without clusters). Nothing at all when no identity is known.
    """
    known = person_ids >= 0
    if not known.any():
        return {}
    labels, person_ids = labels[known].astype(np.int64), person_ids[known]
    clustered = labels >= 0
    singletons = _outliers_apart(labels)
    purity = 0.0
    if clustered.any():
        table = contingency_matrix(labels[clustered], person_ids[clustered], sparse=True)
        purity = float(table.max(axis=1).sum() / clustered.sum())
    return {
        "ari": float(adjusted_rand_score(person_ids, singletons)),
        "nmi": float(normalized_mutual_info_score(person_ids, singletons)),
        "purity": purity,
    }
