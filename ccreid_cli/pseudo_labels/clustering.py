"""From features to cluster labels, and how well labels match identities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.neighbors import sort_graph_by_row_values

from ccreid_cli.core.components import require
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.stopwatch import Stopwatch
from ccreid_cli.pseudo_labels.jaccard import graph_from_pairs, near_pairs
from ccreid_cli.pseudo_labels.neighbors import FeatureTable, shared_neighbors


@dataclass(frozen=True)
class ClusterSettings:
    """How features become labels; the limits of the values are those of `TrainConfig`.

    Attributes:
        method: A name in `registry.CLUSTERERS`.
        eps: DBSCAN: largest Jaccard distance of two neighbours. Infomap: smallest similarity of two linked images.
        k1: Nearest neighbours, the image itself included.
        k2: DBSCAN: neighbours that weights are averaged over. Infomap: clusters of at most so many images are dropped.
        min_samples: DBSCAN: images within eps, itself included, that make an image a core of a cluster.
        camera_norm: Standardise features within each camera first.
        drop_single_camera: Give no label to clusters that only one camera sees, once most images are in others.
    """

    method: str = "dbscan"
    eps: float = 0.6
    k1: int = 30
    k2: int = 6
    min_samples: int = 4
    camera_norm: bool = False
    drop_single_camera: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> ClusterSettings:
        """Return those of a training run."""
        shared = {field.name: getattr(config, field.name) for field in fields(cls) if field.name != "method"}
        return cls(config.cluster, **shared)


Clusterer = Callable[[FeatureTable, ClusterSettings, Group, Stopwatch], NDArray[np.int64]]
"""Gives each row of a table a label, (N,), 0 to num_clusters - 1, or -1 for outliers.

It runs in every process of the group with the same table and gives the same labels in each. It may split the rows over
the processes (`Group.bounds`, `Group.gather_rows`) and leave the rest to the first (`Group.on_main`); in a group of one
these do nothing. The stopwatch takes the seconds of its stages.
"""


def cluster_by_dbscan(
    table: FeatureTable, settings: ClusterSettings, group: Group, watch: Stopwatch
) -> NDArray[np.int64]:
    """DBSCAN on the k-reciprocal Jaccard distance (Cluster Contrast, section 3.1)."""
    with watch.stage("neighbors"):
        similarities, indices = shared_neighbors(table, settings.k1, group)
    with watch.stage("jaccard"):
        pairs = near_pairs(table, similarities, indices, settings.k1, settings.k2, group, settings.eps)
    with watch.stage("clustering"):
        return group.on_main(
            lambda: dbscan(graph_from_pairs(pairs, len(table)), settings.eps, settings.min_samples, table.counts)
        )


def cluster_by_infomap(
    table: FeatureTable, settings: ClusterSettings, group: Group, watch: Stopwatch
) -> NDArray[np.int64]:
    """Infomap on the cosine neighbour graph (the second label method of Cluster Contrast's November 2021 version)."""
    with watch.stage("neighbors"):
        own, indices = shared_neighbors(table, settings.k1, group)
        similarities = group.gather_rows(own)
    with watch.stage("clustering"):
        return group.on_main(
            lambda: infomap(similarities.cpu().numpy(), indices.cpu().numpy(), settings.eps, settings.k2)
        )


def dbscan(
    graph: sparse.csr_matrix, eps: float, min_samples: int = 4, counts: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Cluster by density (Ester et al., KDD 1996) on a sparse graph of distances.

    Args:
        graph: (N, N) distances; pairs that are not stored are far apart, stored zeros are as near as can be.
        eps: Largest distance of two neighbours.
        min_samples: Images within eps, itself included, that make an image a core of a cluster.
        counts: How many images each row stands for, (N,); None for one each.

    Returns:
        Labels (N,), in the order of the clusters' first core images; -1 marks outliers.
    """
    if graph.shape[0] == 0:
        return np.empty(0, dtype=np.int64)
    by_distance = sort_graph_by_row_values(graph, copy=True, warn_when_not_sorted=False)
    labels = (
        DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(by_distance, sample_weight=counts).labels_
    )
    return np.asarray(labels, dtype=np.int64)


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
    singletons = labels.copy()
    singletons[~clustered] = labels.max() + 1 + np.arange(int((~clustered).sum()))
    purity = 0.0
    if clustered.any():
        table = contingency_matrix(labels[clustered], person_ids[clustered], sparse=True)
        purity = float(table.max(axis=1).sum() / clustered.sum())
    return {
        "ari": float(adjusted_rand_score(person_ids, singletons)),
        "nmi": float(normalized_mutual_info_score(person_ids, singletons)),
        "purity": purity,
    }
