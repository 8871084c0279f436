"""What is known of images before they are clustered: which show one object, and which do not.

Images of one tracklet show one object, and so do those that a person has given one name; tracks of one camera that are
seen at one time show different ones, and so do images that a person has given different names. What must be together is
pooled before the neighbours are searched, and shares its label by that. Clusters that hold what must be apart are taken
to pieces afterwards: their members are joined again, the most similar first, but for joins that would bring such a pair
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.words import plural
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.neighbors import FeatureTable

Ints = NDArray[np.int64]

_HINT = "Mend the file that says so: tracklet, frame and checked are columns of a manifest."


@dataclass(frozen=True, eq=False)
class Constraints:
    """What is known of N images, which make up G groups.

    Attributes:
        groups: (N,) group of each image, 0 to G - 1, numbered by their first images: one group shows one object.
        apart: (P, 2) pairs of groups, the smaller first, that show different objects.
        identities: (G,) number of the name that a person has given, -1 for none: different names are apart, too.
        in_none: (N,) bool, whether a person says that the image is in no cluster.
    """

    groups: Ints
    apart: Ints
    identities: Ints
    in_none: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self.identities)

    def sizes(self) -> Ints:
        """Return how many images each group has, (G,)."""
        return np.bincount(self.groups, minlength=self.num_groups)

    def in_words(self) -> str:
        """Say how much is known."""
        return (
            f"known beforehand: {plural(len(self), 'image')} are {self.num_groups:,} tracks or single images, "
            f"{plural(len(self.apart), 'pair')} of them of different objects, and a person has named "
            f"{int((self.identities >= 0).sum()):,}"
        )

    def scaled(self, settings: ClusterSettings) -> ClusterSettings:
        """Return settings with fewer neighbours, as these stand for several images each."""
        share = self.num_groups / max(1, len(self))
        k1, k2 = (max(1, round(share * k)) for k in (settings.k1, settings.k2))
        return replace(settings, k1=k1, k2=k2)

    def pool(self, rows: SplitRows) -> SplitRows:
        """Return the mean of each group's rows, (G, D): see `pool_rows`."""
        return pool_rows(rows, self.groups)

    def spread(self, labels: Ints) -> Ints:
        """Return the labels of the images, (N,), from those of the groups, (G,)."""
        return np.where(self.in_none, -1, labels[self.groups])

    def select(self, images: Ints) -> Constraints:
        """Return what is known of some images, in their order."""
        kept, groups = np.unique(self.groups[images], return_inverse=True)
        first = np.full(len(kept), len(images), dtype=np.int64)
        np.minimum.at(first, groups, np.arange(len(images)))
        numbers = np.full(self.num_groups, -1, dtype=np.int64)
        numbers[kept[np.argsort(first)]] = np.arange(len(kept))
        pairs = numbers[self.apart]
        identities = np.full(len(kept), -1, dtype=np.int64)
        identities[numbers[kept]] = self.identities[kept]
        return Constraints(
            numbers[self.groups[images]],
            _ordered_pairs(pairs[(pairs >= 0).all(axis=1)]),
            identities,
            self.in_none[images],
        )


def pool_rows(rows: SplitRows, groups: Ints) -> SplitRows:
    """Return the mean of each group's rows, scaled to length 1, (G, D).

    Args:
        rows: (N, D) unit rows.
        groups: (N,) group of each row, 0 to G - 1.
    """
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    device, rounds = rows.own.device, []
    for place in range(int(sizes.max(initial=0))):  # one row of each group at a time: in a fixed order
        longer = np.flatnonzero(sizes > place)
        images = order[starts[longer] + place]
        rounds.append((torch.from_numpy(longer).to(device), torch.from_numpy(images).to(device)))

    def summed(columns: torch.Tensor) -> torch.Tensor:
        sums = columns.new_zeros((len(sizes), columns.shape[1]))
        for longer, images in rounds:
            sums[longer] += columns[images]
        return sums

    sums = rows.by_columns(summed, len(sizes))
    lengths = torch.linalg.vector_norm(sums.own, dim=1, keepdim=True, dtype=torch.float64)
    return sums.with_own((sums.own / lengths.clamp(min=1e-12)).float())


class KnownOfImages(Protocol):
    """What a list of N images comes with."""

    @property
    def tracklets(self) -> Sequence[str]:
        """N names of tracks of one camera; empty for none."""

    @property
    def times(self) -> NDArray[np.float64]:
        """(N,) number of the frame, or seconds; NaN for unknown."""

    @property
    def checked(self) -> NDArray[np.bool_]:
        """(N,) bool, whether a person has confirmed the identity, or that there is none."""


