"""What a report shows, as plain values: `report.gather` fills them in, `report.page` draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import nan
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.pseudo_labels.choosing_eps import EpsChoice

T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """A row of the table of results. Scores are percentages, NaN where not known.

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
    mean_ap: float = nan
    rank1: float = nan
    rank5: float = nan
    rank10: float = nan
    mean_inp: float = nan
    is_own: bool = False
    source: str = ""


@dataclass(frozen=True)
class Results:
    """The run's scores beside the published ones.

    Attributes:
        scores: Last, best and published, in the order to show.
        flags: Settings set by flags that may change a score.
        num_queries: Queries that the last evaluation scored, where known.
        num_queries_skipped: Queries that it could not score.
    """

    scores: tuple[Score, ...]
    flags: tuple[str, ...]
    num_queries: int | None
    num_queries_skipped: int


@dataclass(frozen=True)
class Training:
    """What was measured in every epoch.

    Attributes:
        metrics: The lines of metrics.jsonl.
        num_images: Training images, where known: outliers are then shown as a share.
        num_ids: Identities among them, where known: drawn beside the clusters.
        published: The published score of the run's own recipe.
    """

    metrics: tuple[Mapping[str, Any], ...]
    num_images: int | None
    num_ids: int | None
    published: Score | None


@dataclass(frozen=True, eq=False)
class Picture:
    """One image of a dataset.

    Attributes:
        image: (height, width, 3) uint8.
        name: File name, relative to the dataset.
        identity: Name of the identity, or None where it is not known.
        camera: Name of the camera, or None where it is not known.
    """

    image: NDArray[np.uint8]
    name: str
    identity: str | None = None
    camera: str | None = None


@dataclass(frozen=True, eq=False)
class Selection(Generic[T]):
    """Queries or clusters that were chosen for one reason, such as the worst."""

    title: str
    note: str
    chosen: tuple[T, ...]


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
    """

    picture: Picture
    verdict: Verdict
    rank: int | None


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
class Retrieval:
    """How a checkpoint searches the test set.

    Attributes:
        checkpoint: Which one, in words.
        cmc: (R,) share of queries with a right image among the first k + 1.
        average_precision: (Q,) per query, NaN where it cannot be scored.
        edges: (B + 1,) of the histogram of distances.
        positives: (B,) pairs of one identity in two cameras.
        negatives: (B,) pairs of different identities.
        rankings: Rankings to look at; empty in a report without images.
    """

    checkpoint: str
    cmc: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    edges: NDArray[np.float64]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    rankings: tuple[Selection[Ranking], ...] = ()


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
    main_id: str | None
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, eq=False)
class Merge:
    """Two clusters that may be one identity.

    Attributes:
        first: The one.
        second: The other.
        likelihood: How likely that is, 0 to 1.
    """

    first: Cluster
    second: Cluster
    likelihood: float


@dataclass(frozen=True, eq=False)
class Clusters:
    """The pseudo-labels that a checkpoint gives to the training images.

    Attributes:
        checkpoint: Which one, in words.
        num_images: Training images.
        num_clusters: Clusters.
        num_outliers: Images in none.
        selections: Clusters to look at.
        outliers: Some of the outliers.
        merges: Without identities: clusters that may be one, the likeliest to mend most first.
        commands: Without identities: how to correct clusters by hand.
        eps_choice: How eps was chosen, where it was "auto".
    """

    checkpoint: str
    num_images: int
    num_clusters: int
    num_outliers: int
    selections: tuple[Selection[Cluster], ...]
    outliers: tuple[Picture, ...]
    merges: tuple[Merge, ...] = ()
    commands: tuple[str, ...] = ()
    eps_choice: EpsChoice | None = None


@dataclass(frozen=True)
class Setup:
    """What the run was done with.

    Attributes:
        settings: Name, value and where the value comes from.
        environment: Name and value.
    """

    settings: tuple[tuple[str, str, str], ...]
    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything a report shows.

    Attributes:
        name: The run's name.
        dataset: Dataset.
        arch: Backbone.
        version: Version of ccreid that wrote the report.
        started: When the run began, as recorded; may be empty.
        epochs: Epochs asked for.
        metrics: The lines of metrics.jsonl: one for each epoch that is done.
        scores: Last, best and published, in the order to show.
        sections: Key -> what the section's template shows, in the order of the page.
        notes: What a reader should know: what is missing, and why.
    """

    name: str
    dataset: str
    arch: str
    version: str
    started: str
    epochs: int
    metrics: tuple[Mapping[str, Any], ...]
    scores: tuple[Score, ...]
    sections: Mapping[str, object]
    notes: tuple[str, ...] = ()
