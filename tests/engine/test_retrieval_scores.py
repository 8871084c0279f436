"""Retrieval scores against the golden numbers, scikit-learn and a slow loop over queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from ccreid_cli.core.errors import DataError
from ccreid_cli.engine import score_blocks
from ccreid_cli.engine.reranking import rerank_blocks
from ccreid_cli.engine.retrieval_scores import (
    Evaluation,
    distance_histogram,
    evaluate_blocks,
    evaluate_features,
    rank_gallery,
)

GOLDEN_COPY = Path(__file__).resolve().parents[1] / "golden" / "ranking_features.npz"

Ids = NDArray[np.int64]


def slow_scores(
    distance: NDArray[np.float64], query_ids: Ids, query_cams: Ids, gallery_ids: Ids, gallery_cams: Ids
) -> tuple[list[float], list[float], list[int]]:
    """AP by scikit-learn, inverse negative penalty and first rank by walking down each ranking; ties: wrong first."""
    precisions, penalties, first_ranks = [], [], []
    for row, query_id, query_cam in zip(distance, query_ids, query_cams, strict=True):
        valid = (gallery_ids != query_id) | (gallery_cams != query_cam)
        matches, row = gallery_ids[valid] == query_id, row[valid]
        if not matches.any():
            precisions.append(float("nan"))
            penalties.append(float("nan"))
            first_ranks.append(0)
            continue
        precisions.append(float(average_precision_score(matches, -row)))
        order = np.lexsort((matches, row))
        ranks = np.flatnonzero(matches[order]) + 1
        first_ranks.append(int(ranks[0]))
        penalties.append(matches.sum() / ranks[-1])
    return precisions, penalties, first_ranks


def evaluate_distances(
    distance: NDArray[np.floating], query_ids: Ids, query_cams: Ids, gallery_ids: Ids, gallery_cams: Ids
) -> Evaluation:
    queries, gallery = distance.shape
    pairs = score_blocks.IdentityPairs((query_ids, query_cams, queries), (gallery_ids, gallery_cams, gallery))
    return evaluate_blocks(score_blocks.negated_blocks([distance], torch.device("cpu")), pairs)


def check(evaluation: Evaluation, slow: tuple[list[float], list[float], list[int]], atol: float = 1e-12) -> None:
    precisions, penalties, first_ranks = (np.array(column) for column in slow)
    scored = first_ranks > 0
    np.testing.assert_allclose(evaluation.average_precision, precisions, atol=atol)
    np.testing.assert_array_equal(evaluation.first_match_rank, first_ranks)
    assert evaluation.mean_ap == pytest.approx(np.mean(precisions[scored]), abs=atol)
    assert evaluation.mean_inp == pytest.approx(np.mean(penalties[scored]), abs=atol)
    assert (evaluation.num_queries, evaluation.num_queries_skipped) == (scored.sum(), (~scored).sum())
    cmc = [(first_ranks[scored] <= k + 1).mean() for k in range(100)]
    np.testing.assert_allclose(evaluation.cmc, cmc, atol=atol)


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[np.float64], Ids, Ids, Ids, Ids]:
    """Distances on a coarse grid, so that ties abound, with at least one query that has a match."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, gallery = draw(st.integers(1, 12)), draw(st.integers(1, 130))
    levels, ids, cams = draw(st.integers(1, 40)), draw(st.integers(1, 8)), draw(st.integers(2, 4))
    query_ids, gallery_ids = rng.integers(0, ids, queries), rng.integers(0, ids, gallery)
    query_cams, gallery_cams = rng.integers(0, cams, queries), rng.integers(0, cams, gallery)
    gallery_ids[0], gallery_cams[0] = query_ids[0], query_cams[0] + 1
    return rng.integers(0, levels, (queries, gallery)) / levels, query_ids, query_cams, gallery_ids, gallery_cams


@settings(max_examples=80, deadline=None)
@given(problems())
def test_distances_score_as_the_slow_loop(problem: tuple[NDArray[np.float64], Ids, Ids, Ids, Ids]) -> None:
    distance, *labels = problem
    check(evaluate_distances(distance, *labels), slow_scores(distance, *labels))


def test_golden_features() -> None:
    golden = np.load(GOLDEN_COPY)
    evaluation = evaluate_features(
        *(golden[f"query_{name}"] for name in ("features", "ids", "cams")),
        *(golden[f"gallery_{name}"] for name in ("features", "ids", "cams")),
    )
    assert evaluation.mean_ap == pytest.approx(float(golden["mean_ap"]), abs=1e-6)
    np.testing.assert_allclose(evaluation.cmc, golden["cmc"], atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "reranked_"])
