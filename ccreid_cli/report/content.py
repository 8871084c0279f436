"""What a report shows, as plain values: `engine.reporting` fills these, `report.page` turns them into HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Picture:
    """One image of a dataset.

    Attributes:
        image: (height, width, 3) uint8.
        name: File name, relative to the dataset.
        person_id: Identity, or None where it is not known.
        camera: Camera as the dataset numbers it, or None without cameras.
    """

    image: NDArray[np.uint8]
    name: str
    person_id: int | None = None
    camera: int | None = None


class Verdict(StrEnum):
    """What a ranked image counts as."""

    RIGHT = "right"
    WRONG = "wrong"
    JUNK = "junk"
    """Of the query's identity and camera: left out of the score."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """An image of a ranking.

    Attributes:
        picture: The gallery image.
        verdict: Whether it is right.
        rank: Its rank from 1 among the images that count; None for junk.
        distance: Squared Euclidean distance of the unit features, 0 to 4.
    """

    picture: Picture
    verdict: Verdict
    rank: int | None
    distance: float


@dataclass(frozen=True, eq=False)
class Ranking:
    """A query and what was found for it.

    Attributes:
        query: The query image.
        average_precision: Its AP, a fraction of 1.
        first_match_rank: Rank of the first right image, from 1.
        results: Best first.
        num_junk_hidden: Junk images within these ranks that are not among `results`.
    """

    query: Picture
    average_precision: float
    first_match_rank: int
    results: tuple[Ranked, ...]
    num_junk_hidden: int = 0


@dataclass(frozen=True, eq=False)
class RankingGroup:
    """Queries that were chosen for one reason, such as the worst."""

    title: str
    note: str
    rankings: tuple[Ranking, ...]


@dataclass(frozen=True, eq=False)
class Retrieval:
    """How a checkpoint searches the test set.

    Attributes:
        cmc: (R,) share of queries with a right image among the first k + 1.
        average_precision: (Q,) per query, NaN where it cannot be scored.
        edges: (B + 1,) of the histogram of distances.
        positives: (B,) pairs of one identity in two cameras.
        negatives: (B,) pairs of different identities.
        groups: Rankings to look at; empty in a report without images.
    """

    cmc: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    edges: NDArray[np.float64]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    groups: tuple[RankingGroup, ...] = ()


@dataclass(frozen=True, eq=False)
class Cluster:
    """One cluster of training images.

    Attributes:
        number: Its label.
        num_images: How many images are in it.
        num_cameras: How many cameras they are from; None without cameras.
        num_ids: How many identities are merged in it; None where identities are not known.
        purity: Share of its images that are of its most frequent identity; None likewise.
        main_id: That identity; None likewise.
        pictures: Some of its images.
    """

    number: int
    num_images: int
    num_cameras: int | None
    num_ids: int | None
    purity: float | None
    main_id: int | None
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, eq=False)
class ClusterGroup:
    """Clusters that were chosen for one reason, such as the biggest."""

    title: str
    note: str
    clusters: tuple[Cluster, ...]


@dataclass(frozen=True, eq=False)
class Clusters:
    """The pseudo-labels that a checkpoint gives to the training images.

    Attributes:
        num_images: Training images.
        num_clusters: Clusters.
        num_outliers: Images in none.
        groups: Clusters to look at.
        outliers: Some of the outliers.
    """

    num_images: int
    num_clusters: int
    num_outliers: int
    groups: tuple[ClusterGroup, ...]
    outliers: tuple[Picture, ...]


@dataclass(frozen=True)
class Score:
    """A row of the table of results. Scores are percentages, None where not known.

    Attributes:
        kind: ``last``, ``best`` or ``published``.
        label: What it is, in words.
        detail: More about it: the epoch, or the settings it was published for.
        mean_ap: mAP.
        rank1: CMC at rank 1.
        rank5: CMC at rank 5.
        rank10: CMC at rank 10.
        mean_inp: mINP.
        is_own: Of published numbers: whether they are those of the run's own recipe.
        source: Of published numbers: where they were published.
    """

    kind: str
    label: str
    detail: str
    mean_ap: float | None = None
    rank1: float | None = None
    rank5: float | None = None
    rank10: float | None = None
    mean_inp: float | None = None
    is_own: bool = False
    source: str = ""


@dataclass(frozen=True)
class Setting:
    """One setting of the run, and where its value comes from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything a report shows.

    Attributes:
        name: The run's name.
        dataset: Dataset.
        arch: Backbone.
        version: Version of ccreid that wrote the report.
        started: When the run began, as recorded; may be empty.
        epochs_done: Epochs in `metrics`.
        epochs: Epochs asked for.
        num_train_images: Training images, where known: outliers are then shown as a share.
        num_train_ids: Identities among them, where known: drawn beside the clusters.
        metrics: The lines of metrics.jsonl.
        scores: Last, best and published, in the order to show.
        num_queries: Queries that the last evaluation scored, where known.
        num_queries_skipped: Queries that it could not score.
        settings: The run's settings.
        environment: Name and value of what the run was done with.
        checkpoint: Which checkpoint the pictures and curves were made with, in words.
        retrieval: Search results, when the dataset can be scored.
        clusters: Pseudo-labels of the training images; None in a report without images.
        notes: What a reader should know: what is missing, and why.
    """

    name: str
    dataset: str
    arch: str
    version: str
    started: str
    epochs_done: int
    epochs: int
    num_train_images: int | None
    num_train_ids: int | None
    metrics: tuple[Mapping[str, Any], ...]
    scores: tuple[Score, ...]
    num_queries: int | None
    num_queries_skipped: int | None
    settings: tuple[Setting, ...]
    environment: tuple[tuple[str, str], ...]
    checkpoint: str = ""
    retrieval: Retrieval | None = None
    clusters: Clusters | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_pictures(self) -> bool:
        """Whether images of the dataset are shown."""
        return self.clusters is not None or bool(self.retrieval and self.retrieval.groups)
