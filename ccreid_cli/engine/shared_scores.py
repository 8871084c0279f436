"""Scoring the test set with the queries split over the processes of a run."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.data.splits import ReidDataset, compared_cameras, queries_without_match
from ccreid_cli.engine.retrieval_scores import NUM_RANKS, Evaluation, evaluate_features
from ccreid_cli.machine.distributed import Group


def evaluate_together(
    query: torch.Tensor,
    gallery: torch.Tensor,
    dataset: ReidDataset,
    group: Group,
    *,
    device: torch.device,
    rerank: bool = False,
) -> Evaluation:
    """Score rankings as `evaluate_features` does; every process gets the same numbers.

    Re-ranking compares all images with one another and is left to rank 0.

    Args:
        query: (Q, D) unit rows, the same in every process.
        gallery: (G, D) unit rows, likewise.
        dataset: Whose query and gallery they are.
        group: The processes that share the work.
        device: Where to compute.
        rerank: Rank by k-reciprocal re-ranked distances.

    Raises:
        DataError: Non-finite features, or no query with a match.
    """
    query_cameras, gallery_cameras = compared_cameras(dataset.query, dataset.gallery)

    def score(chosen: NDArray[np.int64] | None) -> Evaluation:
        rows, ids, cameras = query, dataset.query.person_ids, query_cameras
        if chosen is not None:
            rows, ids, cameras = query[torch.from_numpy(chosen).to(query.device)], ids[chosen], cameras[chosen]
        entries = (gallery, dataset.gallery.person_ids, gallery_cameras)
        return evaluate_features(rows, ids, cameras, *entries, device=device, rerank=rerank)

    matched = np.flatnonzero(~queries_without_match(dataset.query, dataset.gallery))
    if group.world == 1 or rerank or not len(matched):
        return group.on_main(lambda: score(None))
    start, stop = group.bounds(len(matched))
    own = score(matched[start:stop]) if stop > start else None
    return _join(own, matched, len(query), group)


def _join(own: Evaluation | None, matched: NDArray[np.int64], num_queries: int, group: Group) -> Evaluation:
    """Put the scores of all processes' queries together."""
    first_rank = group.gather_array(own.first_match_rank if own else np.empty(0, dtype=np.int64))

    def of_all(values: NDArray[np.float64] | None) -> NDArray[np.float64]:
        found = np.full(num_queries, np.nan)
        found[matched] = group.gather_array(np.empty(0) if values is None else values)
        return found

    average_precision = of_all(own.average_precision if own else None)
    inverse_penalty = of_all(own.inverse_penalty if own else None)
    first_match_rank = np.zeros(num_queries, dtype=np.int64)
    first_match_rank[matched] = first_rank
    hits_at_rank = np.bincount(first_rank, minlength=NUM_RANKS + 1)[1 : NUM_RANKS + 1]
    return Evaluation(
        mean_ap=float(average_precision[matched].mean()),
        mean_inp=float(inverse_penalty[matched].mean()),
        cmc=hits_at_rank.cumsum() / len(matched),
        num_queries=len(matched),
        num_queries_skipped=num_queries - len(matched),
        average_precision=average_precision,
        inverse_penalty=inverse_penalty,
        first_match_rank=first_match_rank,
    )
