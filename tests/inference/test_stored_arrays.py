"""Feature files of every form give the same arrays; what is missing or does not fit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccreid_cli.core.errors import DataError
from ccreid_cli.inference.embedding_file import EmbeddingFile, read_embeddings, write_embeddings
from ccreid_cli.inference.feature_file import read_features
from ccreid_cli.inference.image_list import ImageList

ROWS = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
IDS, CAMS = ("0001", "a, b", ""), ("1", "", "02")


def npy(folder: Path, table: str | None = None) -> Path:
    np.save(folder / "f.npy", ROWS)
    if table is not None:
        (folder / "f.csv").write_text(table, encoding="utf-8")
    return folder / "f.npy"


TABLE = 'path,id,camera\nx/a.jpg,0001,1\nb.jpg,"a, b",\nc.jpg,-1, 02 \n'


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_files_of_extract_are_read_for_scores(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    write_embeddings(tmp_path / f"f{suffix}", EmbeddingFile(ROWS, ImageList(tmp_path, ("a", "b", "c"), IDS, CAMS), {}))
    found = read_features(tmp_path / f"f{suffix}", need_ids=True)
    np.testing.assert_array_equal(found.features, ROWS)
    assert (found.ids, found.cams) == (IDS, CAMS)
    assert found.about["version"] == 2


def test_an_npy_with_a_table_beside_it(tmp_path: Path) -> None:
    path = npy(tmp_path, TABLE)
    found = read_features(path, need_ids=True)
    np.testing.assert_array_equal(found.features, ROWS)
    assert (found.ids, found.cams) == (IDS, CAMS)
    images = read_embeddings(path).images
    assert (images.names, images.ids) == (("x/a.jpg", "b.jpg", "c.jpg"), IDS)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (None, r"f\.npy has no array `ids`; it has `features`\."),
        ("pid,camera\n1,1\n2,1\n3,1\n", r"no array `ids`; it has `features`, `cams`, `pid`\. Is `pid` meant"),
        ("id,camera\n1,1\n2,1\n", r"f\.csv has 2 lines below its header, but .*f\.npy has 3 rows"),
        ("id,camera\n1,1\n2\n3,1\n", r"f\.csv, line 3: 1 fields"),
        ("", r"no array `ids`"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, table: str | None, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        read_features(npy(tmp_path, table), need_ids=True)
    assert "f.csv" in caught.value.message + str(caught.value.hint) or "line 3" in caught.value.message


def test_a_table_about_something_else_is_left_alone(tmp_path: Path) -> None:
    assert read_features(npy(tmp_path, "day,sales\n1,2\n"), need_ids=False).ids is None


def test_a_table_in_another_order_than_the_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    write_embeddings(path, EmbeddingFile(ROWS, ImageList(tmp_path, ("b.jpg", "x/a.jpg", "c.jpg")), {}))
    (tmp_path / "f.csv").write_text(TABLE)
    with pytest.raises(DataError, match="not in the order"):
        read_features(path, need_ids=True)
    (tmp_path / "f.csv").write_text(TABLE.replace("x/a.jpg", "b.jpg").replace('\nb.jpg,"', '\nx/a.jpg,"'))
    assert read_features(path, need_ids=True).ids == IDS


def parquet(path: Path, /, **columns: Any) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({name: pa.array(*value) for name, value in columns.items()}), path)
    return path


def test_parquet_of_others(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = (ROWS.tolist(), pa.list_(pa.float64()))
    path = parquet(tmp_path / "f.parquet", features=rows, ids=([1, None, 3], pa.uint64()), camera=([1.0, None, 2.0],))
    found = read_features(path, need_ids=True)
    np.testing.assert_array_equal(found.features, ROWS)
    assert (found.ids, found.cams) == (("1", "", "3"), ("1", "", "2"))
    named = parquet(path, feature=rows, id=(["x", None, "017"],), camera=(["a"] * 3,), path=(["1.jpg", "2.jpg", "3"],))
    assert read_features(named, need_ids=True).ids == ("x", "", "017")
    assert read_embeddings(named).images.names == ("1.jpg", "2.jpg", "3")
    for broken, expected in (
        ({"id": ([1.0, 2.0**24, 3.0], pa.float32())}, r"`ids`: float32 16777216 is beyond 2\^24"),
        ({"feature": ([[1.0], [2.0, 3.0], [1.0]],)}, "all of one length"),
        ({"feature": ([1.0, 2.0, 3.0],)}, "a list of numbers per row"),
        ({"id": ([True, False, True],)}, "True is neither text nor a whole number"),
    ):
        columns = {"feature": rows, "id": (["1"] * 3,), "camera": (["1"] * 3,), **broken}
        with pytest.raises(DataError, match=expected):
            read_features(parquet(path, **columns), need_ids=True)
    with pytest.raises(DataError, match=r"no array `cams`; it has `features`, `ids`, `camid`\. Is `camid` meant\?"):
        read_features(parquet(path, feature=rows, id=(["1"] * 3,), camid=(["1"] * 3,)), need_ids=True)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"feats": ROWS}, r"no array `features`; it has `feats`\. Is `feats` meant\?"),
        (
            {"features": ROWS, "Pids": [1], "c": [2]},
            r"no array `ids`; it has .*, `Pids`, `c`\. Is `Pids` meant",
        ),
        ({"features": ROWS, "ids": [1, 2, 3], "camz": [1]}, r"no array `cams`; it has .*Is `camz` meant\?"),
        ({"features": ROWS, "y": [1]}, r"no array `ids`; it has `features`, `y`\.$"),
        ({}, r"it has nothing at all"),
    ],
)
def test_a_wrong_array_name_lists_what_is_there(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(DataError, match=expected):
        read_features(tmp_path / "f.npz", need_ids=True)


def test_features_of_a_plain_folder_say_how_to_get_ids(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "f.npz", EmbeddingFile(ROWS, ImageList(tmp_path, ("a", "b", "c")), {}))
    with pytest.raises(DataError, match="no array `ids`") as caught:
        read_features(tmp_path / "f.npz", need_ids=True)
    assert "--split" in str(caught.value.hint)


def test_a_compression_that_does_not_exist_is_said(tmp_path: Path) -> None:
    """A damaged byte can name one: zipfile then raises NotImplementedError."""
    path = tmp_path / "f.npz"
    np.savez(path, features=ROWS)
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[8] = data[central + 10] = 99
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"f\.npz is no readable NumPy file"):
        read_features(path, need_ids=False)
