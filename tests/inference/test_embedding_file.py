from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.inference.embedding_file import EmbeddingFile, read_embeddings, write_embeddings
from ccreid_cli.inference.image_list import ImageList

DIM = 8
ABOUT = {"model": "a" * 64, "source": "run/last.pt", "preprocess": {"height": 32, "width": 16, "precision": "fp32"}}


def _content(root: Path) -> EmbeddingFile:
    features = np.random.default_rng(0).standard_normal((3, DIM)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = ("a.jpg", "sub/ä.jpg", "c.jpg")
    images = ImageList(root, names, ("0001", "Zoë, 2", ""), ("0", "5", ""), np.array(["train", "train", "query"]))
    return EmbeddingFile(features, images, ABOUT)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_feature_files_come_back_whole(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    content = _content(tmp_path)
    path = tmp_path / "new" / f"f{suffix}"
    write_embeddings(path, content)
    found = read_embeddings(path)
    np.testing.assert_array_equal(found.features, content.features)
    assert isinstance(found.features, np.memmap) == (suffix == ".npy")
    assert found.images.names == content.images.names and found.images.root == tmp_path
    assert found.images.splits is not None and found.images.splits.tolist() == ["train", "train", "query"]
    assert (found.images.ids, found.images.cams) == (content.images.ids, content.images.cams)
    assert {key: found.about[key] for key in ABOUT} == ABOUT


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Not a part of a set of files either: it would be in the way of the next attempt."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("save", "savez"):
        monkeypatch.setattr(np, name, full)
    if suffix == ".parquet":
        monkeypatch.setattr(pytest.importorskip("pyarrow.parquet"), "write_table", full)
    with pytest.raises(DataError, match="No space left"):
        write_embeddings(tmp_path / "new" / f"f{suffix}", _content(tmp_path))
    assert not list((tmp_path / "new").iterdir())


def test_npz_is_what_numpy_users_expect(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "f.npz", _content(tmp_path))
    with np.load(tmp_path / "f.npz") as loaded:
        assert loaded["features"].dtype == np.float32 and loaded["features"].shape == (3, DIM)
        assert loaded["names"].tolist()[1] == "sub/ä.jpg" and loaded["ids"].tolist() == ["0001", "Zoë, 2", ""]
        assert json.loads(str(loaded["about"]))["model"] == ABOUT["model"]


def test_feature_files_that_cannot_be_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _content(tmp_path)
    with pytest.raises(UsageError, match=r"\.npz, \.npy, \.parquet"):
        write_embeddings(tmp_path / "f.csv", content)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pyarrow") as caught:
        write_embeddings(tmp_path / "f.parquet", content)
    assert "ccreid[parquet]" in str(caught.value.hint)
    broken_name = ImageList(tmp_path, ("a\nb.jpg",))
    with pytest.raises(DataError, match="line break"):
        write_embeddings(tmp_path / "f.npy", EmbeddingFile(content.features[:1], broken_name, {}))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no")
    for name in ("bad.npz", "absent.npy"):
        with pytest.raises(DataError, match=name):
            read_embeddings(tmp_path / name)
    write_embeddings(tmp_path / "f.npy", content)
    (tmp_path / "f.txt").write_text("only one\n")
    with pytest.raises(DataError, match="differ in number"):
        read_embeddings(tmp_path / "f.npy")


def test_files_of_others_are_taken_and_normalised(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=np.array([[3.0, 4.0], [0.0, 2.0]]))
    found = read_embeddings(tmp_path / "f.npz")
    np.testing.assert_allclose(found.features, [[0.6, 0.8], [0, 1]], atol=1e-6)
    assert not found.about and found.images.names == ("row 0", "row 1")
