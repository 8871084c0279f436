from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data import toy
from ccreid_cli.data.toy import FOLDERS, make_toy

NAME = re.compile(r"(-1|\d{4})_c([1-4])s1_(\d{6})_01\.jpg")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "toy"
    make_toy(folder)
    return folder


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels (N, 128, 64, 3), identities and cameras of one folder, by file name."""
    files = sorted(folder.iterdir())
    found = [NAME.fullmatch(file.name) for file in files]
    assert all(found)
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    return pixels, np.array([int(m[1]) for m in found if m]), np.array([int(m[2]) for m in found if m])


@pytest.fixture(scope="module")
def splits(dataset: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return {name: read(dataset / name) for name in FOLDERS}


def few_people(patch: pytest.MonkeyPatch) -> None:
    """Make the dataset small, for tests of how it is written."""
    for name, value in (("TRAIN_IDENTITIES", 2), ("TEST_IDENTITIES", 2), ("NUM_JUNK", 2), ("NUM_DISTRACTORS", 2)):
        patch.setattr(toy, name, value)


def test_layout_is_market_1501s(dataset: Path, splits: dict[str, tuple[np.ndarray, ...]]) -> None:
    assert sorted(path.name for path in dataset.iterdir()) == sorted(FOLDERS)
    for pixels, _, cameras in splits.values():
        assert pixels.shape[1:] == (128, 64, 3)
        assert set(cameras) == {1, 2, 3, 4}
    train, query, gallery = (splits[name][1] for name in FOLDERS)
    assert len(set(train)) == 32 and len(set(query)) == 24
    assert not set(train) & set(query)
    assert set(gallery) == {-1, 0} | set(query)
    assert len(train) == 896 and len(query) == 96 and len(gallery) == 24 * 16 + 40 + 40


def test_every_query_has_a_match_in_another_camera(splits: dict[str, tuple[np.ndarray, ...]]) -> None:
    (_, query, query_cameras), (_, gallery, gallery_cameras) = splits["query"], splits["bounding_box_test"]
    for person, camera in zip(query, query_cameras, strict=True):
        assert ((gallery == person) & (gallery_cameras != camera)).sum() == 12


def test_cameras_differ_in_light_and_tint(splits: dict[str, tuple[np.ndarray, ...]]) -> None:
    pixels, _, cameras = splits["bounding_box_train"]
    means = np.array([pixels[cameras == camera].mean(axis=(0, 1, 2)) for camera in (1, 2, 3, 4)])
    for first in range(4):
        for second in range(first):
            assert np.abs(means[first] - means[second]).max() > 3


def test_people_share_shirts_or_trousers_but_never_both() -> None:
    people = toy._people(0)[: toy.TRAIN_IDENTITIES + toy.TEST_IDENTITIES]
    assert len({(look.shirt, look.trousers) for look in people}) == len(people)
    assert len({look.shirt for look in people}) < len(people) / 3
    assert len({look.trousers for look in people}) < len(people) / 3


def raw_pixel_map(splits: dict[str, tuple[np.ndarray, ...]]) -> float:
    """Return the mAP of comparing small pictures pixel by pixel: what no learning gives."""

    def features(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), 16, 8, 8, 8, 3).mean(axis=(2, 4)).reshape(len(pixels), -1)

    query, query_ids, query_cameras = splits["query"]
    gallery, ids, cameras = splits["bounding_box_test"]
    rows, columns = features(query), features(gallery)
    distances = (rows**2).sum(axis=1)[:, None] + (columns**2).sum(axis=1) - 2 * rows @ columns.T
    scores = []
    for distance, person, camera in zip(distances, query_ids, query_cameras, strict=True):
        valid = (ids >= 0) & ~((ids == person) & (cameras == camera))
        hits = np.flatnonzero(ids[valid][np.argsort(distance[valid])] == person)
        scores.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    return float(np.mean(scores))


def test_neither_trivial_nor_hopeless(splits: dict[str, tuple[np.ndarray, ...]]) -> None:
    chance = 12 / (24 * 16)
    assert 3 * chance < raw_pixel_map(splits) < 0.55


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_people(monkeypatch)
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_toy(tmp_path / name, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jpg"))
    assert len(files) > 20
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert not any((tmp_path / "a" / file).read_bytes() == (tmp_path / "c" / file).read_bytes() for file in files)


def test_bytes_do_not_depend_on_hash_seed_time_zone_or_locale(dataset: Path, tmp_path: Path) -> None:
    program = (
        "import hashlib, sys\n"
        "from ccreid_cli.data import toy\n"
        "shots = sorted(toy._shots(0), key=lambda shot: shot.name)[::97]\n"
        "print(hashlib.sha256(b''.join(toy.draw_shot(shot, 0) for shot in shots)).hexdigest())\n"
    )
    root = Path(toy.__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    shots = sorted(toy._shots(0), key=lambda shot: shot.name)[::97]
    data = b"".join((dataset / shot.folder / shot.name).read_bytes() for shot in shots)
    assert result.stdout.strip() == hashlib.sha256(data).hexdigest()


def test_a_dataset_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_people(monkeypatch)
    make_toy(tmp_path / "toy")
    (tmp_path / "toy" / "query" / "note.txt").write_text("mine")
    make_toy(tmp_path / "toy")
    assert (tmp_path / "toy" / "query" / "note.txt").read_text() == "mine"


def test_another_folder_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_people(monkeypatch)
    folder = tmp_path / "toy"
    folder.mkdir()
    make_toy(folder)  # an empty folder is as good as none
    assert (folder / "query").is_dir()
    other = tmp_path / "other"
    (other / "query").mkdir(parents=True)
    with pytest.raises(DataError, match="other") as caught:
        make_toy(other)
    assert caught.value.hint
    assert [path.name for path in other.iterdir()] == ["query"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="could not write"):
        make_toy(tmp_path / "file" / "toy")


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(SilentReporter):
        @contextmanager
        def task(self, description: str, total: int, unit: str = "it") -> Iterator[Impatient]:
            yield self

        def advance(self, amount: int = 1) -> None:
            raise KeyboardInterrupt

    few_people(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make_toy(tmp_path / "data" / "toy", reporter=Impatient())
    assert list((tmp_path / "data").iterdir()) == []


def test_two_processes_at_once_end_with_one_whole_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_people(monkeypatch)
    folder = tmp_path / "toy"
    draw_all = toy._draw_all

    def draw_while_another_finishes(unfinished: Path, seed: int, reporter: object) -> None:
        monkeypatch.setattr(toy, "_draw_all", draw_all)
        make_toy(folder, seed)
        draw_all(unfinished, seed, SilentReporter())

    monkeypatch.setattr(toy, "_draw_all", draw_while_another_finishes)
    make_toy(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(FOLDERS)
