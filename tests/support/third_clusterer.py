"""A clusterer that the package does not have: connected components of similar neighbours, outliers where alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.ring import send_to_main
from ccreid_cli.machine.stopwatch import Stopwatch
from ccreid_cli.pseudo_labels.clustering import Clustering, ClusterSettings
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.registry import ClustererRow


def cluster(table: FeatureTable, settings: ClusterSettings, group: Group, watch: Stopwatch) -> Clustering:
    with watch.stage("neighbors"):
        similarities, indices = (send_to_main(group, part) for part in table.nearest(settings.k1))
    with watch.stage("components"):
        eps = float(settings.eps)
        return Clustering(group.on_main(lambda: components(similarities.numpy(), indices.numpy(), eps)))


def components(similarities: NDArray[np.float32], indices: NDArray[np.int32], eps: float) -> NDArray[np.int64]:
    rows, places = np.nonzero(similarities >= eps)
    links = (np.ones(len(rows)), (rows, indices[rows, places]))
    _, found = sparse.csgraph.connected_components(sparse.csr_matrix(links, shape=(len(indices),) * 2), directed=False)
    sizes = np.bincount(found)
    numbers = np.where(sizes > 1, np.cumsum(sizes > 1) - 1, -1)
    return numbers[found].astype(np.int64)


ROW = ClustererRow("connected components", lambda: cluster, larger_eps_joins_more=False)