def test_golden_distances(golden: Path, prefix: str) -> None:
    data = np.load(golden / "ranking.npz")
    evaluation = evaluate_distances(
        data["reranked" if prefix else "distance"],
        *(data[name] for name in ("query_ids", "query_cams", "gallery_ids", "gallery_cams")),
    )
    assert evaluation.mean_ap == pytest.approx(float(data[f"{prefix}mean_ap"]), abs=1e-6)
    np.testing.assert_allclose(evaluation.cmc, data[f"{prefix}cmc"], atol=1e-6)


def unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def crowd(rng: np.random.Generator) -> dict[str, NDArray[np.float32] | Ids]:
    """23 queries against 211 images of 10 identities seen by 3 cameras, sizes that no block divides."""
    return {
        "query_features": unit(rng, 23, 6),
        "query_ids": rng.integers(0, 11, 23),
        "query_cams": rng.integers(0, 3, 23),
        "gallery_features": unit(rng, 211, 6),
        "gallery_ids": rng.integers(0, 10, 211),
        "gallery_cams": rng.integers(0, 3, 211),
    }


LABELS = ("query_ids", "query_cams", "gallery_ids", "gallery_cams")


@pytest.mark.parametrize("scores_per_block", [1, 1000, 10**9])
def test_blocks_of_any_size_give_the_same(
    crowd: dict[str, NDArray[np.float32]], scores_per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_blocks, "_SCORES_PER_BLOCK", scores_per_block)
    similarity = crowd["query_features"].astype(np.float64) @ crowd["gallery_features"].T.astype(np.float64)
    labels = [crowd[name].astype(np.int64) for name in LABELS]
    check(evaluate_features(**crowd), slow_scores(2 - 2 * similarity, *labels), atol=1e-6)


