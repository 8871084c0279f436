"""Feature files: what is read, and that every broken file is named with what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccreid_cli.core.errors import DataError
from ccreid_cli.inference.feature_file import normalize_rows, read_features, write_labels


def good(**other: Any) -> dict[str, Any]:
    return {
        "features": np.arange(1, 13, dtype=np.float32).reshape(4, 3),
        "ids": np.array([1, 1, 2, 0]),
        "cams": np.array([0, 1, 0, 1]),
    } | other


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_reads_any_number_type_as_float32(tmp_path: Path, dtype: type) -> None:
    arrays = good(features=np.arange(1, 13).reshape(4, 3).astype(dtype), ids=np.array([1, 1, 2, 0], dtype=np.uint8))
    data = read_features(saved(tmp_path / "f.npz", arrays), need_ids=True)
    assert data.features.dtype == np.float32
    np.testing.assert_array_equal(data.features, good()["features"])
    assert data.ids == ("1", "1", "2", "0")
    assert len(data) == 4


def test_ids_may_be_whole_floats_and_may_be_absent_where_not_needed(tmp_path: Path) -> None:
    data = read_features(saved(tmp_path / "f.npz", good(cams=np.array([0.0, 1, 0, 1]))), need_ids=True)
    assert data.cams == ("0", "1", "0", "1")
    alone = read_features(saved(tmp_path / "g.npz", good(ids=None, cams=None)), need_ids=False)
    assert alone.ids is None
    assert alone.cams is None


def test_a_plain_npy_serves_where_no_ids_are_needed(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", good()["features"])
    np.testing.assert_array_equal(read_features(tmp_path / "f.npy", need_ids=False).features, good()["features"])
    with pytest.raises(DataError, match=r"f\.npy has no array `ids`; it has `features`"):
        read_features(tmp_path / "f.npy", need_ids=True)


def with_rows(value: float, rows: list[int], count: int = 40) -> np.ndarray:
    features = np.ones((count, 3), dtype=np.float32)
    features[rows] = value
    return features


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"features": None}, r"no array `features`; it has `ids`, `cams`"),
        ({"ids": None}, r"no array `ids`; it has `features`, `cams`"),
        ({"cams": None}, r"no array `cams`; it has `features`, `ids`"),
        ({"features": None, "ids": None, "cams": None, "x": np.ones(3)}, "it has `x`"),
        ({"features": np.ones(4)}, r"`features` has shape \(4,\)"),
        ({"features": np.ones((4, 3, 2))}, r"`features` has shape \(4, 3, 2\)"),
        ({"features": np.float32(1)}, r"`features` has shape \(\)"),
        ({"features": np.ones((0, 3))}, r"`features` has shape \(0, 3\)"),
        ({"features": np.ones((4, 0))}, r"`features` has shape \(4, 0\)"),
        ({"features": np.full((4, 3), "a")}, "`features` has type <U1"),
        ({"features": np.ones((4, 3), dtype=bool)}, "`features` has type bool"),
        ({"features": np.ones((4, 3), dtype=complex)}, "`features` has type complex128"),
        ({"features": with_rows(np.nan, [2])}, r"`features` has 1 of 40 rows that are NaN or infinite: 2\."),
        ({"features": with_rows(-np.inf, [7, 9])}, r"2 of 40 rows that are NaN or infinite: 7, 9\."),
        ({"features": with_rows(np.nan, list(range(9, 40)))}, r"31 of 40 rows .*: 9, 10, 11, 12, 13, \.\.\."),
        ({"features": np.full((4, 3), 1e300)}, r"4 of 4 rows with values too large for float32: 0, 1, 2, 3\."),
        ({"features": np.array([[1, -1e39], [1, 2]])}, r"1 of 2 rows with values too large for float32: 0\."),
        ({"features": np.array([[1, 1e39], [1, np.nan]])}, r"1 of 2 rows that are NaN or infinite: 1\."),
        ({"features": with_rows(0, [0, 39])}, r"2 of 40 rows that are all zero: 0, 39\."),
        (
            {"features": np.array([[1e-60, 0], [1, 2], [0, 2e-60]])},
            r"2 of 3 rows with values too small for float32: 0, 2\.",
        ),
        ({"features": np.array([[1e-60, 0], [0, 0]])}, r"1 of 2 rows that are all zero: 1\."),
        ({"ids": np.arange(3)}, r"`ids` has shape \(3,\), but `features` has 4 rows"),
        ({"cams": np.zeros((4, 1))}, r"`cams` has shape \(4, 1\), but `features` has 4 rows"),
        ({"cams": np.array([0, 1, 0.5, 1])}, "`cams`: 0.5 is not whole"),
        ({"cams": np.array([0, 1, np.nan, 1])}, "`cams`: nan is no name"),
        ({"cams": np.array([0, 1, np.inf, 1])}, "`cams`: inf is no name"),
        ({"ids": np.array([0, 1, 1e30, 1])}, r"`ids`: .* is beyond 2\^53, where different numbers have become one"),
        ({"ids": np.array([1, 2**24, 2, 3], dtype=np.float32)}, r"`ids`: float32 16777216 is beyond 2\^24"),
        ({"ids": np.zeros(4, dtype=bool)}, "`ids`: values of type bool are no names"),
        ({"ids": np.array(["a\0b", "b", "c", "d"])}, "`ids`: .* holds a NUL"),
    ],
)
def test_broken_arrays_are_named(tmp_path: Path, broken: dict[str, Any], message: str) -> None:
    path = saved(tmp_path / "broken.npz", good(**broken))
    with pytest.raises(DataError, match=message) as caught:
        read_features(path, need_ids=True)
    assert "broken.npz" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"features\n1,2,3\n", "is no readable NumPy file"),
        (b"PK\x03\x04broken", "is no readable NumPy file"),
        (b"\x93NUMPY\x01\x00", "is no readable NumPy file"),
    ],
)
def test_files_that_are_no_feature_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "f.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_features(path, need_ids=False)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.npz does not exist"):
        read_features(tmp_path / "nothing.npz", need_ids=False)
    with pytest.raises(DataError, match="is a folder"):
        read_features(tmp_path, need_ids=False)


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_and_damaged_files(tmp_path: Path, compressed: bool, rng: np.random.Generator) -> None:
    path = tmp_path / "f.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, features=rng.normal(size=(50, 20)))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is no readable NumPy file"):
            read_features(path, need_ids=False)


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.savez(tmp_path / "f.npz", features=np.array([Trap()], dtype=object))
    with pytest.raises(DataError, match="array `features` cannot be read"):
        read_features(tmp_path / "f.npz", need_ids=False)
    np.save(tmp_path / "f.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="is no readable NumPy file"):
        read_features(tmp_path / "f.npy", need_ids=False)
    assert not (tmp_path / "sprung").exists()


def test_unknown_arrays_are_not_even_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.npz", good(names=np.array([{"a": 1}], dtype=object)))
    assert len(read_features(path, need_ids=True)) == 4


def test_rows_are_scaled_to_length_one_whatever_their_size() -> None:
    rows = np.array([[3, 4], [3e-30, 4e-30], [3e37, 4e37], [0, -1e-44]], dtype=np.float32)
    unit = normalize_rows(rows)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0, -1]], rtol=1e-6)
    assert rows[0, 0] == 3


def test_labels_are_written_under_the_exact_name_in_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "Labels.NPZ"
    write_labels(path, np.array([0, -1, 3]))
    assert list(path.parent.iterdir()) == [path]
    with np.load(path) as data:
        assert data.files == ["labels"]
        assert data["labels"].dtype == np.int64
        np.testing.assert_array_equal(data["labels"], [0, -1, 3])


def test_labels_that_cannot_be_written_are_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="could not write"):
        write_labels(tmp_path / "file" / "labels.npz", np.zeros(2, dtype=np.int64))
