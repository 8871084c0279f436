"""Extraction that is killed goes on with the chunks that were finished, and gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TinyNet

from ccreid_cli.core.errors import DataError
from ccreid_cli.inference.embedder import EmbeddedFiles, Embedder, embed_images
from ccreid_cli.inference.image_list import ImageList
from ccreid_cli.inference.kept_chunks import KeptChunks, embed_in_chunks
from ccreid_cli.inference.loading import LoadedModel, Preprocessing
from ccreid_cli.models.reid_net import ModelSpec, ReidNet


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    torch.manual_seed(0)
    assert TinyNet  # importing it registers the network
    model = ReidNet(ModelSpec("tiny")).eval()
    return Embedder(LoadedModel(model, "tiny", None, {}, torch.device("cpu")), Preprocessing(32, 16), "fp32")


@pytest.fixture
def images(tmp_path: Path, rng: np.random.Generator) -> ImageList:
    names = tuple(f"{number:02}.png" for number in range(11))
    for name in names:
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / names[6]).write_bytes(b"junk")
    return ImageList(tmp_path, names)


class Killed(BaseException):
    """As a signal that nothing catches."""


def dying_after(chunks: int) -> Any:
    """Count the images that are computed, and die when more than so many chunks are."""
    original, calls = Embedder.embed_files, []

    def embed_files(self: Embedder, paths: list[Path], **options: Any) -> EmbeddedFiles:
        if len(calls) == chunks:
            raise Killed
        calls.append(len(paths))
        return original(self, paths, **options)

    return mock.patch.object(Embedder, "embed_files", embed_files), calls


def run(embedder: Embedder, images: ImageList, folder: Path, chunks: int = 99) -> tuple[Any, list[int]]:
    patch, calls = dying_after(chunks)
    with patch:
        try:
            return embed_in_chunks(embedder, images, KeptChunks(folder), chunk=3, workers=0), calls
        except Killed:
            return None, calls


@pytest.fixture
def whole(embedder: Embedder, images: ImageList, tmp_path: Path) -> Iterator[Any]:
    yield run(embedder, images, tmp_path / "whole")[0]


def test_a_killed_extraction_goes_on_with_the_same_bytes(
    embedder: Embedder, images: ImageList, tmp_path: Path, whole: Any
) -> None:
    kept = tmp_path / "kept"
    for done in (1, 2):
        assert run(embedder, images, kept, done)[0] is None
    assert KeptChunks(kept).precision() == "fp32"
    (content, broken), calls = run(embedder, images, kept)
    assert calls == [2]  # 3 + 3 + 3 images were there
    assert content.features.tobytes() == whole[0].features.tobytes() and content.images.names == whole[0].images.names
    assert broken == whole[1] == [{"name": "06.png", "reason": "not an image"}]
    KeptChunks(kept).remove()
    assert not kept.exists()


def test_it_gives_what_one_extraction_gives(embedder: Embedder, images: ImageList, whole: Any) -> None:
    content, broken = embed_images(embedder, images, workers=0)
    assert np.allclose(content.features, whole[0].features, atol=1e-6)
    assert (content.images.names, broken) == (whole[0].images.names, whole[1])


def test_chunks_of_other_images_or_another_model_or_damaged_ones_are_made_again(
    embedder: Embedder, images: ImageList, tmp_path: Path, whole: Any
) -> None:
    kept = tmp_path / "kept"
    run(embedder, images, kept)
    (kept / "000001.npz").write_bytes((kept / "000001.npz").read_bytes()[:100])
    (found, _), calls = run(embedder, images, kept)
    assert calls == [3] and found.features.tobytes() == whole[0].features.tobytes()
    Image.new("RGB", (16, 32), "red").save(tmp_path / images.names[0])
    (found, _), calls = run(embedder, images, kept)
    assert calls == [3] and not np.array_equal(found.features[0], whole[0].features[0])
    other = Embedder(embedder.loaded, Preprocessing(16, 16), "fp32")
    assert run(other, images, kept)[1] == [3, 3, 3, 2]


def test_few_images_leave_nothing_behind(embedder: Embedder, images: ImageList, tmp_path: Path) -> None:
    few = images.select(np.arange(2))
    embed_in_chunks(embedder, few, KeptChunks(tmp_path / "kept"), workers=0)
    assert not (tmp_path / "kept").exists()


def test_broken_images_end_it_where_that_is_asked(embedder: Embedder, images: ImageList, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="06.png"):
        embed_in_chunks(embedder, images, KeptChunks(tmp_path / "kept"), workers=0, strict=True, chunk=3)
    assert (tmp_path / "kept").exists()
