"""Where clusters are most likely wrong: parts of one that may be another identity, and others that may be the same.

For each cluster one question is made: are these groups of images the same as its largest part? The groups are its own
other parts (average linkage within the cluster, as a smaller eps would split it) and the nearest other clusters and
outliers (as a larger eps would join them). Questions are ordered by the pairs of images that are expected to be wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

MOST_INSIDE, MOST_OUTSIDE = 12, 16
"""Parts that a cluster is shown in, and other groups that are shown beside them."""
IMAGES_PER_PART = 3
_NEAR = 48
"""Nearest groups that are kept for each cluster, for when some of them are answered."""
_BLOCK = 256
"""Clusters that are compared with all others at once."""
_LINKED = 600
"""Images of one cluster that are linked with each other; of a larger one, the others join the nearest part."""

Images = tuple[int, ...]


@dataclass(frozen=True)
class Doubtful:
    """A group of images that may be on the wrong side.

    Attributes:
        images: The images, the most typical one first; of a whole other cluster only that one.
        whole: Whether they are a whole other cluster.
        size: How many images they are.
        inside: Whether they are in the cluster in question, and may not belong there; else they are not, and may.
        likelihood: How likely that is, 0 to 1.
    """

    images: Images
    whole: bool
    size: int
    inside: bool
    likelihood: float


@dataclass(frozen=True)
class Doubt:
    """A cluster and what is doubtful about it.

    Attributes:
        cluster: Its number.
        anchor: Its largest part, the most typical image first.
        groups: What may not belong to it, then what may, the likeliest first.
        wrong_pairs: How many pairs of images are expected to be on wrong sides: the order of questions.
    """

    cluster: int
    anchor: Images
    groups: tuple[Doubtful, ...]
    wrong_pairs: float

    @property
    def wrong_inside(self) -> float:
        """Of these pairs, those of its own images."""
        return sum(group.likelihood * group.size * len(self.anchor) for group in self.groups if group.inside)


@dataclass(frozen=True)
class _Cluster:
    """What is computed once for a cluster as it is: its parts, and its nearest groups."""

    parts: tuple[Images, ...]
    part_similarities: NDArray[np.float32]
    near: tuple[int, ...]
    near_similarities: NDArray[np.float32]


def find_doubts(features: NDArray[np.float32], labels: NDArray[np.int64]) -> list[Doubt]:
    """Return a question for each doubtful cluster, the most doubtful first.

    Args:
        features: (N, D) float32 unit rows.
        labels: (N,) clusters, -1 for outliers.
    """
    members = {number: np.flatnonzero(labels == number).tolist() for number in np.unique(labels[labels >= 0]).tolist()}
    finder = DoubtFinder(features)
    finder.update(members, np.flatnonzero(labels < 0).tolist())
    return finder.find(members, {image: number for number, images in members.items() for image in images})


class DoubtFinder:
    """Finds doubts again and again while clusters change; only what changed is computed anew.

    Args:
        features: (N, D) float32 unit rows.
    """

    def __init__(self, features: NDArray[np.float32]) -> None:
        self._features = features
        self._clusters: dict[int, _Cluster] = {}
        self._centres: dict[int, NDArray[np.float32]] = {}
        self._middle, self._width = 0.5, 0.1

    def update(
        self, members: Mapping[int, Collection[int]], outliers: Sequence[int], changed: Iterable[int] | None = None
    ) -> None:
        """Take note of clusters that are new, gone or have other images.

        Args:
            members: Cluster number -> its images.
            outliers: Images in none.
            changed: The numbers of these clusters; None computes all.
        """
        numbers = list(members if changed is None else changed)
        for number in numbers:
            self._clusters.pop(number, None)
            self._centres.pop(number, None)
        numbers = [number for number in numbers if number in members]
        if numbers:
            parts = {number: self._parts(np.array(sorted(members[number]))) for number in numbers}
            self._add(members, outliers, parts)
        if changed is None:
            self._calibrate()

    def find(
        self,
        members: Mapping[int, Collection[int]],
        cluster_of: Mapping[int, int],
        *,
        settled: Collection[int] = (),
        answered: Collection[tuple[int, int]] = (),
        left_out: Collection[int] = (),
    ) -> list[Doubt]:
        """Return a question for each cluster that is doubtful, the most doubtful first.

        Args:
            members: Cluster number -> its images, as given to `update`.
            cluster_of: Image -> its cluster, of images that are in one.
            settled: Clusters whose inside is not doubted any more.
            answered: (image, image) pairs that were answered: groups joined by one are not asked about again.
            left_out: Images that are in no cluster and in no question.
        """
        # A group is known by its cluster, or by its image where it is an outlier: -1 - image.
        groups = {image: cluster_of.get(image, -1 - image) for pair in answered for image in pair}
        asked: dict[int, set[int]] = {}
        for first, second in answered:
            asked.setdefault(groups[first], set()).add(groups[second])
            asked.setdefault(groups[second], set()).add(groups[first])
        put_aside = frozenset(left_out)
        found = []
        for number, cluster in self._clusters.items():
            inside = () if number in settled else self._inside(cluster)
            anchor = cluster.parts[0] if inside else tuple(image for part in cluster.parts for image in part)
            outside = self._outside(number, cluster, members, cluster_of, asked.get(number, set()), put_aside)
            wrong = sum(group.likelihood * group.size * len(anchor) for group in (*inside, *outside))
            if inside or outside:
                found.append(Doubt(number, anchor, (*inside, *outside), wrong))
        return sorted(found, key=lambda doubt: (-doubt.wrong_pairs, doubt.cluster))

    def _inside(self, cluster: _Cluster) -> tuple[Doubtful, ...]:
        likelihoods = 1 - self._same(cluster.part_similarities)
        return tuple(
            Doubtful(part, False, len(part), True, float(likelihood))
            for part, likelihood in zip(cluster.parts[1:], likelihoods, strict=True)
        )

    def _outside(
        self,
        number: int,
        cluster: _Cluster,
        members: Mapping[int, Collection[int]],
        cluster_of: Mapping[int, int],
        asked: Collection[int],
        put_aside: frozenset[int],
    ) -> tuple[Doubtful, ...]:
        found: dict[int, Doubtful] = {}
        for image, likelihood in zip(cluster.near, self._same(cluster.near_similarities), strict=True):
            group = cluster_of.get(image, -1 - image)
            if group == number or group in found or group in asked or (group < 0 and image in put_aside):
                continue
            size = len(members[group]) if group >= 0 else 1
            found[group] = Doubtful((image,), group >= 0, size, False, float(likelihood))
            if len(found) == MOST_OUTSIDE:
                break
        return tuple(found.values())

    def _add(
        self, members: Mapping[int, Collection[int]], outliers: Sequence[int], parts: Mapping[int, tuple[Images, ...]]
    ) -> None:
        """Find the parts' similarities and the nearest groups of the clusters in `parts`."""
        groups = [*members, *(-1 - image for image in outliers)]
        for number in members:
            if number not in self._centres:
                self._centres[number] = self._centre(list(members[number]))
        centres = np.concatenate(
            [
                *([np.stack([self._centres[number] for number in members])] if members else []),
                self._features[list(outliers)],
            ]
        )
        positions = {group: row for row, group in enumerate(groups)}
        count = min(_NEAR, len(groups) - 1)
        for start in range(0, len(parts), _BLOCK):
            numbers = list(parts)[start : start + _BLOCK]
            anchors = np.stack([self._centre(parts[number][0]) for number in numbers])
            for number, anchor, similarities in zip(numbers, anchors, anchors @ centres.T, strict=True):
                similarities[positions[number]] = -2
                near = np.argpartition(-similarities, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
                near = near[np.lexsort((near, -similarities[near]))]
                within = np.array([self._centre(part) @ anchor for part in parts[number][1:]], dtype=np.float32)
                typical = tuple(self._typical(groups[place], members) for place in near.tolist())
                self._clusters[number] = _Cluster(parts[number], within, typical, similarities[near])

    def _parts(self, images: NDArray[np.int64]) -> tuple[Images, ...]:
        """Split a cluster by average linkage of cosines; the largest part first, in each the most typical image."""
        count = min(1 + MOST_INSIDE, -(-len(images) // IMAGES_PER_PART))
        labels = np.zeros(len(images), dtype=np.int64)
        if count > 1:
            some = np.unique(np.linspace(0, len(images) - 1, min(len(images), _LINKED)).astype(np.int64))
            rows = self._features[images[some]]
            distances = np.clip(1 - rows @ rows.T, 0, None)[np.triu_indices(len(some), 1)]
            of_some = fcluster(linkage(distances, "average"), count, "maxclust") - 1
            centres = np.stack([self._centre(images[some[of_some == part]]) for part in range(int(of_some.max()) + 1)])
            labels = (self._features[images] @ centres.T).argmax(axis=1)
            labels[some] = of_some
        parts = [images[labels == part] for part in np.unique(labels)]
        return tuple(self._ordered(part) for part in sorted(parts, key=lambda part: (-len(part), int(part[0]))))

    def _ordered(self, part: NDArray[np.int64]) -> Images:
        similarities = self._features[part] @ self._centre(part)
        return tuple(part[np.lexsort((part, -similarities))].tolist())

    def _typical(self, group: int, members: Mapping[int, Collection[int]]) -> int:
        """Return the image that stands for a group: the most typical one of a cluster, or the outlier itself."""
        if group < 0:
            return -1 - group
        images = np.array(sorted(members[group]))
        return int(images[(self._features[images] @ self._centres[group]).argmax()])

    def _centre(self, images: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        centre: NDArray[np.float32] = self._features[np.asarray(images)].sum(axis=0)
        return centre / max(float(np.linalg.norm(centre)), 1e-12)

    def _calibrate(self) -> None:
        """Place the middle of likelihoods between how similar parts of one cluster and nearest others are."""
        own = [cluster.part_similarities for cluster in self._clusters.values() if len(cluster.part_similarities)]
        others = [cluster.near_similarities[:1] for cluster in self._clusters.values() if len(cluster.near)]
        if own and others:
            within, between = float(np.median(np.concatenate(own))), float(np.median(np.concatenate(others)))
            self._middle = (within + between) / 2
            self._width = max(0.03, abs(within - between) / 4)

    def _same(self, similarities: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return how likely groups of these similarities are the same."""
        return np.asarray(1 / (1 + np.exp(-(similarities.astype(np.float64) - self._middle) / self._width)))
