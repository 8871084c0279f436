"""Which rankings and clusters a report shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.data.splits import ReidDataset, Split, compared_cameras
from ccreid_cli.engine.retrieval_scores import Evaluation, rank_gallery
from ccreid_cli.images.source import ImageSource
from ccreid_cli.pseudo_labels.doubts import Doubt, find_doubts
from ccreid_cli.report.content import Cluster, Merge, Picture, Ranked, Ranking, Selection, Verdict

NUM_QUERIES = 8
NUM_RESULTS = 10
MAX_JUNK = 3
NUM_CLUSTERS = 6
NUM_MEMBERS = 12
NUM_OUTLIERS = 36
LEAST_LIKELY = 0.3
"""Of two clusters to be one identity, for a suggestion to merge them."""
SEED = 0

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Album:
    """Takes pictures of a dataset out of decoded images.

    Attributes:
        dataset: The dataset.
        split: The split whose images are wanted.
        store: Decoded images.
        offset: Where the split begins in `store`.
    """

    dataset: ReidDataset
    split: Split
    store: ImageSource
    offset: int = 0

    def picture(self, index: int) -> Picture:
        """Return an image of the split with what is known about it."""
        return Picture(
            image=self.store.gather(np.array([self.offset + index]), torch.device("cpu"))[0].permute(1, 2, 0).numpy(),
            name=self.split.names[index],
            identity=self.split.identities[index] or None,
            camera=self.split.cameras[index] or None,
        )


def choose_queries(average_precision: NDArray[np.float64], amount: int = NUM_QUERIES) -> dict[str, Indices]:
    """Choose queries to look at.

    Args:
        average_precision: (Q,) AP, NaN where a query cannot be scored; such queries are never chosen.
        amount: How many of each kind.

    Returns:
        ``worst``, ``median`` and ``random`` (always the same for the same scores): query indices, no query twice.
    """
    scored = np.flatnonzero(np.isfinite(average_precision))
    order = scored[np.argsort(average_precision[scored], kind="stable")]
    worst, rest = order[:amount], order[amount:]
    middle = max(0, min(len(rest) - amount, len(order) // 2 - amount - amount // 2))
    median = rest[middle : middle + amount]
    others = np.setdiff1d(rest, median)
    drawn = np.random.default_rng(SEED).permutation(others)[:amount]
    return {"worst": worst, "median": median, "random": drawn}


def choose_rankings(
    dataset: ReidDataset,
    store: ImageSource,
    query_features: torch.Tensor,
    gallery_features: torch.Tensor,
    evaluation: Evaluation,
) -> tuple[Selection[Ranking], ...]:
    """Choose the worst, the median and random queries, with their nearest gallery images.

    Args:
        dataset: With query and gallery.
        store: The query images, then the gallery images.
        query_features: (Q, D) unit rows.
        gallery_features: (G, D) unit rows.
        evaluation: What the queries scored.
    """
    titles = {
        "worst": ("Worst queries", "lowest average precision first"),
        "median": ("Median queries", "around the middle of all queries"),
        "random": ("Random queries", "the same ones whenever the scores are the same"),
    }
    ranker = _Ranker(dataset, store, query_features, gallery_features, evaluation)
    chosen = choose_queries(evaluation.average_precision)
    return tuple(Selection(*titles[kind], ranker.rankings(queries)) for kind, queries in chosen.items() if len(queries))


@dataclass(frozen=True)
class _Ranker:
    dataset: ReidDataset
    store: ImageSource
    query_features: torch.Tensor
    gallery_features: torch.Tensor
    evaluation: Evaluation

    def rankings(self, queries: Indices) -> tuple[Ranking, ...]:
        """Rank the gallery for some queries."""
        features = self.query_features[torch.from_numpy(queries).to(self.query_features.device)]
        query, gallery = self.dataset.query.select(queries), self.dataset.gallery
        query_cameras, gallery_cameras = compared_cameras(query, gallery)
        junk = (query.person_ids[:, None] == gallery.person_ids) & (query_cameras[:, None] == gallery_cameras)
        ranked = rank_gallery(features, self.gallery_features, NUM_RESULTS + int(junk.sum(axis=1).max()))
        return tuple(self._ranking(int(index), ranked[row], junk[row]) for row, index in enumerate(queries))

    def _ranking(self, query: int, ranked: Indices, junk: NDArray[np.bool_]) -> Ranking:
        split = self.dataset.gallery
        album = Album(self.dataset, split, self.store, offset=len(self.dataset.query))
        results: list[Ranked] = []
        rank = num_junk = 0
        for index in ranked.tolist():
            if rank == NUM_RESULTS:
                break
            if junk[index]:
                num_junk += 1
                if num_junk <= MAX_JUNK:
                    results.append(Ranked(album.picture(index), Verdict.JUNK, None))
                continue
            rank += 1
            is_right = split.person_ids[index] == self.dataset.query.person_ids[query]
            results.append(Ranked(album.picture(index), Verdict.RIGHT if is_right else Verdict.WRONG, rank))
        return Ranking(
            query=Album(self.dataset, self.dataset.query, self.store).picture(query),
            average_precision=float(self.evaluation.average_precision[query]),
            first_match_rank=int(self.evaluation.first_match_rank[query]),
            results=tuple(results),
            num_junk_hidden=max(0, num_junk - MAX_JUNK),
        )


def choose_clusters(dataset: ReidDataset, store: ImageSource, labels: Indices) -> tuple[Selection[Cluster], ...]:
    """Choose the biggest clusters, and where identities are known the most mixed and the purest.

    Args:
        dataset: The dataset.
        store: The training images.
        labels: (N,) pseudo-labels, -1 for outliers.
    """
    album = Album(dataset, dataset.train, store)
    members = [np.flatnonzero(labels == number) for number in range(int(labels.max(initial=-1)) + 1)]
    sizes = np.array([len(indices) for indices in members], dtype=np.int64)
    orders = [("Biggest clusters", "by number of images", np.lexsort((-sizes,)))]
    if dataset.has_train_ids and members:
        purities = np.array([_purity(dataset.train.person_ids[indices])[1] for indices in members])
        mixed = np.lexsort((-sizes, purities))
        note = "several identities merged into one: the images of others than its main identity are marked"
        orders.append(("Most mixed clusters", note, mixed[purities[mixed] < 1]))
        orders.append(("Purest clusters", "the bigger first among equals", np.lexsort((-sizes, -purities))))
    return tuple(
        Selection(
            title, note, tuple(_cluster(number, members[number], album) for number in order[:NUM_CLUSTERS].tolist())
        )
        for title, note, order in orders
        if len(order)
    )


def choose_doubtful(
    dataset: ReidDataset, store: ImageSource, features: NDArray[np.float32], labels: Indices
) -> tuple[tuple[Selection[Cluster], ...], tuple[Merge, ...]]:
    """Choose what is most doubtful where no identities are known: clusters to take apart, and pairs to merge.

    Args:
        dataset: The dataset.
        store: The training images.
        features: (N, D) unit rows of the training images.
        labels: (N,) pseudo-labels, -1 for outliers.
    """
    album = Album(dataset, dataset.train, store)
    members = {number: np.flatnonzero(labels == number) for number in range(int(labels.max(initial=-1)) + 1)}
    doubts = find_doubts(features, labels)
    mixed = sorted(doubts, key=lambda doubt: -doubt.wrong_inside)[:NUM_CLUSTERS]
    clusters = tuple(_in_parts(doubt, album) for doubt in mixed if doubt.wrong_inside > 0)
    note = "by the pairs of images that are expected to be wrong; its parts side by side, the largest first"
    pairs: dict[frozenset[int], float] = {}
    for doubt in doubts:
        for group in doubt.groups:
            if group.whole and group.likelihood >= LEAST_LIKELY:
                pairs.setdefault(frozenset((doubt.cluster, int(labels[group.images[0]]))), group.likelihood)

    def gain(pair: frozenset[int]) -> float:
        return -pairs[pair] * np.prod([len(members[number]) for number in pair])

    merges = []
    for pair in sorted(pairs, key=lambda pair: (gain(pair), sorted(pair)))[:NUM_CLUSTERS]:
        first, second = (_cluster(number, members[number], album) for number in sorted(pair))
        merges.append(Merge(first, second, pairs[pair]))
    return ((Selection("Most doubtful clusters", note, clusters),) if clusters else ()), tuple(merges)


def _in_parts(doubt: Doubt, album: Album) -> Cluster:
    """Return a doubtful cluster with some images of each of its parts, those of one part side by side."""
    parts = [doubt.anchor, *(group.images for group in doubt.groups if group.inside)]
    per_part = max(1, NUM_MEMBERS // len(parts))
    shown = [image for part in parts for image in part[:per_part]][:NUM_MEMBERS]
    images = np.array(sorted(image for part in parts for image in part))
    return replace(_cluster(doubt.cluster, images, album), pictures=tuple(map(album.picture, shown)))


def choose_outliers(dataset: ReidDataset, store: ImageSource, labels: Indices) -> tuple[Picture, ...]:
    """Draw images that are in no cluster, the same ones whenever the labels are the same; arguments as above."""
    album = Album(dataset, dataset.train, store)
    drawn = np.sort(np.random.default_rng(SEED).permutation(np.flatnonzero(labels < 0))[:NUM_OUTLIERS])
    return tuple(album.picture(index) for index in drawn.tolist())


def _purity(person_ids: Indices) -> tuple[int | None, float]:
    """Return the most frequent known identity and its share of the images of known identity (1 when none is known)."""
    ids, counts = np.unique(person_ids[person_ids >= 0], return_counts=True)
    if not len(ids):
        return None, 1.0
    return int(ids[counts.argmax()]), float(counts.max() / counts.sum())


def _cluster(number: int, indices: Indices, album: Album) -> Cluster:
    ids = album.split.person_ids[indices]
    main_id, purity = _purity(ids)
    is_known = main_id is not None
    return Cluster(
        number=number,
        num_images=len(indices),
        num_cameras=album.split.select(indices).num_cameras if album.dataset.has_cameras else None,
        num_ids=len(np.unique(ids[ids >= 0])) if is_known else None,
        purity=purity if is_known else None,
        main_id=album.split.identities[indices[int((ids == main_id).argmax())]] if is_known else None,
        pictures=tuple(album.picture(int(index)) for index in _spread(indices, ids, main_id)),
    )


def _spread(indices: Indices, ids: Indices, main_id: int | None) -> Indices:
    """Choose members of a cluster so that every identity is seen in turn, its main identity first.

    Args:
        indices: (M,) images of the cluster.
        ids: (M,) their identities.
        main_id: The most frequent one.

    Returns:
        At most `NUM_MEMBERS` of `indices`, those of one identity side by side.
    """
    turn = np.empty(len(ids), dtype=np.int64)
    for person_id in np.unique(ids):
        own = np.flatnonzero(ids == person_id)
        turn[own] = np.random.default_rng(SEED).permutation(len(own))
    is_other = ids != (-1 if main_id is None else main_id)
    chosen = np.lexsort((ids, is_other, turn))[:NUM_MEMBERS]
    return indices[chosen[np.lexsort((indices[chosen], ids[chosen], is_other[chosen]))]]
