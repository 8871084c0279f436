"""Extraction that is killed goes on with the shards that were finished, and gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.locks import FileLock, LockedError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.inference.embedder import EmbeddedFiles, Embedder
from ccreid_cli.inference.embedding_file import EmbeddingFile, read_embeddings
from ccreid_cli.inference.image_list import ImageList
from ccreid_cli.inference.image_parts import ListParts
from ccreid_cli.inference.loading import Preprocessing
from ccreid_cli.inference.shard_index import (
    check_feature_folder,
    is_feature_folder,
    read_index,
    recorded_precision,
    remove_shards,
)
from ccreid_cli.inference.sharded_extraction import Extraction, embed_in_shards, write_shards

SAY = SilentReporter()


@pytest.fixture
def images(tmp_path: Path, rng: np.random.Generator) -> ImageList:
    names = tuple(f"{number:02}.png" for number in range(11))
    folder = tmp_path / "images"
    folder.mkdir()
    for name in names:
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(folder / name)
    (folder / names[6]).write_bytes(b"junk")
    return ImageList(folder, names, tuple(name[1] for name in names), ("1",) * 11)


class Killed(BaseException):
    """As a signal that nothing catches."""


def dying_after(shards: int) -> Any:
    """Count the images that are computed, and die when more than so many shards are."""
    original, calls = Embedder.embed_files, []

    def embed_files(self: Embedder, paths: list[Path], **options: Any) -> EmbeddedFiles:
        if len(calls) == shards:
            raise Killed
        calls.append(len(paths))
        return original(self, paths, **options)

    return mock.patch.object(Embedder, "embed_files", embed_files), calls


def run(embedder: Embedder, images: ImageList, folder: Path | None, shards: int = 99) -> tuple[Any, list[int]]:
    patch, calls = dying_after(shards)
    with patch:
        try:
            return embed_in_shards(ListParts(images, 3), Extraction(embedder, folder, workers=0), SAY), calls
        except Killed:
            return None, calls


def write(embedder: Embedder, images: ImageList, folder: Path, shards: int = 99, **options: Any) -> list[int]:
    patch, calls = dying_after(shards)
    with patch, suppress(Killed):
        write_shards(ListParts(images, 3), Extraction(embedder, folder, workers=0), SAY, **options)
    return calls


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def whole(embedder: Embedder, images: ImageList) -> Iterator[tuple[EmbeddingFile, list[dict[str, str]]]]:
    yield run(embedder, images, None)[0]


def test_a_killed_extraction_goes_on_with_the_same_bytes(
    embedder: Embedder, images: ImageList, tmp_path: Path, whole: Any
) -> None:
    kept = tmp_path / "kept"
    for done in (1, 2):
        assert run(embedder, images, kept, done)[0] is None
    assert recorded_precision(kept) == "fp32" and recorded_precision(tmp_path / "none") is None
    (content, broken), calls = run(embedder, images, kept)
    assert calls == [2]  # 3 + 3 + 3 images were there
    assert content.features.tobytes() == whole[0].features.tobytes()
    assert (content.images.names, content.images.ids) == (whole[0].images.names, whole[0].images.ids)
    assert broken == whole[1] == [{"name": "06.png", "reason": "not an image"}]
    remove_shards(kept)
    assert not kept.exists()


def test_a_killed_folder_of_features_is_that_of_an_undisturbed_run(
    embedder: Embedder, images: ImageList, tmp_path: Path, whole: Any
) -> None:
    write(embedder, images, tmp_path / "once")
    folder = tmp_path / "killed"
    assert write(embedder, images, folder, 1) == [3] and write(embedder, images, folder, 2) == [3, 3]
    (folder / ".000003.npz.123.tmp").write_bytes(b"half")  # as a kill in the middle of writing leaves it
    assert is_feature_folder(folder)
    with pytest.raises(DataError, match=r"not finished: 1 of its 4 shards"):
        read_embeddings(folder)
    assert write(embedder, images, folder) == [2] and write(embedder, images, folder) == []
    assert contents(folder) == contents(tmp_path / "once") and len(contents(folder)) == 5
    content = read_embeddings(folder)
    assert content.matrix.tobytes() == whole[0].features.tobytes() and content.images.names == whole[0].images.names
    assert (content.images.ids, content.images.cams) == (whole[0].images.ids, ("1",) * 10)
    assert content.images.root == images.root and content.about["model"] == embedder.fingerprint
    index = read_index(folder)
    assert index is not None and index.rows == (3, 3, 2, 2)
    assert len(read_embeddings(folder / "000002.npz")) == 2  # each shard is a feature file


def test_a_folder_of_other_features_is_replaced_only_by_force(
    embedder: Embedder, images: ImageList, tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    write(embedder, images, folder)
    before = contents(folder)
    other = Embedder(embedder.loaded, Preprocessing(16, 16), "fp32")
    fewer = images.select(np.arange(5))
    for arguments, words in (
        ((other, images), "images prepared otherwise"),
        ((embedder, fewer), "another list of images"),
    ):
        with pytest.raises(UsageError, match=words):
            write(*arguments, folder)
    assert contents(folder) == before
    assert write(embedder, fewer, folder, replace=True) == [3, 2] and len(contents(folder)) == 3
    (folder / "index.json").write_text('{"format": "ccreid-feature-shards"}')
    with pytest.raises(DataError, match="damaged"):
        write(embedder, fewer, folder)
    assert write(embedder, fewer, folder, replace=True) == [3, 2]
    lock = FileLock(folder / ".lock")
    with lock, pytest.raises(LockedError, match="in use"):
        write(embedder, fewer, folder)


def test_shards_of_other_images_or_another_model_or_damaged_ones_are_made_again(
    embedder: Embedder, images: ImageList, tmp_path: Path, whole: Any
) -> None:
    kept = tmp_path / "kept"
    run(embedder, images, kept)
    (kept / "000001.npz").write_bytes((kept / "000001.npz").read_bytes()[:100])
    (found, _), calls = run(embedder, images, kept)
    assert calls == [3] and found.features.tobytes() == whole[0].features.tobytes()
    Image.new("RGB", (16, 32), "red").save(images.root / images.names[0])
    (found, _), calls = run(embedder, images, kept)
    assert calls == [3] and not np.array_equal(found.features[0], whole[0].features[0])
    other = Embedder(embedder.loaded, Preprocessing(16, 16), "fp32")
    assert run(other, images, kept)[1] == [3, 3, 3, 2]


def test_few_images_leave_nothing_behind(embedder: Embedder, images: ImageList, tmp_path: Path) -> None:
    run(embedder, images.select(np.arange(2)), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_broken_images_end_it_where_that_is_asked(embedder: Embedder, images: ImageList, tmp_path: Path) -> None:
    how = Extraction(embedder, tmp_path / "kept", workers=0, strict=True)
    with pytest.raises(DataError, match=r"1 of 11 images.*06\.png"):
        embed_in_shards(ListParts(images, 3), how, SAY)
    assert recorded_precision(tmp_path / "kept") == "fp32"
    with pytest.raises(DataError, match=r"1 of 1 images"):
        write(embedder, images.select(np.array([6])), tmp_path / "broken")


def test_folders_that_are_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    for folder, words in ((tmp_path, "other files"), (tmp_path / "holiday.jpg" / "out", "is a file")):
        with pytest.raises(UsageError, match=words):
            check_feature_folder(folder)
    check_feature_folder(tmp_path / "new" / "folder")


@pytest.mark.parametrize("damage", ["rows", "gone"])
def test_a_folder_that_has_changed_is_refused(
    damage: str, embedder: Embedder, images: ImageList, tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    write(embedder, images, folder)
    if damage == "gone":
        (folder / "000001.npz").unlink()
    else:
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**index, "rows": [3, 4, 2, 2]}))
    with pytest.raises(DataError, match=r"shards are missing|has not the 4 rows"):
        read_embeddings(folder)
