from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ccreid_cli.core.errors import DataError
from ccreid_cli.inference.embedding_file import read_embeddings
from ccreid_cli.inference.feature_file import normalize_rows
from ccreid_cli.inference.feature_rows import ShardedRows, count_rows, read_unit_rows
from ccreid_cli.inference.search import best_matches
from ccreid_cli.inference.shard_index import ShardIndex, shard_file
from ccreid_cli.inference.stored_arrays import FORMAT


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(101, 6)).astype(np.float32)


@pytest.mark.parametrize("name", ["stored.npz", "packed.npz", "turned.npz", "half.npz", "plain.npy", "shards"])
def test_parts_of_a_file_are_those_of_the_whole(name: str, rows: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "plain.npy":
        np.save(path, rows)
    elif name == "shards":
        path.mkdir()
        for number, part in enumerate((rows[:40], rows[40:90], rows[90:])):
            np.savez(shard_file(path, number), features=part)
        ShardIndex({}, 3, (40, 50, 11)).write(path)
    else:
        save = np.savez_compressed if name == "packed.npz" else np.savez
        written = {"turned.npz": np.asfortranarray(rows), "half.npz": rows.astype(np.float16)}.get(name, rows)
        save(path, ids=np.arange(101), features=written)
    whole = normalize_rows(rows.astype(np.float16).astype(np.float32) if name == "half.npz" else rows)
    assert count_rows(path) == 101
    for start, stop in ((0, 101), (0, 40), (40, 41), (41, 101), (7, 7)):
        found = read_unit_rows(path, start, stop)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, whole[start:stop])


def test_a_process_reads_none_of_the_shards_of_others(rows: np.ndarray, tmp_path: Path) -> None:
    np.savez(shard_file(tmp_path, 0), features=rows[:60])
    shard_file(tmp_path, 1).write_bytes(b"damaged")
    ShardIndex({}, 2, (60, 41)).write(tmp_path)
    np.testing.assert_array_equal(read_unit_rows(tmp_path, 10, 60), normalize_rows(rows[10:60].copy()))
    with pytest.raises(DataError, match="000001"):
        read_unit_rows(tmp_path, 50, 61)


