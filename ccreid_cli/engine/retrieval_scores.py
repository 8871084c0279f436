"""Retrieval scores of features: mAP, CMC and mINP, with rankings and distance histograms for reports.

Nothing here holds a queries × gallery matrix: queries are worked through in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccreid_cli.core.errors import DataError
from ccreid_cli.engine.score_blocks import (
    Features,
    IdentityPairs,
    Int64Array,
    as_matrices,
    index,
    negated_blocks,
    places,
    put,
    row_blocks,
    similarity_blocks,
)

NUM_RANKS = 100
"""Length of a CMC curve."""


@dataclass(frozen=True)
class Evaluation:
    """What a set of queries scored. All scores are fractions of 1.

    Attributes:
        mean_ap: Mean average precision over the scored queries.
        mean_inp: Mean inverse negative penalty: matches of a query / rank of its last match.
        cmc: (100,) share of scored queries with a match among the first k + 1 images.
        num_queries: Queries that were scored.
        num_queries_skipped: Queries without a match of another camera in the gallery.
        average_precision: (Q,) per query, NaN where skipped.
        inverse_penalty: (Q,) likewise, whose mean is `mean_inp`.
        first_match_rank: (Q,) rank of the first match, from 1; 0 where skipped.
    """

    mean_ap: float
    mean_inp: float
    cmc: NDArray[np.float64]
    num_queries: int
    num_queries_skipped: int
    average_precision: NDArray[np.float64]
    inverse_penalty: NDArray[np.float64]
    first_match_rank: Int64Array

    def as_json(self) -> dict[str, float | int]:
        """Return the scores under the names that commands and metrics.jsonl use."""
        ranks = {f"rank{k}": float(self.cmc[k - 1]) for k in (1, 5, 10)}
        counts = {"num_queries": self.num_queries, "num_queries_skipped": self.num_queries_skipped}
        return {"mAP": self.mean_ap, "mINP": self.mean_inp, **ranks, **counts}


@dataclass(frozen=True)
class DistanceHistogram:
    """How far apart matches and non-matches are, in squared Euclidean distance of unit rows (2 - 2 cos).

    Attributes:
        edges: (num_bins + 1,) from 0 to 4.
        positives: (num_bins,) pairs of a query and a gallery image of its identity, seen by another camera.
        negatives: (num_bins,) pairs of different identities.
    """

    edges: NDArray[np.float64]
    positives: Int64Array
    negatives: Int64Array


def evaluate_features(
    query_features: Features,
    query_ids: Int64Array,
    query_cams: Int64Array,
    gallery_features: Features,
    gallery_ids: Int64Array,
    gallery_cams: Int64Array,
    *,
    device: torch.device | None = None,
    rerank: bool = False,
) -> Evaluation:
    """Rank the gallery for every query by cosine similarity and score the rankings.

    Gallery images of the query's identity and camera are left out of its ranking. AP is the mean over a query's
    matches of the precision at each, images at equal distance counted together, as scikit-learn's
    ``average_precision_score``. CMC and mINP put a match behind the wrong images at exactly its distance, so that
    ties never flatter and the order of the gallery does not matter. Queries without a match are skipped and counted.

    Args:
        query_features: (Q, D) unit rows.
        query_ids: (Q,) identities.
        query_cams: (Q,) cameras.
        gallery_features: (G, D) unit rows.
        gallery_ids: (G,) identities.
        gallery_cams: (G,) cameras.
        device: Where to compute; by default where the query features are.
        rerank: Rank by k-reciprocal re-ranked distances instead.

    Raises:
        DataError: Empty or non-finite features, widths or lengths that do not fit, or no query with a match.
    """
    query, gallery = as_matrices(query_features, gallery_features, device)
    pairs = IdentityPairs((query_ids, query_cams, len(query)), (gallery_ids, gallery_cams, len(gallery)))
    if rerank:
        from ccreid_cli.engine.reranking import rerank_blocks

        blocks = rerank_blocks(query, gallery, device=query.device)
        return evaluate_blocks(negated_blocks(blocks, query.device), pairs)
    return evaluate_blocks(similarity_blocks(query, gallery, pairs.blocks()), pairs)


@torch.no_grad()
def rank_gallery(
    query_features: Features, gallery_features: Features, top: int = 10, *, device: torch.device | None = None
) -> Int64Array:
    """Return the most similar gallery images of every query, best first.

    Args:
        query_features: (Q, D) unit rows.
        gallery_features: (G, D) unit rows.
        top: How many images per query.
        device: Where to compute; by default where the query features are.

    Returns:
        (Q, min(top, G)) gallery indices; equally similar ones in gallery order.

    Raises:
        DataError: Empty or non-finite features, or widths that do not fit.
    """
    query, gallery = as_matrices(query_features, gallery_features, device)
    ranked = np.empty((len(query), min(top, len(gallery))), dtype=np.int64)
    for start, scores in similarity_blocks(query, gallery, row_blocks(len(query), len(gallery))):
        indices = scores.topk(ranked.shape[1], dim=1).indices.sort(dim=1).values
        order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True).indices
        ranked[start : start + len(scores)] = indices.gather(1, order).cpu().numpy()
    return ranked


@torch.no_grad()
def distance_histogram(
    query_features: Features,
    query_ids: Int64Array,
    query_cams: Int64Array,
    gallery_features: Features,
    gallery_ids: Int64Array,
    gallery_cams: Int64Array,
    *,
    num_bins: int = 100,
    device: torch.device | None = None,
) -> DistanceHistogram:
    """Count the distances of matching and of other pairs; pairs of one identity and camera are left out.

    The arrays and the device are those of `evaluate_features`; the bins, of equal width, lie between 0 and 4.

    Raises:
        DataError: Empty or non-finite features, or widths or lengths that do not fit.
    """
    query, gallery = as_matrices(query_features, gallery_features, device)
    pairs = IdentityPairs((query_ids, query_cams, len(query)), (gallery_ids, gallery_cams, len(gallery)))
    positives, negatives = np.zeros((2, num_bins), dtype=np.int64)
    for start, scores in similarity_blocks(query, gallery, pairs.blocks()):
        rows, columns, excluded = pairs.between(start, start + len(scores))
        bins = scores.sub_(1).mul_(-num_bins / 2).to(torch.int32).clamp_(0, num_bins - 1)
        same_identity = bins[index(rows, bins), index(columns, bins)]
        matching = same_identity[index(~excluded, bins)]
        all_pairs, same, match = (
            torch.bincount(part.reshape(-1), minlength=num_bins).cpu().numpy()
            for part in (bins, same_identity, matching)
        )
        positives += match
        negatives += all_pairs - same
    return DistanceHistogram(np.linspace(0, 4, num_bins + 1), positives, negatives)


@torch.no_grad()
def evaluate_blocks(blocks: Iterable[tuple[int, Tensor]], pairs: IdentityPairs) -> Evaluation:
    """Score rankings, some queries at a time, by the rules of `evaluate_features`.

    Args:
        blocks: (first row, (R, G) similarities) of consecutive queries; overwritten.
        pairs: Which gallery images are of the queries' identities.

    Raises:
        DataError: No query has a match.
    """
    parts = [_score_block(scores, *pairs.between(start, start + len(scores))) for start, scores in blocks]
    average_precision, inverse_penalty, first_rank = (np.concatenate(column) for column in zip(*parts, strict=True))
    scored = first_rank > 0
    if not scored.any():
        raise DataError(
            f"none of {len(scored)} queries has a gallery image of its identity from another camera.",
            "Check ids and cams: a match shares the id and differs in the camera.",
        )
    hits_at_rank = np.bincount(first_rank[scored], minlength=NUM_RANKS + 1)[1 : NUM_RANKS + 1]
    return Evaluation(
        mean_ap=float(average_precision[scored].mean()),
        mean_inp=float(inverse_penalty[scored].mean()),
        cmc=hits_at_rank.cumsum() / scored.sum(),
        num_queries=int(scored.sum()),
        num_queries_skipped=int((~scored).sum()),
        average_precision=average_precision,
        inverse_penalty=inverse_penalty,
        first_match_rank=first_rank,
    )


def _score_block(
    scores: Tensor, rows: Int64Array, columns: Int64Array, excluded: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], Int64Array]:
    """Score the queries of a block from the rank positions of their matches alone.

    Args:
        scores: (R, G) similarities; overwritten.
        rows: (P,) row of each pair of one identity, ascending.
        columns: (P,) gallery index of each such pair.
        excluded: (P,) whether the pair shares the camera too.

    Returns:
        (R,) average precision, (R,) inverse negative penalty, (R,) rank of the first match; NaN, NaN, 0 without match.
    """
    num_rows, num_gallery = scores.shape
    put(scores, rows[excluded], columns[excluded], -torch.inf)
    rows, columns = rows[~excluded], columns[~excluded]
    counts = np.bincount(rows, minlength=num_rows)
    width = max(1, int(counts.max()))
    matches = scores.new_full((num_rows, width), -torch.inf)
    put(matches, rows, places(counts), scores[index(rows, scores), index(columns, scores)])
    matches = matches.sort(dim=1).values
    at_least = num_gallery - torch.searchsorted(_sort_rows(scores), matches)
    matches_at_least = width - torch.searchsorted(matches, matches)
    all_above, right_above = at_least.cpu().numpy(), matches_at_least.cpu().numpy()
    exists = np.arange(width) >= width - counts[:, None]
    last_rank = all_above[np.arange(num_rows), np.minimum(width - counts, width - 1)]
    first_rank = np.where(counts > 0, all_above[:, -1] - right_above[:, -1] + 1, 0)
    with np.errstate(invalid="ignore"):
        average_precision = (right_above / all_above * exists).sum(axis=1) / counts
    return average_precision, np.where(counts > 0, counts / last_rank, np.nan), first_rank


def _sort_rows(scores: Tensor) -> Tensor:
    """Sort every row ascending; on the CPU in place by NumPy, whose vectorised sort is 20 times torch's."""
    if scores.device.type != "cpu":
        return scores.sort(dim=1).values
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.sort(axis=1), np.array_split(scores.numpy(), threads)))
    return scores
