"""Re-ranking of query-gallery distances by k-reciprocal neighbours.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, arXiv 1701.08398. It
shares its neighbours, sets and weights with the pseudo-labels; only the exponent of the weights differs: the squared
distance d = (2 - 2·cos)², divided by the largest in its row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.device import exact_product, one_thread
from ccreid_cli.pseudo_labels.dense_overlap import OverlapSums
from ccreid_cli.pseudo_labels.jaccard import reciprocal_weights
from ccreid_cli.pseudo_labels.neighbors import FeatureArray, FeatureTable


def rerank_blocks(
    query_features: FeatureArray,
    gallery_features: FeatureArray,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    device: torch.device | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Re-ranked distances, some queries at a time: memory grows with (Q + G)·k1 and one block of Q × G.

    Args:
        query_features: Unit rows, (Q, D).
        gallery_features: Unit rows, (G, D).
        k1: Nearest neighbours, the image itself not counted.
        k2: Neighbours whose weights are averaged, the image itself included.
        lambda_value: Share of the original distance; the rest is Jaccard distance.
        device: Where to compute; None keeps tensors where they are.

    Yields:
        Distances of the next queries, (n, G) float32.
    """
    num_queries = len(query_features)
    if num_queries == 0:
        return
    rows = torch.cat([torch.as_tensor(part).float() for part in (query_features, gallery_features)])
    table = FeatureTable(rows, device)
    similarities, indices = table.nearest(k1 + 1)
    largest = _squared_distance(table.farthest()).clamp_min(torch.finfo(torch.float64).tiny)

    def affinity(owners: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
        return -_squared_distance(cosines) / largest[owners]

    weights, scale = reciprocal_weights(table, similarities, indices, k1, k2, affinity)
    sums = OverlapSums(weights, scale)
    gallery = table.own[num_queries:].T
    for first, last in sums.blocks(0, num_queries):
        original = _squared_distance(exact_product(table.own[first:last], gallery)) / largest[first:last, None]
        with one_thread():
            jaccard = sums.distances(first, last)[:, num_queries:]
        yield (jaccard * (1 - lambda_value) + original * lambda_value).float().cpu().numpy()


def _squared_distance(cosines: torch.Tensor) -> torch.Tensor:
    """(2 - 2·cos)² in double precision."""
    return (2.0 - 2.0 * cosines.double()).clamp_min(0.0).square()