def find_constraints(
    names: Sequence[str], cameras: Sequence[str], ids: Sequence[str], known: KnownOfImages | None
) -> Constraints | None:
    """Find out which images show one object and which do not.

    Args:
        names: N names, for messages.
        cameras: N names of cameras; empty for unknown. Where all are unknown there is one camera.
        ids: N names of identities; empty for none. Only those of checked images count.
        known: What else is known of the images.

    Returns:
        What is known, or None where nothing is.

    Raises:
        DataError: It contradicts itself; two images for which it does are named.
    """
    if known is None:
        return None
    times, checked = known.times, known.checked
    tracks = _numbers(known.tracklets)
    persons = np.where(checked, _numbers(ids), -1)
    _check_cameras(names, tracks, cameras)
    groups = _joined(tracks, persons)
    identities = _identities(names, groups, persons)
    overlapping = _at_one_time(tracks, _camera_numbers(cameras), times)
    apart = groups[overlapping]
    together = np.flatnonzero(apart[:, 0] == apart[:, 1])
    if len(together):
        one, other = overlapping[together[0]].tolist()
        raise _contradiction(names, one, other, "are of one object and seen by one camera at one time")
    in_none = checked & (persons < 0)
    if len(identities) == len(names) and not len(apart) and (identities < 0).all() and not in_none.any():
        return None
    return Constraints(groups, _ordered_pairs(apart), identities, in_none)


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


def _numbers(names: Sequence[str]) -> Ints:
    """Number names by their first places; an empty one is -1."""
    places: dict[str, int] = {}
    return np.array([places.setdefault(name, len(places)) if name else -1 for name in names], dtype=np.int64)


def _camera_numbers(cameras: Sequence[str]) -> Ints:
    """Number cameras, -1 for unknown ones; where nothing is known all images are of one camera."""
    numbers = _numbers(cameras)
    return numbers if (numbers >= 0).any() else np.zeros_like(numbers)


def _check_cameras(names: Sequence[str], tracks: Ints, cameras: Sequence[str]) -> None:
    first: dict[int, int] = {}
    for image, track in enumerate(tracks.tolist()):
        if track >= 0 and cameras[first.setdefault(track, image)] != cameras[image]:
            raise _contradiction(
                names,
                first[track],
                image,
                "are of one tracklet and of two cameras",
                "Name the tracklets of each camera differently, as in 1-0005 and 2-0005.",
            )


def _joined(*keys: Ints) -> Ints:
    """Number the sets of images that are connected by equal keys, by their first images; -1 connects nothing."""
    total = len(keys[0])
    links = []
    for key in keys:
        members = np.flatnonzero(key >= 0)
        members = members[np.argsort(key[members], kind="stable")]
        same = key[members[:-1]] == key[members[1:]]
        links.append(np.stack([members[:-1][same], members[1:][same]]))
    rows, columns = np.concatenate(links, axis=1)
    graph = sparse.coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(total, total))
    found = connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    numbers: Ints = np.argsort(np.argsort(first))[inverse].astype(np.int64)
    return numbers


def _identities(names: Sequence[str], groups: Ints, persons: Ints) -> Ints:
    """Return the confirmed identity of each group, -1 for none."""
    identities = np.full(int(groups.max(initial=-1)) + 1, -1, dtype=np.int64)
    by: dict[int, int] = {}
    for image in np.flatnonzero(persons >= 0).tolist():
        group, person = int(groups[image]), int(persons[image])
        if identities[group] >= 0 and identities[group] != person:
            raise _contradiction(names, by[group], image, "are of one tracklet and confirmed as two identities")
        identities[group] = person
        by.setdefault(group, image)
    return identities


def _at_one_time(tracks: Ints, cameras: Ints, times: NDArray[np.float64]) -> Ints:
    """Return pairs of images, (P, 2), of tracks of one camera whose times overlap: the first image of each track.

    An image without a tracklet is a track of its own.
    """
    timed = np.flatnonzero(np.isfinite(times) & (cameras >= 0))
    alone = np.where(tracks < 0, int(tracks.max(initial=-1)) + 1 + np.arange(len(tracks)), tracks)[timed]
    _, first, unit = np.unique(alone, return_index=True, return_inverse=True)
    begins, ends = np.full(len(first), np.inf), np.full(len(first), -np.inf)
    np.minimum.at(begins, unit, times[timed])
    np.maximum.at(ends, unit, times[timed])
    images = timed[first]
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for camera in np.unique(cameras[images]).tolist():
        here = np.flatnonzero(cameras[images] == camera)
        here = here[np.lexsort((images[here], begins[here]))]
        until = np.searchsorted(begins[here], ends[here], side="right")
        counts = until - np.arange(len(here)) - 1
        owners = np.repeat(np.arange(len(here)), counts)
        others = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts) + owners + 1
        pairs.append(np.stack([images[here[owners]], images[here[others]]], axis=1))
    return np.concatenate(pairs)


def _ordered_pairs(pairs: Ints) -> Ints:
    return np.unique(np.sort(pairs.reshape(-1, 2), axis=1), axis=0)


def _contradiction(names: Sequence[str], one: int, other: int, what: str, hint: str = _HINT) -> DataError:
    return DataError(f"{names[one]} and {names[other]} {what}.", hint)
