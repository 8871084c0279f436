from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ccreid_cli.pseudo_labels import neighbors
from ccreid_cli.pseudo_labels.neighbors import FeatureTable


def k_nearest(
    features: NDArray[np.floating], k: int, device: torch.device | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    similarities, indices = FeatureTable(features, device).nearest(k, 0, len(features))
    return similarities.cpu().numpy(), indices.cpu().numpy()


FORMATS = [torch.bfloat16, torch.float16, torch.float32]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    total=st.integers(1, 120),
    dim=st.integers(2, 40),
    k=st.integers(1, 40),
    spread=st.sampled_from([1.0, 1e-2, 1e-4]),
    duplicates=st.integers(0, 60),
)
def test_neighbours_equal_brute_force(seed: int, total: int, dim: int, k: int, spread: float, duplicates: int) -> None:
    """Also where features have collapsed to nearly one point, and where many are equal."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=dim) + spread * rng.normal(size=(total, dim))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    rows[rng.integers(total, size=duplicates)] = rows[0]
    expected, order = oracles.ranking(rows)
    for dtype in FORMATS:
        table = FeatureTable(rows, search_dtype=dtype)
        similarities, indices = table.nearest(k, 0, total)
        assert indices.shape == (total, min(k, total))
        np.testing.assert_array_equal(indices.numpy(), order[:, :k])
        np.testing.assert_allclose(similarities.numpy(), np.take_along_axis(expected, order[:, :k], 1), atol=1e-7)


def test_low_precision_rows_that_are_not_proven_are_searched_again(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.concatenate([oracles.unit_rows(rng, 40), oracles.unit_rows(rng, 1).repeat(200, axis=0)])
    calls = []
    original = neighbors._CandidateSearch.above_threshold

    def counted(self: neighbors._CandidateSearch, wanted: torch.Tensor, k: int) -> object:
        calls.append(len(wanted))
        return original(self, wanted, k)

    monkeypatch.setattr(neighbors._CandidateSearch, "above_threshold", counted)
    _, indices = FeatureTable(rows, search_dtype=torch.bfloat16).nearest(10, 0, 240)
    assert sum(calls) >= 200  # the equal rows cannot be told apart by any number of candidates
    np.testing.assert_array_equal(indices.numpy(), oracles.ranking(rows)[1][:, :10])


def test_most_rows_are_proven_by_the_fast_search(rng: np.random.Generator) -> None:
    table = FeatureTable(oracles.unit_rows(rng, 3000, 64, clusters=100), search_dtype=torch.bfloat16)
    _, proven = neighbors._CandidateSearch(table, torch.bfloat16, 1.0).best(0, 3000, 30)
    assert proven.float().mean() > 0.95


def test_error_bound_holds_for_every_pair(rng: np.random.Generator) -> None:
    rows = torch.from_numpy(oracles.unit_rows(rng, 300, 48) + np.float32(0.4))
    rows /= rows.norm(dim=1, keepdim=True)
    wide = rows.double()
    for dtype in FORMATS:
        search = neighbors._CandidateSearch(FeatureTable(rows, search_dtype=dtype), dtype, 1.0)
        scores = search._scores(slice(0, 300)).double()
        offset = (scores - wide @ wide.T).median(dim=1, keepdim=True)[0]
        roundoff = neighbors._ROUNDOFF[dtype] * scores.abs()
        # The constant of a row is only known up to the bound itself: hence twice.
        assert bool(((scores - wide @ wide.T - offset).abs() <= 2 * (search.error[:, None] + roundoff)).all())


def test_same_bits_for_any_block_size_row_range_and_format(rng: np.random.Generator) -> None:
    rows = oracles.unit_rows(rng, 700, 32, clusters=40)
    similarities, indices = k_nearest(rows, 12)
    for dtype in FORMATS:
        table = FeatureTable(rows, search_dtype=dtype, block_bytes=1 << 12)
        for start, stop in [(0, 700), (3, 77), (699, 700)]:
            found = table.nearest(12, start, stop)
            np.testing.assert_array_equal(found[0].numpy(), similarities[start:stop])
            np.testing.assert_array_equal(found[1].numpy(), indices[start:stop])


def test_gathered_products_agree_with_the_sampled_ones(rng: np.random.Generator) -> None:
    """GPUs gather rows, CPUs sample the product: the same numbers."""
    table = FeatureTable(oracles.unit_rows(rng, 200, 64))
    owners = torch.arange(200).repeat_interleave(7)
    columns = torch.from_numpy(rng.integers(200, size=1400))
    torch.testing.assert_close(
        table.gathered_product(owners, columns), table.similarities(owners, columns), rtol=0, atol=1e-7
    )


def test_self_comes_first_among_duplicates(rng: np.random.Generator) -> None:
    _, indices = k_nearest(oracles.unit_rows(rng, 1).repeat(50, axis=0), 5)
    np.testing.assert_array_equal(indices[:, 0], np.arange(50))
    np.testing.assert_array_equal(indices[10], [10, 0, 1, 2, 3])


@pytest.mark.parametrize("total", [0, 1, 2])
def test_tiny_sets(total: int, rng: np.random.Generator) -> None:
    similarities, indices = k_nearest(oracles.unit_rows(rng, total), 30)
    assert similarities.shape == indices.shape == (total, total)
    assert indices.dtype == np.int32 and similarities.dtype == np.float32


def test_half_precision_features(rng: np.random.Generator) -> None:
    rows = oracles.unit_rows(rng, 100).astype(np.float16)
    np.testing.assert_array_equal(k_nearest(rows, 9)[1], k_nearest(rows.astype(np.float32), 9)[1])


def test_farthest(rng: np.random.Generator) -> None:
    rows = oracles.unit_rows(rng, 300)
    expected, _ = oracles.ranking(rows)
    for dtype in FORMATS:
        found = FeatureTable(rows, search_dtype=dtype, block_bytes=1 << 14).farthest(20, 300)
        np.testing.assert_allclose(found.numpy(), expected.min(axis=1)[20:], atol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_finds_the_same(rng: np.random.Generator) -> None:
    rows = oracles.unit_rows(rng, 2000, 64, clusters=100)
    expected, found = k_nearest(rows, 30), k_nearest(rows, 30, device=torch.device("cuda"))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
