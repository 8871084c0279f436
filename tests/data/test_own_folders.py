"""What is taken, and what is left out aloud, of a folder of own images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset

Write = Callable[..., Path]


def load(path: Path, reporter: Any = None, columns: str | None = None) -> ReidDataset:
    return load_dataset(str(path), Path("unused"), reporter or SilentReporter(), columns=columns)


def test_every_image_outside_the_splits_is_counted_and_named(
    tmp_path: Path, write_images: Write, listener: Any
) -> None:
    names = ["train/1_c1_0.jpg", "query/2_c1_0.jpg", "gallery/2_c2_0.tif", "@eaDir/1_c1_0.jpg", ".thumbnails/x.jpg"]
    write_images(tmp_path, [*names, "val/3_c1_0.jpg", "gallery_extra/2_c1_0.gif", "loose.jpg", "train/4_c1_0.heic"])
    dataset = load(tmp_path, listener)
    assert dataset.gallery.names == ("gallery/2_c2_0.tif",)
    assert [text.partition(": ")[2] for text in listener.warnings] == [
        "1 image is left out, the first train/4_c1_0.heic, of a format that cannot be read here.",
        "3 images are left out, the first gallery_extra/2_c1_0.gif, being outside train, query, gallery: "
        "1 in gallery_extra/, 1 in the folder itself, 1 in val/.",
    ]


def test_train_all_is_taken_before_the_train_it_holds(tmp_path: Path, write_images: Write, listener: Any) -> None:
    names = [f"{folder}/0001/0001_c1s1_{folder}.jpg" for folder in ("train_all", "train", "val")]
    names += ["query/0002/0002_c1s1_0.jpg", "gallery/0002/0002_c2s1_0.jpg", "gallery/-1/-1_c2s1_0.jpg"]
    dataset = load(write_images(tmp_path, names), listener)
    assert dataset.train.names == ("train_all/0001/0001_c1s1_train_all.jpg",)
    assert dataset.gallery.identities == ("0002",)
    assert any("1 in train/, 1 in val/" in text for text in listener.warnings)


def test_names_of_split_folders_in_any_case(tmp_path: Path, write_images: Write) -> None:
    dataset = load(write_images(tmp_path, ["Train/1_c1_0.jpg", "Query/2_c1_0.jpg", "Gallery/2_c2_0.jpg"]))
    assert [len(split) for split in dataset.splits.values()] == [1, 1, 1]


def test_query_and_gallery_within_test(tmp_path: Path, write_images: Write) -> None:
    dataset = load(write_images(tmp_path, ["train/1_c1_0.jpg", "test/query/2_c1_0.jpg", "test/gallery/2_c2_0.jpg"]))
    assert dataset.query.names == ("test/query/2_c1_0.jpg",)
    assert dataset.gallery.names == ("test/gallery/2_c2_0.jpg",)


def test_parts_of_a_dataset_are_no_identities(tmp_path: Path, write_images: Write) -> None:
    mars = ["bbox_train/0001/0001C1T0001F001.jpg", "bbox_test/0002/0002C1T0001F001.jpg"]
    with pytest.raises(DataError, match=r"bbox_test, bbox_train are named like parts.*info/query_IDX\.mat"):
        load(write_images(tmp_path / "m", mars))
    assert load(tmp_path / "m" / "bbox_train").train.identities == ("0001",)


def test_folders_per_camera_are_no_identities(tmp_path: Path, write_images: Write) -> None:
    names = ["train/cam1/1_c1_0.png", "train/cam2/1_c2_0.png", "query/cam1/2_c1_0.png", "gallery/cam2/2_c2_0.png"]
    dataset = load(write_images(tmp_path / "n", names))
    assert (dataset.train.identities, dataset.train.cameras) == (("1", "1"), ("1", "2"))
    with pytest.raises(DataError, match="cam_a, cam_b.*named like cameras"):
        load(write_images(tmp_path / "c", ["cam_a/x.jpg", "cam_b/y.jpg"]))


@pytest.mark.parametrize("stray", [[], ["adam/portrait.jpg"]])
def test_names_and_folders_that_disagree_are_both_said(tmp_path: Path, write_images: Write, stray: list[str]) -> None:
    write_images(tmp_path, ["adam/0001_c1.jpg", "adam/0002_c1.jpg", "zoe/0001_c2.jpg", *stray])
    with pytest.raises(DataError, match="By their names .* 2 identities; by their sub-folders .adam, zoe. 2") as caught:
        load(tmp_path)
    assert "manifest" in (caught.value.hint or "")
    by_folders = load(tmp_path, columns="id=folders")
    assert set(by_folders.train.identities) == {"adam", "zoe"}
    if not stray:
        assert load(tmp_path, columns="id=names").train.identities == ("0001", "0002", "0001")
    with pytest.raises(UsageError, match="id=names or id=folders"):
        load(tmp_path, columns="camera=x")


def test_each_split_is_read_by_its_own_form(tmp_path: Path, write_images: Write, listener: Any) -> None:
    names = ["train/p1/a.png", "train/p2/b.png", "query/1_c1_0.png", "gallery/1_c2_0.png"]
    dataset = load(write_images(tmp_path, names), listener)
    assert dataset.train.identities == ("p1", "p2")
    assert (dataset.query.identities, dataset.gallery.cameras) == (("1",), ("2",))
    assert "train: from the sub-folders; query: from the file names" in listener.warnings[0]


def test_splits_of_folders_per_identity_are_read_alike(tmp_path: Path, write_images: Write, listener: Any) -> None:
    names = ["train/adam/1_c2.png", "train/zoe/2_c10.png", "query/10/a_c1.png", "gallery/10/b_c2.png"]
    dataset = load(write_images(tmp_path, names), listener)
    assert dataset.train.identities == ("adam", "zoe") and dataset.train.cameras == ("2", "10")
    assert not listener.warnings


def test_queries_and_gallery_of_different_forms_without_a_common_identity(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["query/1_c1_0.png", "gallery/ada/a.png"])
    with pytest.raises(DataError, match="queries' identities are taken from the file names"):
        load(tmp_path)


def test_part_of_a_hash_is_no_camera(tmp_path: Path, write_images: Write, listener: Any) -> None:
    write_images(
        tmp_path, ["query/a/x_c1.jpg", "gallery/a/y_c0ffee.jpg", "gallery/a/z_c0ffee.jpg", "gallery/a/w_c1.jpg"]
    )
    dataset = load(tmp_path, listener)
    assert dataset.gallery.cameras == ("1", "", "")
    assert any("2 of 4 images have no camera" in text for text in listener.warnings)
    assert not any("cannot be scored" in text for text in listener.warnings)


def test_other_datasets_of_the_catalogue_are_known_by_their_lists(tmp_path: Path, write_images: Write) -> None:
    names = ["train/0000/0000_000_01_0303morning_0008_0.jpg", "test/0001/0001_000_02_0303morning_0008_0.jpg"]
    root = write_images(tmp_path / "mine", [*names, "test/0001/0001_001_03_0303morning_0008_0.jpg"])
    for split, line in (
        ("train", "0000/0000_000_01_0303morning_0008_0.jpg 0"),
        ("val", ""),
        ("query", "0001/0001_000_02_0303morning_0008_0.jpg 0"),
        ("gallery", "0001/0001_001_03_0303morning_0008_0.jpg 0"),
    ):
        (root / f"list_{split}.txt").write_text(line + "\n")
    dataset = load(root)
    assert [len(split) for split in dataset.splits.values()] == [1, 1, 1]
    assert dataset.name == str(root) and dataset.query.cameras == ("02",)
