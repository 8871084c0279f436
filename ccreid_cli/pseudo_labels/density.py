"""DBSCAN on pairs of near images: the connected components of images that have enough neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from ccreid_cli.machine.distributed import Group
from ccreid_cli.pseudo_labels.overlap import Pairs


def dbscan(
    pairs: Pairs,
    total: int,
    eps: float,
    min_samples: int = 4,
    counts: NDArray[np.int64] | None = None,
    group: Group | None = None,
) -> NDArray[np.int64]:
    """Cluster by density (Ester et al., KDD 1996), as scikit-learn does, to the label.

    Pairs stay where they are: processes add up how many neighbours each image has, and then tell one another the
    smallest number of each component, until no process connects two.

    Args:
        pairs: Pairs i < j, each in one process; pairs that are nowhere are far apart.
        total: How many images there are, N.
        eps: Largest distance of two neighbours.
        min_samples: Images within eps, itself included, that make an image a core of a cluster.
        counts: How many images each row stands for, (N,); None for one each.
        group: The processes that hold pairs.

    Returns:
        Labels (N,), in the order of the clusters' first core images; -1 marks outliers. An image that is no core joins
        the first of the clusters that have a core near it. The same in every process.
    """
    group = group or Group()
    near = pairs.distances <= eps
    rows, columns = pairs.rows[near], pairs.columns[near]
    images = np.ones(total, dtype=np.int64) if counts is None else counts
    own = sum(
        np.bincount(here, weights=None if counts is None else images[there], minlength=total).astype(np.int64)
        for here, there in ((rows, columns), (columns, rows))
    )
    is_core = _shared(group.sum_, np.asarray(own), group) + images >= min_samples
    labels = np.full(total, -1, dtype=np.int64)
    labels[is_core] = _components(rows, columns, is_core, group)
    # Every label is below `total`, so this finds the smallest of each image's.
    smallest = np.full(total, total, dtype=np.int64)
    for here, there in ((rows, columns), (columns, rows)):
        at_border = ~is_core[here] & is_core[there]
        np.minimum.at(smallest, here[at_border], labels[there[at_border]])
    smallest = _shared(group.minimum_, smallest, group)
    joins = smallest < total
    labels[joins] = smallest[joins]
    return labels


def _components(
    rows: NDArray[np.int32], columns: NDArray[np.int32], is_core: NDArray[np.bool_], group: Group
) -> NDArray[np.int64]:
    """Number of the component of each core, in the order of the components' first cores."""
    links = is_core[rows] & is_core[columns]
    entries = (np.ones(int(links.sum()), dtype=np.int8), (rows[links], columns[links]))
    _, found = connected_components(sparse.csr_matrix(entries, shape=(len(is_core),) * 2), directed=False)
    firsts = np.arange(len(is_core))
    while True:
        lowest = np.full(len(is_core), len(is_core), dtype=np.int64)
        np.minimum.at(lowest, found, firsts)
        agreed = _shared(group.minimum_, lowest[found], group)
        if not group.maximum(int((agreed != firsts).any())):
            break
        firsts = agreed
    numbers: NDArray[np.int64] = np.unique(firsts[is_core], return_inverse=True)[1].astype(np.int64)
    return numbers


def _shared(
    reduce: Callable[[torch.Tensor], torch.Tensor], values: NDArray[np.int64], group: Group
) -> NDArray[np.int64]:
    reduced: NDArray[np.int64] = reduce(torch.from_numpy(values).to(group.device)).cpu().numpy()
    return reduced
