from __future__ import annotations

from pathlib import Path

import numpy as np
import oracles
import pytest
from numpy.typing import NDArray

from ccreid_cli.engine.reranking import rerank_blocks
from ccreid_cli.pseudo_labels import dense_overlap

SMALL = Path(__file__).parents[1] / "golden"


def rerank(query: NDArray[np.float32], gallery: NDArray[np.float32], *options: float) -> NDArray[np.float32]:
    return np.concatenate(list(rerank_blocks(query, gallery, *options)))


def test_reference_distances() -> None:
    reference = np.load(SMALL / "reranking.npz")
    found = rerank(reference["query_features"], reference["gallery_features"])
    assert found.shape == (60, 400) and found.dtype == np.float32
    np.testing.assert_allclose(found[reference["rows"]], reference["reranked"], atol=1e-5)


@pytest.mark.shared
def test_all_reference_distances(golden: Path) -> None:
    reference = np.load(golden / "ranking.npz")
    found = rerank(reference["query_features"], reference["gallery_features"], 20, 6, 0.3)
    np.testing.assert_allclose(found, reference["reranked"], atol=1e-5)


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(10, 3, 0.3), (7, 1, 0.0), (15, 4, 1.0)])
def test_distances_equal_the_dense_oracle(rng: np.random.Generator, k1: int, k2: int, lambda_value: float) -> None:
    rows = oracles.unit_rows(rng, 130, 12, clusters=12)
    similarities, order = oracles.ranking(rows)
    original = np.maximum(2 - 2 * similarities.astype(np.float64), 0) ** 2
    original /= original.max(axis=1, keepdims=True)
    half = int(np.around(k1 / 2)) + 1
    jaccard = oracles.jaccard_distance(order, -original, k1 + 1, half, k2)
    expected = ((1 - lambda_value) * jaccard + lambda_value * original)[:30, 30:]
    found = rerank(rows[:30], rows[30:], k1, k2, lambda_value)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_blocks_put_together_are_the_whole(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = oracles.unit_rows(rng, 200, 12, clusters=12)
    whole = rerank(rows[:100], rows[100:])
    monkeypatch.setattr(dense_overlap, "scratch_bytes", lambda device: 1 << 10)
    blocks = list(rerank_blocks(rows[:100], rows[100:]))
    assert len(blocks) > 2
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


@pytest.mark.parametrize(("queries", "gallery"), [(1, 1), (2, 3)])
def test_tiny_sets(rng: np.random.Generator, queries: int, gallery: int) -> None:
    found = rerank(oracles.unit_rows(rng, queries), oracles.unit_rows(rng, gallery))
    assert found.shape == (queries, gallery) and np.isfinite(found).all()


def test_equal_images_stay_finite() -> None:
    rows = np.ones((20, 4), dtype=np.float32) / 2
    assert (rerank(rows[:5], rows[5:]) < 1e-6).all()
