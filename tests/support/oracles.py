"""Slow and plain versions with dense arrays, to test against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ccreid_cli.pseudo_labels.overlap import Pairs


def unit_rows(rng: np.random.Generator, total: int, dim: int = 16, clusters: int = 0) -> NDArray[np.float32]:
    """Random unit rows, around `clusters` centres when given."""
    rows = rng.normal(size=(total, dim))
    if clusters:
        rows = 0.35 * rows + rng.normal(size=(clusters, dim))[rng.integers(clusters, size=total)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def ranking(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Similarities of all pairs, rounded to float32, and all columns in order: self, then similarity, then number."""
    wide = features.astype(np.float64)
    similarities = (wide @ wide.T).astype(np.float32)
    keys = similarities.astype(np.float64)
    np.fill_diagonal(keys, np.inf)
    return similarities, np.argsort(-keys, axis=1, kind="stable")


def jaccard_distance(
    order: NDArray[np.int64], exponents: NDArray[np.float64], k1: int, half: int, k2: int
) -> NDArray[np.float64]:
    """k-reciprocal Jaccard distance, dense, with sets and loops as in the paper's text."""
    total = len(order)

    def reciprocal(i: int, k: int) -> set[int]:
        return {int(j) for j in order[i, :k] if i in order[j, :k]}

    weights = np.zeros((total, total))
    for i in range(total):
        own = reciprocal(i, k1)
        expanded = set(own)
        for candidate in own:
            theirs = reciprocal(candidate, half)
            if len(theirs & own) > 2 / 3 * len(theirs):
                expanded |= theirs
        members = sorted(expanded)
        exponentials = np.exp(exponents[i, members])
        weights[i, members] = exponentials / exponentials.sum()
    if k2 != 1:
        weights = np.stack([weights[order[i, :k2]].mean(axis=0) for i in range(total)])
    overlap = np.stack([np.minimum(row, weights).sum(axis=1) for row in weights])
    return np.maximum(1 - overlap / (2 - overlap), 0)


def dense(graph: object) -> NDArray[np.float32]:
    """All distances of a sparse graph whose missing pairs are at distance 1."""
    entries = graph.tocoo()  # type: ignore[attr-defined]  # a scipy matrix
    distances = np.ones(entries.shape, dtype=np.float32)
    distances[entries.row, entries.col] = entries.data
    return distances


def pairs_of(graph: sparse.csr_matrix) -> Pairs:
    """The pairs i < j that a symmetric graph stores."""
    entries = graph.tocoo()
    upper = entries.row < entries.col
    return Pairs(entries.row[upper], entries.col[upper], entries.data[upper])
