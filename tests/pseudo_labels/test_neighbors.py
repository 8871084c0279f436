from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ccreid_cli.pseudo_labels.feature_tiles import Tile
from ccreid_cli.pseudo_labels.nearest import ROUNDOFF, RoundedRows, Search, pack, unpack
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


@pytest.mark.parametrize("dtype", FORMATS)
def test_features_that_a_format_cannot_tell_apart_are_searched_in_float32(
    dtype: torch.dtype, rng: np.random.Generator
) -> None:
    rows = np.concatenate([oracles.unit_rows(rng, 40), oracles.unit_rows(rng, 1).repeat(200, axis=0)])
    table = FeatureTable(rows, search_dtype=dtype)
    search = Search(table.own, 0, 10, dtype, table.block_bytes)
    for tile in table.tiles():
        search.look_through(tile)
    assert search._dtype == torch.float32
    np.testing.assert_array_equal(search.result()[1].numpy(), oracles.ranking(rows)[1][:, :10])


def test_few_pairs_are_decided_in_double_precision(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = []
    original = Tile.similarities

    def counted(tile: Tile, left: Tile, owners: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        decided.append(len(owners))
        return original(tile, left, owners, columns)

    monkeypatch.setattr(Tile, "similarities", counted)
    FeatureTable(oracles.unit_rows(rng, 3000, 64, clusters=100), search_dtype=torch.bfloat16).nearest(30)
    assert 3000 * 30 <= sum(decided) < 3000 * 3000 / 15


def test_error_bound_holds_for_every_pair(rng: np.random.Generator) -> None:
    rows = torch.from_numpy(oracles.unit_rows(rng, 300, 48) + np.float32(0.4))
    rows /= rows.norm(dim=1, keepdim=True)
    wide = rows.double()
    for dtype in FORMATS:
        rounded = RoundedRows(rows, rows.mean(0), dtype)
        scores = (rounded.left(slice(0, 300)) @ rounded.matrix.T).double()
        found = scores + rounded.constants.double()[:, None]
        roundoff = ROUNDOFF[dtype] * scores.abs()
        error = rounded.error(slice(0, 300), rounded)[:, None]
        assert bool(((found - wide @ wide.T).abs() <= error + roundoff).all())


@given(values=st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=40), seed=st.integers(0, 99))
def test_packed_pairs_order_as_similarity_and_lower_column_do(values: list[float], seed: int) -> None:
    similarities = torch.tensor(values, dtype=torch.float32)
    columns = torch.from_numpy(np.random.default_rng(seed).permutation(len(values)).astype(np.int64))
    keys = pack(similarities, columns)
    order = sorted(range(len(values)), key=lambda place: (-values[place], int(columns[place])))
    assert keys.argsort(descending=True).tolist() == order
    assert torch.equal(unpack(keys)[0], similarities + 0.0) and torch.equal(unpack(keys)[1].long(), columns)


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
        Tile(0, table.own).gathered_product(Tile(0, table.own), owners, columns),
        table.similarities(owners.int(), columns.int()),
        rtol=0,
        atol=1e-7,
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
def test_gpu_finds_the_same(rng: np.random.Generator) -> None:
    rows = oracles.unit_rows(rng, 2000, 64, clusters=100)
    expected, found = k_nearest(rows, 30), k_nearest(rows, 30, device=torch.device("cuda"))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
