"""What is known of images before they are clustered: which show one object, and which do not.

Images of one tracklet show one object, and so do those that a person has given one name; tracks of one camera that are
seen at one time show different ones, and so do images that a person has given different names. What must be together is
pooled before the neighbours are searched, and shares its label by that. Clusters that hold what must be apart are taken
to pieces afterwards: see `separating`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.words import plural
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.pooling import pool_rows

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