def test_no_block_holds_a_whole_large_matrix(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(score_blocks, "_SCORES_PER_BLOCK", 5_000)
    monkeypatch.setattr(score_blocks, "_MATCHES_PER_BLOCK", 700)
    ids, few = np.zeros(400, dtype=np.int64), rng.integers(1, 400, 400)
    for gallery_ids, largest in ((few, 5_000 // 400), (ids, 700 // 400)):
        matches = score_blocks.IdentityPairs((ids, ids, 400), (gallery_ids, ids + 1, 400))
        blocks = list(matches.blocks())
        assert max(stop - start for start, stop in blocks) == largest
        assert [start for start, _ in blocks] + [400] == [0] + [stop for _, stop in blocks]


@pytest.mark.parametrize("kind", ["tensor", "float16", "fortran", "read-only", "reversed", "parameter"])
def test_features_of_any_kind(crowd: dict[str, NDArray[np.float32]], kind: str) -> None:
    expected = evaluate_features(**crowd)
    for name in ("query_features", "gallery_features"):
        rows = crowd[name]
        made: dict[str, object] = {
            "tensor": torch.from_numpy(rows),
            "float16": rows.astype(np.float16),
            "fortran": np.asfortranarray(rows),
            "reversed": rows[:, ::-1],
            "parameter": torch.nn.Parameter(torch.from_numpy(rows)),
        }
        if kind == "read-only":
            made[kind] = rows.copy()
            made[kind].setflags(write=False)  # type: ignore[attr-defined]  # it is an array
        crowd[name] = made[kind]  # type: ignore[assignment]  # what callers may pass
    assert evaluate_features(**crowd).mean_ap == pytest.approx(expected.mean_ap, abs=1e-3 if kind == "float16" else 0)


def test_constant_features_are_not_flattered() -> None:
    features = np.ones((3, 1), dtype=np.float32)
    gallery = np.ones((60, 1), dtype=np.float32)
    ids, cams = np.arange(3), np.zeros(3, dtype=np.int64)
    evaluation = evaluate_features(features, ids, cams, gallery, np.arange(60) % 3, np.ones(60, dtype=np.int64))
    assert evaluation.mean_ap == pytest.approx(1 / 3)
    assert evaluation.cmc[0] == evaluation.cmc[39] == 0
    assert evaluation.cmc[40] == evaluation.cmc[99] == 1
    assert evaluation.mean_inp == pytest.approx(20 / 60)


def test_cmc_is_padded_when_the_gallery_is_small() -> None:
    distance = np.array([[0.1, 0.2, 0.3]])
    evaluation = evaluate_distances(distance, np.array([5]), np.array([0]), np.array([4, 5, 5]), np.array([1, 1, 0]))
    assert evaluation.cmc.shape == (100,)
    assert evaluation.cmc[0] == 0
    assert (evaluation.cmc[1:] == 1).all()
    assert evaluation.as_json() == {
        "mAP": 0.5, "mINP": 0.5, "rank1": 0.0, "rank5": 1.0, "rank10": 1.0, "num_queries": 1, "num_queries_skipped": 0,
    }  # fmt: skip


def test_no_query_with_a_match_is_an_error() -> None:
    ones = np.ones(2, dtype=np.int64)
    with pytest.raises(DataError, match="none of 2 queries") as caught:
        evaluate_distances(np.zeros((2, 2)), ones, ones, ones, ones)
    assert caught.value.hint is not None


def test_bad_features_are_named(crowd: dict[str, NDArray[np.float32]]) -> None:
    crowd["gallery_features"][17, 3] = np.nan
    with pytest.raises(DataError, match=r"gallery features hold NaN or infinity, first in row 17"):
        evaluate_features(**crowd)
    crowd["gallery_features"] = crowd["gallery_features"][:, :5]
    with pytest.raises(DataError):
        evaluate_features(**crowd)


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("gallery_features", np.s_[:, :5], "query features are 6 wide, gallery features 5"),
        ("gallery_features", np.s_[:0], "at least one row"),
        ("query_features", np.s_[0], "must be a matrix"),
        ("query_cams", np.s_[:-1], r"query: 23 feature rows, but ids have shape \(23,\) and cams \(22,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(
    crowd: dict[str, NDArray[np.float32]], name: str, keep: slice, message: str
) -> None:
    crowd[name] = crowd[name][keep]
    with pytest.raises(DataError, match=message):
        evaluate_features(**crowd)


def test_rerank_scores_the_reranked_distances(crowd: dict[str, NDArray[np.float32]]) -> None:
    distance = np.concatenate(list(rerank_blocks(crowd["query_features"], crowd["gallery_features"])))
    expected = evaluate_distances(distance, *(crowd[name].astype(np.int64) for name in LABELS))
    found = evaluate_features(**crowd, rerank=True)
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    assert found.mean_ap != evaluate_features(**crowd).mean_ap


def test_rerank_of_golden_features(golden: Path) -> None:
    data = np.load(golden / "ranking.npz")
    sides = [data[f"{side}_{name}"] for side in ("query", "gallery") for name in ("features", "ids", "cams")]
    evaluation = evaluate_features(*sides, rerank=True)
    assert evaluation.mean_ap == pytest.approx(float(data["reranked_mean_ap"]), abs=1e-4)
    np.testing.assert_allclose(evaluation.cmc, data["reranked_cmc"], atol=1e-6)


def test_rankings_follow_similarity(crowd: dict[str, NDArray[np.float32]]) -> None:
    query, gallery = crowd["query_features"], crowd["gallery_features"]
    similarity = query @ gallery.T
    plain = rank_gallery(query, gallery, 7)
    np.testing.assert_array_equal(plain, np.argsort(-similarity, axis=1, kind="stable")[:, :7])


def test_rankings_keep_gallery_order_among_equals() -> None:
    query, gallery = np.eye(2, dtype=np.float32)[:1], np.eye(2, dtype=np.float32)[[1, 0, 1, 0]]
    np.testing.assert_array_equal(rank_gallery(query, gallery), [[1, 3, 0, 2]])


def test_histogram_counts_every_pair_once(crowd: dict[str, NDArray[np.float32]]) -> None:
    histogram = distance_histogram(**crowd, num_bins=16)
    distance = 2 - 2 * crowd["query_features"].astype(np.float64) @ crowd["gallery_features"].T.astype(np.float64)
    same_id = crowd["query_ids"][:, None] == crowd["gallery_ids"]
    same_camera = crowd["query_cams"][:, None] == crowd["gallery_cams"]
    for found, pairs in ((histogram.positives, same_id & ~same_camera), (histogram.negatives, ~same_id)):
        assert found.sum() == pairs.sum()
        # One pair may fall on the other side of an edge by rounding.
        np.testing.assert_allclose(found, np.histogram(distance[pairs], histogram.edges)[0], atol=1, rtol=0)


@pytest.mark.gpu
def test_cuda_gives_the_same(crowd: dict[str, NDArray[np.float32]]) -> None:
    device = torch.device("cuda")
    on_gpu, on_cpu = evaluate_features(**crowd, device=device), evaluate_features(**crowd)
    assert on_gpu.mean_ap == pytest.approx(on_cpu.mean_ap, abs=1e-6)
    np.testing.assert_allclose(on_gpu.cmc, on_cpu.cmc, atol=1e-6)
    query, gallery = crowd["query_features"], crowd["gallery_features"]
    np.testing.assert_array_equal(rank_gallery(query, gallery, device=device), rank_gallery(query, gallery))
    np.testing.assert_array_equal(
        distance_histogram(**crowd, device=device).positives, distance_histogram(**crowd).positives
    )
