"""Pseudo-labels as a plain baseline: dense N x N arrays and a loop over images, to test and to time against.

Run as a script it labels a feature file both ways, in the same process:
``python tests/support/baseline.py FEATURES.npz --eps 0.5``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score

from ccreid_cli.bench.base import read_rows
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def label(features: Floats, eps: float, k1: int = 30, k2: int = 6) -> Ints:
    """DBSCAN on the dense k-reciprocal Jaccard distance."""
    return np.asarray(DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(jaccard(features, k1, k2)).labels_)


def jaccard(features: Floats, k1: int, k2: int) -> Floats:
    """All distances, (N, N) float32, with two more arrays of that size on the way."""
    similarity = features @ features.T
    order = np.argsort(-similarity, axis=1)[:, :k1]
    total = len(features)
    near, half = [reciprocal(order, i, k1) for i in range(total)], round(k1 / 2) + 1
    nearer = [reciprocal(order, i, half) for i in range(total)]
    weights = np.zeros((total, total), dtype=np.float32)
    for i, own in enumerate(near):
        found = [own, *(nearer[c] for c in own if 3 * len(np.intersect1d(nearer[c], own)) > 2 * len(nearer[c]))]
        members = np.unique(np.concatenate(found))
        exponentials = np.exp(2 * similarity[i, members])
        weights[i, members] = exponentials / exponentials.sum()
    if k2 > 1:
        weights = np.stack([weights[order[i, :k2]].mean(axis=0) for i in range(total)])
    holders = [np.flatnonzero(column) for column in weights.T]
    distances = np.empty((total, total), dtype=np.float32)
    for i in range(total):
        overlap = np.zeros(total, dtype=np.float32)
        for c in np.flatnonzero(weights[i]):
            overlap[holders[c]] += np.minimum(weights[i, c], weights[holders[c], c])
        distances[i] = np.maximum(1 - overlap / (2 - overlap), 0)
    return distances


def reciprocal(order: Ints, i: int, k: int) -> Ints:
    """The first k neighbours of i that have i among their own first k."""
    forward = order[i, :k]
    return forward[(order[forward, :k] == i).any(axis=1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--eps", type=float, default=0.5)
    options = parser.parse_args()
    rows = read_rows(options.file)
    start = time.perf_counter()
    ours = pseudo_labels(rows, ClusterSettings(eps=options.eps)).labels
    middle = time.perf_counter()
    plain = label(rows.numpy(), options.eps)
    seconds = {"ccreid": middle - start, "baseline": time.perf_counter() - middle}
    print(json.dumps({**seconds, "ari": adjusted_rand_score(plain, ours), "clusters": int(ours.max()) + 1}))


if __name__ == "__main__":
    main()
