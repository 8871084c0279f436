"""DBSCAN on a sparse graph of distances: the connected components of images that have enough neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components


def dbscan(
    graph: sparse.csr_matrix, eps: float, min_samples: int = 4, counts: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Cluster by density (Ester et al., KDD 1996), as scikit-learn does, to the label.

    Args:
        graph: (N, N) symmetric distances; pairs that are not stored are far apart, stored zeros are as near as can be.
        eps: Largest distance of two neighbours.
        min_samples: Images within eps, itself included, that make an image a core of a cluster.
        counts: How many images each row stands for, (N,); None for one each.

    Returns:
        Labels (N,), in the order of the clusters' first core images; -1 marks outliers. An image that is no core joins
        the first of the clusters that have a core near it.
    """
    total = graph.shape[0]
    rows = np.repeat(np.arange(total), np.diff(graph.indptr))
    near = (graph.data <= eps) & (rows != graph.indices)
    rows, columns = rows[near], graph.indices[near]
    images = np.ones(total, dtype=np.int64) if counts is None else counts
    is_core = np.bincount(rows, weights=images[columns], minlength=total) + images >= min_samples
    labels = np.full(total, -1, dtype=np.int64)
    labels[is_core] = _components(rows, columns, is_core)
    at_border = ~is_core[rows] & is_core[columns]
    # Every label is below `total`, so this finds the smallest of each image's.
    smallest = np.full(total, total, dtype=np.int64)
    np.minimum.at(smallest, rows[at_border], labels[columns[at_border]])
    joins = smallest < total
    labels[joins] = smallest[joins]
    return labels


def _components(rows: NDArray[np.int64], columns: NDArray[np.int32], is_core: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of the component of each core, in the order of the components' first cores."""
    links = is_core[rows] & is_core[columns]
    entries = (np.ones(int(links.sum()), dtype=np.int8), (rows[links], columns[links]))
    _, found = connected_components(sparse.csr_matrix(entries, shape=(len(is_core),) * 2), directed=False)
    _, first, inverse = np.unique(found[is_core], return_index=True, return_inverse=True)
    numbers: NDArray[np.int64] = first.argsort().argsort()[inverse]
    return numbers
