from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pictures import exif
from PIL import Image

from ccreid_cli import Embedder, load_model
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.engine import extraction
from ccreid_cli.engine.checkpoint import save_checkpoint
from ccreid_cli.inference.embedder import fingerprint_of
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

HEIGHT, WIDTH, DIM = 32, 16, 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one checkpoint of a small random network."""
    torch.manual_seed(0)
    spec = ModelSpec("resnet18", "gem", DIM)
    folder = tmp_path_factory.mktemp("logs") / "tiny"
    content = {"model": ReidNet(spec).state_dict(), "spec": dict(vars(spec))}
    content["preprocess"] = {"height": HEIGHT, "width": WIDTH}
    save_checkpoint(folder / "checkpoints" / "last.pt", content)
    (folder / "recipe.toml").write_text('[train]\ndataset = "toy"\n')
    return folder


@pytest.fixture(scope="module")
def embedder(run: Path) -> Embedder:
    return load_model("tiny", device="cpu", logs_dir=run.parent)


@pytest.fixture
def pictures() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (20 + 7 * i, 11 + 5 * i, 3), dtype=np.uint8) for i in range(5)]


@pytest.fixture
def files(pictures: list[NDArray[np.uint8]], tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "images" / f"sub{i % 2}" / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return paths


def test_the_network_is_prepared_once(
    run: Path, pictures: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, made = extraction.prepared, []
    monkeypatch.setattr("ccreid_cli.inference.embedder.prepared", lambda *given: made.append(given) or prepare(*given))
    monkeypatch.setattr(extraction, "prepared", lambda *given: pytest.fail("prepared again"))
    embedder = load_model("tiny", device="cpu", logs_dir=run.parent)
    one_by_one = embedder.embed(pictures, batch_size=1)
    np.testing.assert_allclose(one_by_one, embedder.embed(pictures), atol=1e-6)
    assert len(made) == 1


def test_features_are_those_of_a_plain_forward_pass(embedder: Embedder, pictures: list[NDArray[np.uint8]]) -> None:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    small = [np.asarray(Image.fromarray(p).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for p in pictures]
    inputs = ((np.stack(small) / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        expected = embedder.model(torch.from_numpy(inputs)).numpy()
    found = embedder.embed(pictures)
    assert found.dtype == np.float32 and found.shape == (5, DIM) == (5, embedder.embedding_dim)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_paths_pictures_and_arrays_mean_the_same(
    embedder: Embedder, pictures: list[NDArray[np.uint8]], files: list[Path]
) -> None:
    expected = embedder.embed(pictures)
    for images in (files, [str(path) for path in files], [Image.fromarray(p) for p in pictures]):
        np.testing.assert_allclose(embedder.embed(images), expected, atol=1e-5)
    mixed = [files[0], pictures[1], Image.fromarray(pictures[2]), str(files[3]), pictures[4]]
    np.testing.assert_allclose(embedder.embed(mixed, batch_size=2), expected, atol=1e-5)
    assert embedder.embed(files[0]).shape == embedder.embed(pictures[0]).shape == (1, DIM)
    assert embedder.embed(np.stack([pictures[0]] * 3)).shape == (3, DIM)
    assert embedder.embed([]).shape == (0, DIM)


def test_broken_files_are_left_out_wherever_they_lie(embedder: Embedder, files: list[Path], tmp_path: Path) -> None:
    junk = tmp_path / "junk.jpg"
    junk.write_bytes(b"no image")
    mixture = [junk, *files[:2], tmp_path / "absent.jpg", *files[2:], junk]
    found = embedder.embed_files(mixture * 5, batch_size=3)
    expected = [place + 8 * turn for turn in range(5) for place in (1, 2, 4, 5, 6)]
    assert found.kept.tolist() == expected
    assert {position % 8 for position, _ in found.broken} == {0, 3, 7}
    np.testing.assert_allclose(found.features, np.tile(embedder.embed(files), (5, 1)), atol=1e-5)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), 7, None]
)
def test_what_is_no_image_is_said_to_be_none(embedder: Embedder, bad: object) -> None:
    with pytest.raises(UsageError, match="image 0 is"):
        embedder.embed([bad])  # type: ignore[list-item]  # on purpose


def test_broken_files_are_named(embedder: Embedder, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 2 images .*x\.jpg"):
        embedder.embed([files[0], tmp_path / "x.jpg"])
    with pytest.raises(DataError, match=r"image 1, .*x\.jpg"):
        embedder.embed([Image.new("L", (3, 3)), tmp_path / "x.jpg"])


def test_load_model_finds_runs_and_files(run: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedder.input_size == (HEIGHT, WIDTH)
    again = load_model(run / "checkpoints" / "last.pt", device="cpu")
    assert again.fingerprint == embedder.fingerprint and len(again.fingerprint) == 64
    monkeypatch.setenv("CCREID_LOGS_DIR", str(run.parent))
    assert load_model("tiny", device="cpu").source == embedder.source
    with pytest.raises(DataError, match='no run "tinny"'):
        load_model("tinny", device="cpu")
    with pytest.raises(DataError, match="best"):
        load_model("tiny", device="cpu", checkpoint="best")
    for wrong in ({"precision": "fp8"}, {"device": "tpu"}, {"checkpoint": "worst"}):
        with pytest.raises(UsageError, match="not known"):
            load_model("tiny", **wrong)  # type: ignore[arg-type]  # on purpose


def test_the_fingerprint_changes_with_weights_and_pooling() -> None:
    torch.manual_seed(0)
    average = ReidNet(ModelSpec("resnet18", "avg", 4))
    maximum = ReidNet(ModelSpec("resnet18", "max", 4))
    maximum.load_state_dict(average.state_dict())
    before = fingerprint_of(average)
    assert fingerprint_of(average.to(memory_format=torch.channels_last)) == before != fingerprint_of(maximum)
    with torch.no_grad():
        average.neck.weight[0] += 1e-6
    assert fingerprint_of(average) != before


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, ccreid_cli; dir(ccreid_cli); print('torch' in sys.modules, 'load_model' in dir(ccreid_cli))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_picture_counts_as_it_is_shown_from_a_file_and_from_memory(embedder: Embedder, tmp_path: Path) -> None:
    stored = Image.fromarray(np.random.default_rng(5).integers(0, 256, (20, 30, 4), dtype=np.uint8))
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif(6))
    over_white = Image.alpha_composite(Image.new("RGBA", stored.size, "white"), stored).convert("RGB")
    expected = embedder.embed(np.asarray(over_white.transpose(Image.Transpose.ROTATE_270)))
    mixed = [path, Image.open(path), Image.open(path).copy(), over_white.transpose(Image.Transpose.ROTATE_270)]
    np.testing.assert_allclose(embedder.embed(path), expected, atol=1e-2)
    np.testing.assert_allclose(embedder.embed(mixed), np.repeat(expected, 4, axis=0), atol=1e-2)
    np.testing.assert_array_equal(embedder.embed(Image.open(path)), embedder.embed(path))
    assert np.abs(embedder.embed(stored.convert("RGB")) - expected).max() > 0.02


def test_a_picture_that_cannot_be_shown_is_named(embedder: Embedder, tmp_path: Path) -> None:
    deep = Image.new("F", (4, 4))
    deep.save(tmp_path / "float.tif")
    for images in ([deep], [tmp_path / "float.tif"], [tmp_path / "float.tif", deep]):
        with pytest.raises(DataError, match="(image 0|float.tif).*mode F.*save it as 8-bit"):
            embedder.embed(images)
