"""Clusters that keep to constraints: taken to pieces where they hold what must be apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.constraints import Constraints
from ccreid_cli.pseudo_labels.neighbors import FeatureTable

Ints = NDArray[np.int64]


def separate(table: FeatureTable, labels: Ints, constraints: Constraints, settings: ClusterSettings) -> Ints:
    """Take clusters to pieces until none holds groups that must be apart.

    The members of such a cluster start alone and are joined along the pairs of their k nearest within it, the most
    similar first, unless the two pieces hold groups that must be apart: so no piece does, by whatever chain.

    Args:
        table: The pooled rows of the G groups.
        labels: (G,) their labels, -1 for outliers.
        constraints: What must be apart.
        settings: `k1` neighbours are taken within the cluster; pieces of fewer than `min_samples` images become
            outliers.

    Returns:
        Labels (G,), numbered by their first groups where anything was taken to pieces.
    """
    conflicts = _conflicts(labels, constraints)
    if not len(conflicts):
        return labels
    labels, sizes = labels.copy(), constraints.sizes()
    fresh = int(labels.max()) + 1
    for cluster in conflicts.tolist():
        members = np.flatnonzero(labels == cluster)
        pieces = _pieces(table, members, constraints, settings.k1)
        large = np.bincount(pieces, weights=sizes[members]) >= settings.min_samples
        labels[members] = np.where(large[pieces], fresh + pieces, -1)
        fresh += len(large)
    clustered = labels >= 0
    _, first, inverse = np.unique(labels[clustered], return_index=True, return_inverse=True)
    labels[clustered] = np.argsort(np.argsort(first))[inverse]
    return labels


def _conflicts(labels: Ints, constraints: Constraints) -> Ints:
    """Return the clusters that hold what must be apart, ascending."""
    left, right = labels[constraints.apart.T]
    named = (constraints.identities >= 0) & (labels >= 0)
    pairs = np.unique(np.stack([labels[named], constraints.identities[named]], axis=1), axis=0)
    several, counts = np.unique(pairs[:, 0], return_counts=True)
    return np.union1d(left[(left == right) & (left >= 0)], several[counts > 1])


def _pieces(table: FeatureTable, members: Ints, constraints: Constraints, k: int) -> Ints:
    """Number the pieces of one cluster, (M,), from 0."""
    inside = FeatureTable(table.take(members), table.device)
    similarities, indices = (part.cpu().numpy() for part in inside.nearest(k))
    owners = np.repeat(np.arange(len(members)), indices.shape[1])
    left, right = np.minimum(owners, indices.ravel()), np.maximum(owners, indices.ravel())
    order = np.lexsort((right, left, -similarities.ravel()))
    places = np.full(constraints.num_groups, -1, dtype=np.int64)
    places[members] = np.arange(len(members))
    pairs = places[constraints.apart]
    pieces = _Pieces(constraints.identities[members].tolist(), pairs[(pairs >= 0).all(axis=1)].tolist())
    for one, other in zip(left[order].tolist(), right[order].tolist(), strict=True):
        pieces.join(one, other)
    return np.unique([pieces.find(place) for place in range(len(members))], return_inverse=True)[1].astype(np.int64)


class _Pieces:
    """Pieces that grow by joining, but never so that one holds a forbidden pair or two names."""

    def __init__(self, identities: list[int], forbidden: list[list[int]]) -> None:
        self._parents = list(range(len(identities)))
        self._identities = identities
        self._enemies: list[set[int]] = [set() for _ in identities]
        for one, other in forbidden:
            self._enemies[one].add(other)
            self._enemies[other].add(one)

    def find(self, place: int) -> int:
        """Return what the piece that holds `place` is called."""
        while self._parents[place] != place:
            self._parents[place] = self._parents[self._parents[place]]
            place = self._parents[place]
        return place

    def join(self, one: int, other: int) -> None:
        """Make one piece of two, where that may be."""
        one, other = self.find(one), self.find(other)
        names = self._identities[one], self._identities[other]
        if one == other or other in self._enemies[one] or (min(names) >= 0 and names[0] != names[1]):
            return
        if len(self._enemies[one]) < len(self._enemies[other]):
            one, other = other, one
        self._parents[other] = one
        self._identities[one] = max(names)
        for enemy in self._enemies[other]:
            self._enemies[enemy].discard(other)
            self._enemies[enemy].add(one)
        self._enemies[one] |= self._enemies[other]
        self._enemies[other] = set()
