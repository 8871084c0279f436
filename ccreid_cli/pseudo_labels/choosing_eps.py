"""Choosing DBSCAN's eps without labels: the value whose clusters stand out most from one another.

All values are tried on one graph. Each is rated by the silhouette of its labels (Rousseeuw 1987) on the Jaccard
distance, and the ratings are smoothed over neighbouring values, so that no value wins by chance. Too small an eps
leaves images out, which count 0; too large an eps chains identities together, and they are then far from most of their
own cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ccreid_cli.pseudo_labels.density import dbscan
from ccreid_cli.pseudo_labels.jaccard import graph_from_pairs
from ccreid_cli.pseudo_labels.overlap import Pairs

EPS_VALUES = tuple(n / 1000 for n in range(300, 801, 25))
"""The values that are tried: 0.3, 0.325 and so on to 0.8."""


@dataclass(frozen=True)
class EpsTrial:
    """What one value of eps gives.

    Attributes:
        eps: The value.
        num_clusters: How many clusters there are.
        num_outliers: How many images are in none.
        silhouette: As `silhouette` has it.
        score: A quarter of the silhouettes of both neighbouring values and half of its own.
    """

    eps: float
    num_clusters: int
    num_outliers: int
    silhouette: float
    score: float


@dataclass(frozen=True)
class EpsChoice:
    """Which eps was chosen, and what each value would have given.

    Attributes:
        eps: The chosen value.
        trials: All values, ascending.
    """

    eps: float
    trials: tuple[EpsTrial, ...]

    @property
    def chosen(self) -> EpsTrial:
        """The trial of the chosen value."""
        return next(trial for trial in self.trials if trial.eps == self.eps)

    def why(self) -> str:
        """Return the choice and its reason as a sentence."""
        return (
            f"eps {self.eps:g}: its clusters are the most distinct of {self.trials[0].eps:g} to "
            f"{self.trials[-1].eps:g} (mean silhouette {self.chosen.silhouette:.3f}, an outlier counting 0)."
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"eps": self.eps, "why": self.why(), "trials": [asdict(trial) for trial in self.trials]}


def choose_eps(pairs: Pairs, total: int, min_samples: int, counts: NDArray[np.int64] | None = None) -> EpsChoice:
    """Try every value and choose the one with the best score; of equal ones the smallest.

    Args:
        pairs: All whose distance is at most the largest of `EPS_VALUES`.
        total: How many rows there are, N.
        min_samples: As for `dbscan`.
        counts: Likewise. A row of several images counts once in the silhouette.
    """
    similarities = _similarities(graph_from_pairs(pairs, total))
    images = np.ones(total, dtype=np.int64) if counts is None else counts
    found = [dbscan(pairs, total, eps, min_samples, images) for eps in EPS_VALUES]
    silhouettes = [_mean_silhouette(similarities, labels) for labels in found]
    trials = tuple(
        EpsTrial(eps, int(labels.max(initial=-1)) + 1, int(images[labels < 0].sum()), silhouette, score)
        for eps, labels, silhouette, score in zip(EPS_VALUES, found, silhouettes, smoothed(silhouettes), strict=True)
    )
    # A single cluster tells nothing apart, whatever its neighbours score.
    usable = [trial for trial in trials if trial.num_clusters > 1] or trials
    return EpsChoice(max(usable, key=lambda trial: trial.score).eps, trials)


def smoothed(values: Sequence[float]) -> list[float]:
    """Weigh each value with its neighbours, 1 : 2 : 1; the first and the last have themselves for one neighbour.

    Rounded, so that machines that add in another order agree.
    """
    padded = [values[0], *values, values[-1]]
    return [round((padded[n] + 2 * padded[n + 1] + padded[n + 2]) / 4, 9) for n in range(len(values))]


def silhouette(graph: sparse.csr_matrix, labels: NDArray[np.int64]) -> float:
    """Mean silhouette of all images: how much nearer they are to their own cluster than to any other.

    An image's silhouette is (b - a) / max(a, b), with a the mean distance to the others of its own cluster and b the
    smallest mean distance to another cluster. Outliers count 0; fewer than two clusters give 0.

    Args:
        graph: (N, N) symmetric distances in [0, 1]; pairs that are not stored count as 1.
        labels: (N,), -1 for outliers.
    """
    return _mean_silhouette(_similarities(graph), labels)


def _similarities(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    """One minus the distance of each stored pair, in float64, without the diagonal."""
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    values = np.where(rows == graph.indices, 0.0, 1.0 - graph.data.astype(np.float64))
    return sparse.csr_matrix((values, graph.indices, graph.indptr), shape=graph.shape)


def _mean_silhouette(similarities: sparse.csr_matrix, labels: NDArray[np.int64]) -> float:
    clustered = np.flatnonzero(labels >= 0)
    sizes = np.bincount(labels[clustered])
    if len(sizes) < 2:
        return 0.0
    members = sparse.csr_matrix(
        (np.ones(len(clustered)), (clustered, labels[clustered])), shape=(len(labels), len(sizes))
    )
    sums = (similarities[clustered] @ members).tocsr()  # (clustered images, clusters): only where any pair is stored
    rows, columns = np.repeat(np.arange(len(clustered)), np.diff(sums.indptr)), sums.indices
    own = labels[clustered]
    is_own = columns == own[rows]
    nearness = np.zeros(len(clustered))
    nearness[rows[is_own]] = sums.data[is_own] / np.maximum(sizes[columns[is_own]] - 1, 1)
    nearest_other = np.zeros(len(clustered))
    np.maximum.at(nearest_other, rows[~is_own], sums.data[~is_own] / sizes[columns[~is_own]])
    farther = 1.0 - np.minimum(nearness, nearest_other)
    differences = nearness - nearest_other
    known = (farther > 0) & (sizes[own] > 1)  # an image alone in its cluster counts 0, as in the paper
    ratios = np.divide(differences, farther, out=np.zeros(len(clustered)), where=known)
    return float(ratios.sum() / len(labels))