@pytest.mark.parametrize("packed", [False, True])
def test_shards_are_searched_as_one_matrix(
    packed: bool, rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some shard has no row; pieces of a search end within shards and go beyond them."""
    rows = normalize_rows(rows)
    for number, part in enumerate((rows[:40], rows[:0], rows[40:90], rows[90:])):
        (np.savez_compressed if packed else np.savez)(shard_file(tmp_path, number), names=np.arange(3), features=part)
    ShardIndex({}, 4, (40, 0, 50, 11)).write(tmp_path)
    found = ShardedRows(tmp_path)
    assert found.shape == (101, 6) and len(found) == 101
    np.testing.assert_array_equal(found, rows)
    for key in (slice(30, 95), slice(0, 0), slice(90, 300), slice(1, 99, 7), np.array([100, 3, 40, 39, 3])):
        np.testing.assert_array_equal(found[key], rows[key])
    monkeypatch.setattr("ccreid_cli.inference.search._LEAST_ROWS", 16)
    expected = best_matches(rows[:2], rows, 5)
    monkeypatch.setattr("ccreid_cli.inference.search._BLOCK_BYTES", 30 * 6 * 4)
    np.testing.assert_array_equal(best_matches(rows[:2], found, 5).indices, expected.indices)
    np.savez(shard_file(tmp_path, 3), features=rows[:3])
    with pytest.raises(DataError, match=r"000003.*has not the 11 rows of length 6"):
        ShardedRows(tmp_path)[95:]


def test_names_of_rows_are_read_where_they_are_asked_for(rows: np.ndarray, tmp_path: Path) -> None:
    """Some shard has no row, one no identities, and one that nobody asks for is damaged meanwhile."""
    names = [f"a/{row}.jpg" for row in range(10)] + ["\udcff.jpg"]
    about = json.dumps({"format": FORMAT, "version": 2, "root": str(tmp_path), "model": "m"})
    for number, part in enumerate((slice(0, 4), slice(4, 4), slice(4, 9), slice(9, 11))):
        ids = {"ids": np.array(["x", "", "z"])[np.arange(11)[part] % 3]} if number == 2 else {}
        known = {"names": np.array(names[part], dtype=np.str_), "about": np.array(about), **ids}
        np.savez(shard_file(tmp_path, number), features=rows[part], **known)
    ShardIndex({}, 4, (4, 0, 5, 2)).write(tmp_path)
    images = read_embeddings(tmp_path).images
    assert images.names == names and list(images.names) == names and len(images) == 11
    assert images.ids == ["", "", "", "", "", "z", "x", "", "z", "", ""] and images.cams is None
    assert images.names[-1] == names[10] and images.files(3, 5) == [str(tmp_path / name) for name in names[3:5]]
    with pytest.raises(IndexError):
        images.names[11]
    images = read_embeddings(tmp_path).images
    shard_file(tmp_path, 2).write_bytes(b"damaged")
    assert images.names[3] == names[3] and images.names[9] == names[9]
    with pytest.raises(DataError, match="000002"):
        images.names[4]
    with pytest.raises(DataError, match=r"000002.*is damaged"):
        read_embeddings(tmp_path)
    np.savez(shard_file(tmp_path, 2), **{**known, "features": rows[:5]})
    with pytest.raises(DataError, match="has not the 5 rows"):
        read_embeddings(tmp_path)
    with pytest.raises(DataError, match="has not the 5 rows"):
        images.names[4]


@pytest.mark.parametrize(
    ("old", "new"), [('"num_shards": 2', '"num_shards": 0'), ("  41", "  41, 3"), ('"version": 1', '"version": 2')]
)
def test_an_index_that_contradicts_itself_is_damaged(old: str, new: str, tmp_path: Path) -> None:
    ShardIndex({}, 2, (60, 41)).write(tmp_path)
    text = (tmp_path / "index.json").read_text()
    assert old in text
    (tmp_path / "index.json").write_text(text.replace(old, new))
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        count_rows(tmp_path)


def test_an_index_without_rows_says_so(tmp_path: Path) -> None:
    ShardIndex({}, 2, (60, 41)).write(tmp_path)
    text = (tmp_path / "index.json").read_text()
    (tmp_path / "index.json").write_text(text.replace('"rows"', '"other"'))
    with pytest.raises(DataError, match=r"index\.json is damaged: 'rows' is missing"):
        count_rows(tmp_path)


def test_rows_that_the_index_does_not_count_are_no_rows(rows: np.ndarray, tmp_path: Path) -> None:
    np.savez(shard_file(tmp_path, 0), features=rows)
    ShardIndex({}, 1, (100,)).write(tmp_path)
    with pytest.raises(DataError, match="has not the 100 rows"):
        read_unit_rows(tmp_path, 0, 100)


def test_what_is_wrong_is_said(rows: np.ndarray, tmp_path: Path) -> None:
    rows[70] = np.nan
    np.savez(tmp_path / "f.npz", features=rows)
    with pytest.raises(DataError, match="1 of 51 rows.*: 20.*counted from row 50"):
        read_unit_rows(tmp_path / "f.npz", 50, 101)
    np.savez(tmp_path / "flat.npz", features=rows[:, 0])
    np.savez(tmp_path / "none.npz", features=rows[:0])
    np.savez(tmp_path / "other.npz", feats=rows)
    for name, words in (("flat", r"shape \(101,\)"), ("none", r"shape \(0, 6\)"), ("other", "`features`")):
        with pytest.raises(DataError, match=words):
            count_rows(tmp_path / f"{name}.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:500])
    with pytest.raises(DataError, match=r"broken\.npz"):
        count_rows(tmp_path / "broken.npz")
