"""From features to named identities: clusters among themselves, or after identities that are known already.

A cluster is named by the place of its first image ("0001", "0002", ...), so that the same images get the same names. An
image is assigned to the known identity that it is most similar to where the similarity is above a threshold that few
images of other identities and most of its own pass; where it is below what either asks it is new; else it is unsure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.names import UNKNOWN
from ccreid_cli.inference.search import best_matches
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.pseudo_labels.constraints import Constraints

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Cluster = Callable[[Ints], Ints]
"""Gives the rows of some images, (M,), cluster labels (M,), -1 for outliers."""

MISS_RATE = 0.05
"""Share of the known images that are less like their own identity than what is asked of a new image."""
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Thresholds:
    """When an image is taken for a known identity.

    Attributes:
        accept: It is where its similarity is above this.
        refuse: It surely is not where the similarity is below this.
        false_match_rate: Share of the known images whose similarity to an identity not their own is above `accept`.
        num_images: How many images that share is of.
    """

    accept: float
    refuse: float
    false_match_rate: float
    num_images: int

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        limits = {"accept": round(self.accept, 6), "refuse": round(self.refuse, 6)}
        return {**limits, "false_match_rate": self.false_match_rate, "num_known_images": self.num_images}


@dataclass(frozen=True, eq=False)
class Identities:
    """What N images were named.

    Attributes:
        names: N names; `UNKNOWN` for none.
        confidence: (N,) similarity to the own identity minus that to the next; of unsure images the similarity to the
            nearest known identity minus the threshold; NaN for all others.
        nearest: N names: the known identity that an unsure image may be of, else `UNKNOWN`.
        num_new: How many identities were not known before.
        thresholds: Where there were known ones.
    """

    names: tuple[str, ...]
    confidence: Floats
    nearest: tuple[str, ...]
    num_new: int
    thresholds: Thresholds | None = None

    @property
    def num_identities(self) -> int:
        """How many different names there are."""
        return len(set(self.names) - {UNKNOWN})

    @property
    def num_unsure(self) -> int:
        """How many images may be of a known identity."""
        return sum(name != UNKNOWN for name in self.nearest)

    @property
    def num_outliers(self) -> int:
        """How many images are in no identity and not unsure."""
        return self.names.count(UNKNOWN) - self.num_unsure


def name_by_clusters(features: Floats, cluster: Cluster) -> Identities:
    """Name images by their clusters alone.

    Args:
        features: (N, D) unit rows.
        cluster: Gives them labels.
    """
    labels = in_order(cluster(np.arange(len(features), dtype=np.int64)))
    names = cluster_names(int(labels.max(initial=-1)) + 1)
    confidence = margins(features, labels, centroids(features, labels))
    return Identities(_named(labels, names), confidence, (UNKNOWN,) * len(features), len(names))


def name_after_known(
    features: Floats,
    ids: Sequence[str],
    is_known: NDArray[np.bool_],
    false_match_rate: float,
    cluster: Cluster,
    constraints: Constraints | None = None,
) -> Identities:
    """Name images after known identities, and the rest by their clusters among themselves.

    An image that is known keeps its name. The names of new identities go on after the largest number among the known.

    Args:
        features: (N, D) unit rows.
        ids: N names of the images that are known; of such an image `UNKNOWN` says that it is in no identity.
        is_known: (N,) which images these are.
        false_match_rate: As of `Thresholds`.
        cluster: Gives labels to the images that are like no known identity.
        constraints: Images that show one object are taken together; of two that do not, only the more similar one is
            taken for an identity, and the other is unsure.

    Raises:
        DataError: Fewer than two identities are known.
    """
    given = [name if known else UNKNOWN for name, known in zip(ids, is_known.tolist(), strict=True)]
    old_names = sorted(set(given) - {UNKNOWN})
    places = {name: place for place, name in enumerate(old_names)} | {UNKNOWN: -1}
    labels = np.array([places[name] for name in given], dtype=np.int64)
    old = centroids(features, labels)
    thresholds = choose_thresholds(features, labels, old, false_match_rate)
    similarity, nearest = _nearest(features, old, constraints)
    fits = ~is_known & (similarity > thresholds.accept)
    if constraints:
        fits &= ~_beside_a_better_one(np.where(fits, nearest, labels), np.where(is_known, 2, similarity), constraints)
    labels[fits] = nearest[fits]
    unsure = ~is_known & ~fits & (similarity >= thresholds.refuse)
    rest = np.flatnonzero(~is_known & ~fits & ~unsure)
    new_labels = np.full(len(features), -1, dtype=np.int64)
    new_labels[rest] = in_order(cluster(rest))
    new_names = cluster_names(int(new_labels.max(initial=-1)) + 1, old_names)
    labels = np.where(new_labels >= 0, new_labels + len(old_names), labels)
    confidence = margins(features, labels, np.concatenate([old, centroids(features, new_labels)]))
    confidence[unsure] = np.minimum(similarity[unsure] - thresholds.accept, 0)
    return Identities(
        _named(labels, [*old_names, *new_names]),
        confidence,
        _named(np.where(unsure, nearest, -1), old_names),
        len(new_names),
        thresholds,
    )


def _named(labels: Ints, names: Sequence[str]) -> tuple[str, ...]:
    return tuple([names[label] if label >= 0 else UNKNOWN for label in labels.tolist()])


def _nearest(features: Floats, centres: Floats, constraints: Constraints | None) -> tuple[Floats, Ints]:
    """Return the largest similarity of each row, or of the mean of its group, to a centroid, and which one that is."""
    if constraints is None:
        best = best_matches(features, centres, 1)
        return best.similarities[:, 0], best.indices[:, 0]
    pooled = np.ascontiguousarray(constraints.pool(SplitRows(torch.from_numpy(features))).own.numpy())
    best = best_matches(pooled, centres, 1)
    return best.similarities[constraints.groups, 0], best.indices[constraints.groups, 0]


def _beside_a_better_one(labels: Ints, similarity: Floats, constraints: Constraints) -> NDArray[np.bool_]:
    """Return which rows are apart from a group of the same label that is more similar to it, (N,)."""
    first = np.unique(constraints.groups, return_index=True)[1]
    by_group, score = labels[first], similarity[first].copy()
    np.maximum.at(score, constraints.groups, similarity)
    left, right = constraints.apart[(by_group[constraints.apart] >= 0).all(axis=1)].T
    same = by_group[left] == by_group[right]
    worse = np.where(score[left[same]] >= score[right[same]], right[same], left[same])
    return np.isin(constraints.groups, worse)


def in_order(labels: Ints) -> Ints:
    """Number clusters by their first image; -1 stays."""
    clustered = labels >= 0
    _, first, inverse = np.unique(labels[clustered], return_index=True, return_inverse=True)
    ordered = np.full(len(labels), -1, dtype=np.int64)
    ordered[clustered] = np.argsort(np.argsort(first))[inverse]
    return ordered


def cluster_names(count: int, taken: Sequence[str] = ()) -> list[str]:
    """Return names for new identities: numbers of four digits or more, after the largest that is taken."""
    numbers = [int(name) for name in taken if name.isascii() and name.isdigit() and len(name) < 19]
    start = max(numbers, default=0) + 1
    return [f"{number:04d}" for number in range(start, start + count)]


def centroids(features: Floats, labels: Ints) -> Floats:
    """Return the mean of each cluster's rows, scaled to length 1, (C, D).

    Args:
        features: (N, D) unit rows.
        labels: (N,) from 0 to C - 1, -1 for rows that count in none.
    """
    rows = np.flatnonzero(labels >= 0)
    shape = (int(labels.max(initial=-1)) + 1, len(labels))
    members = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (labels[rows], rows)), shape=shape)
    sums = np.asarray(members @ features, dtype=np.float32)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    unit: Floats = (sums / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


def margins(features: Floats, labels: Ints, centres: Floats) -> Floats:
    """Return each row's similarity to its own centroid minus that to the next one; NaN for rows in no cluster.

    Where there is one centroid only, it is the similarity itself.

    Args:
        features: (N, D) unit rows.
        labels: (N,) the row of `centres` that is the own one, or -1.
        centres: (C, D) unit rows.
    """
    found = np.full(len(features), np.nan, dtype=np.float32)
    for rows in _blocks(np.flatnonzero(labels >= 0), features.shape[1]):
        own, other = own_and_other(features[rows], labels[rows], centres)
        found[rows] = own - np.where(np.isfinite(other), other, 0)
    return found


def own_and_other(features: Floats, labels: Ints, centres: Floats) -> tuple[Floats, Floats]:
    """Return the similarity of each row to its own centroid, and the largest to any other; -inf where there is none."""
    best = best_matches(features, centres, 2)
    own: Floats = np.einsum("nd,nd->n", features, centres[labels])
    others = np.where(best.indices == labels[:, None], np.float32(-np.inf), best.similarities)
    return own, others.max(axis=1)


def choose_thresholds(features: Floats, labels: Ints, centres: Floats, false_match_rate: float) -> Thresholds:
    """Choose thresholds from images whose identities are known.

    Two similarities decide. Each known image stands for a stranger: that to the nearest identity that is not its own
    is above the first for a share of at most `false_match_rate` of them. And for one more image of its identity: that
    to its own identity, without itself, is below the second for a share of `MISS_RATE`. `accept` is the larger of the
    two, `refuse` the smaller.

    Args:
        features: (K, D) unit rows.
        labels: (K,) the row of `centres` that is the own one, or -1.
        centres: (C, D) unit rows.
        false_match_rate: From 0 to 1.

    Raises:
        DataError: There are fewer than two identities.
    """
    if len(centres) < 2:
        raise DataError(
            f"the known images show {len(centres)} identities; two or more are needed to choose a threshold.",
            "Without --known, all images are clustered among themselves.",
        )
    rows = np.flatnonzero(labels >= 0)
    parts = [own_and_other(features[part], labels[part], centres)[1] for part in _blocks(rows, features.shape[1])]
    others = np.sort(np.concatenate(parts))[::-1]
    strangers = float(others[min(int(false_match_rate * len(others)), len(others) - 1)])
    own = np.sort(_without_itself(features, labels))
    members = float(own[int(MISS_RATE * len(own))]) if len(own) else strangers
    accept, refuse = max(strangers, members), min(strangers, members)
    return Thresholds(accept, refuse, float((others > accept).mean()), len(others))


def _without_itself(features: Floats, labels: Ints) -> Floats:
    """Return the similarity of each row to the mean of the other rows of its cluster, where there are others."""
    sizes = np.bincount(labels[labels >= 0])
    rows = np.flatnonzero(labels >= 0)
    rows = rows[sizes[labels[rows]] > 1]
    shape = (len(sizes), len(labels))
    members = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (labels[rows], rows)), shape=shape)
    sums = np.asarray(members @ features, dtype=np.float64)
    parts = [np.empty(0, dtype=np.float32)]
    for part in _blocks(rows, 2 * features.shape[1]):
        rest = sums[labels[part]] - features[part]
        lengths = np.linalg.norm(rest, axis=1)
        parts.append(
            (np.einsum("nd,nd->n", features[part], rest) / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        )
    return np.concatenate(parts)


def _blocks(rows: Ints, width: int) -> Iterator[Ints]:
    """Cut rows so that a copy of a block's features takes about `_BLOCK_BYTES`."""
    size = max(1, _BLOCK_BYTES // (4 * max(1, width)))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
