from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ccreid_cli.core.errors import DataError
from ccreid_cli.data.catalog import CATALOG, DatasetInfo
from ccreid_cli.data.verify import VerifyReport, verify_dataset

Write = Callable[..., Path]


@pytest.fixture
def root(
    tmp_path: Path, write_boxes: Write, small: Callable[..., DatasetInfo], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setitem(CATALOG, "market1501", small())
    return write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15")


def failed(report: VerifyReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def test_a_complete_dataset_passes(root: Path, tmp_path: Path) -> None:
    report = verify_dataset("market1501", tmp_path, decode=True)
    assert report.passed and not failed(report)
    assert report.num_decoded == 8 and report.images_per_second > 0
    values = report.as_json()
    assert values["passed"] and values["num_images"] == {"train": 3, "query": 2, "gallery": 3}
    assert any("1 junk" in check.detail for check in report.checks)


def test_counts(root: Path, tmp_path: Path) -> None:
    next((root / "bounding_box_train").glob("0007*.jpg")).unlink()
    report = verify_dataset("market1501", tmp_path)
    assert failed(report) == {"train"}
    assert any("2 images of 1 identity; published: 3 of 2" in check.detail for check in report.checks)


def test_identities_in_train_and_query(root: Path, tmp_path: Path, write_images: Write) -> None:
    write_images(root / "query", ["0002_c1s1_000001_00.jpg"])
    assert failed(verify_dataset("market1501", tmp_path)) == {"query", "identities"}


def test_repeated_test_identities_are_not_compared(
    root: Path, tmp_path: Path, write_images: Write, small: Callable[..., DatasetInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOG, "market1501", small(test_ids_repeat=True))
    write_images(root / "query", ["0002_c1s1_000001_00.jpg"])
    assert failed(verify_dataset("market1501", tmp_path)) == {"query"}


def test_cameras_out_of_range(root: Path, tmp_path: Path, write_images: Write) -> None:
    write_images(root / "query", ["0001_c9s1_000001_00.jpg"])
    assert failed(verify_dataset("market1501", tmp_path)) == {"query", "cameras"}


def test_broken_images_are_named(root: Path, tmp_path: Path) -> None:
    truncated = root / "query" / "0001_c1s1_001051_00.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-60])
    empty = root / "bounding_box_train" / "0002_c1s1_000451_03.jpg"
    empty.write_bytes(b"")
    assert verify_dataset("market1501", tmp_path).passed  # not looked for unless asked
    report = verify_dataset("market1501", tmp_path, decode=True)
    assert failed(report) == {"images decode"}
    assert [image.path for image in report.broken] == [str(empty), str(truncated)]
    assert all(image.reason for image in report.broken)


def test_own_images(tmp_path: Path, write_images: Write) -> None:
    folder = write_images(tmp_path / "mine", ["a.jpg", "b.jpg"])
    (folder / "b.jpg").write_bytes(b"not a picture")
    report = verify_dataset(str(folder), tmp_path, decode=True)
    assert [image.path for image in report.broken] == [str(folder / "b.jpg")]


def test_images_that_training_would_refuse_are_broken(tmp_path: Path, write_images: Write) -> None:
    folder = write_images(tmp_path / "mine", ["a.jpg", "b.png"])
    Image.new("F", (4, 4)).save(folder / "b.png", "TIFF")
    (broken,) = verify_dataset(str(folder), tmp_path, decode=True).broken
    assert broken.path == str(folder / "b.png") and "mode F" in broken.reason and "save it as" in broken.reason


def test_absent_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was not found"):
        verify_dataset("market1501", tmp_path)
