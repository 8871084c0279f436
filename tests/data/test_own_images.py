"""A user's own images, in every layout."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset, queries_without_match

Write = Callable[..., Path]


def load(path: Path, reporter: SilentReporter | None = None) -> ReidDataset:
    return load_dataset(str(path), Path("unused"), reporter or SilentReporter())


def test_market_style_folder(tmp_path: Path, write_boxes: Write) -> None:
    dataset = load(write_boxes(tmp_path / "mine"))
    assert dataset.gallery.person_ids.tolist() == [0, 1, 3]
    assert dataset.train.camera_ids.tolist() == [0, 1, 3]  # cameras 1, 2, 3, 6 of all splits, numbered from 0
    assert dataset.has_evaluation
    assert dataset.name == str(tmp_path / "mine")


def test_folder_that_holds_only_the_dataset(tmp_path: Path, write_boxes: Write, listener: Any) -> None:
    write_boxes(tmp_path / "mine" / "unpacked")
    assert load(tmp_path / "mine", listener).root == tmp_path / "mine" / "unpacked"
    assert "unpacked" in listener.messages[0]


def test_bare_crops_have_neither_ids_nor_cameras(tmp_path: Path, write_images: Write, listener: Any) -> None:
    write_images(tmp_path / "crops", ["b.PNG", "a.jpg", "sub/c.jpeg", ".hidden.jpg"])
    (tmp_path / "crops" / "notes.txt").write_text("x")
    dataset = load(tmp_path / "crops", listener)
    assert dataset.train.names == ("a.jpg", "b.PNG", "sub/c.jpeg")
    assert dataset.train.person_ids.tolist() == [-1, -1, -1]
    assert dataset.train.camera_ids.tolist() == [0, 0, 0]
    assert not (dataset.has_evaluation or dataset.has_train_ids or dataset.has_cameras)
    assert len(listener.warnings) == 1


def test_names_that_give_identity_and_camera_are_used(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / "crops", ["0004_c3_1.jpg", "0002_c7_1.jpg", "-1_c3_2.jpg"])
    dataset = load(tmp_path / "crops")
    assert dataset.train.person_ids.tolist() == [-1, 2, 4]
    assert dataset.train.identities == ("", "0002", "0004")
    assert dataset.train.cameras == ("3", "7", "3")
    assert dataset.train.camera_ids.tolist() == [0, 1, 0]


def test_folder_per_identity(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / "people", ["zoe/1_c2.jpg", "adam/5_c1.jpg", "adam/deep/6.jpg"])
    dataset = load(tmp_path / "people")
    assert dataset.train.names == ("adam/5_c1.jpg", "adam/deep/6.jpg", "zoe/1_c2.jpg")
    assert dataset.train.person_ids.tolist() == [0, 0, 1]
    assert dataset.train.camera_ids.tolist() == [1, 0, 2]  # no camera comes before camera 1
    assert dataset.has_train_ids and not dataset.has_evaluation


def test_identity_folders_with_splits_and_no_cameras(tmp_path: Path, write_images: Write) -> None:
    names = ["train/adam/1.jpg", "train/zoe/1.jpg", "query/ben/1.jpg", "gallery/ben/2.jpg", "gallery/carl/1.jpg"]
    dataset = load(write_images(tmp_path / "people", names))
    assert dataset.train.person_ids.tolist() == [0, 3]
    assert dataset.query.person_ids.tolist() == [1]
    assert dataset.gallery.person_ids.tolist() == [1, 2]
    assert dataset.has_evaluation and not dataset.has_cameras
    assert not queries_without_match(dataset.query, dataset.gallery).any()


def test_one_camera_everywhere_is_warned_of(tmp_path: Path, write_images: Write, listener: Any) -> None:
    write_images(tmp_path / "p", ["train/0001_c1_1.jpg", "query/0002_c1_1.jpg", "gallery/0002_c1_2.jpg"])
    load(tmp_path / "p", listener)
    assert "1 of 1 queries" in listener.warnings[0]


def test_queries_without_identities_are_refused(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / "p", ["train/a.jpg", "query/b.jpg", "gallery/c.jpg"])
    with pytest.raises(DataError, match="queries and gallery need identities"):
        load(tmp_path / "p")


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image was found"):
        load(tmp_path)


def test_archive_is_explained(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="archive"):
        load(tmp_path / "mine.zip")


MANIFEST = "path,id,camera,split\nimg/a.jpg,,,train\nimg/b.jpg,5,2,train\nimg/c.jpg,7,2,query\nimg/d.jpg,7,9,gallery\n"


@pytest.fixture
def images(tmp_path: Path, write_images: Write) -> Path:
    return write_images(tmp_path, [f"img/{letter}.jpg" for letter in "abcde"])


def write(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_manifest(images: Path) -> None:
    dataset = load(write(images, MANIFEST))
    assert dataset.train.names == ("img/a.jpg", "img/b.jpg")
    assert dataset.train.person_ids.tolist() == [-1, 5]
    assert (dataset.query.person_ids.tolist(), dataset.gallery.person_ids.tolist()) == ([7], [7])
    assert (dataset.train.camera_ids.tolist(), dataset.gallery.camera_ids.tolist()) == ([0, 1], [2])
    assert dataset.has_evaluation and dataset.has_cameras
    assert all(path.is_file() for path in dataset.train.paths)


@pytest.mark.parametrize(("ending", "sign"), [("tsv", "\t"), ("csv", ";")])
def test_manifest_delimiters_order_and_extra_columns(images: Path, ending: str, sign: str) -> None:
    text = "\ufeffSplit,note,camera,ID,path\ntrain,x,north,adam,img/a.jpg\n\ntrain,y,south,zoe,img/b.jpg\n"
    dataset = load(write(images, text.replace(",", sign), f"list.{ending}"))
    assert dataset.train.person_ids.tolist() == dataset.train.camera_ids.tolist() == [0, 1]


def test_manifest_absolute_paths_and_junk(images: Path, tmp_path: Path) -> None:
    text = f"path,id,camera,split\n{images / 'img' / 'a.jpg'},1,1,train\nimg/b.jpg,1,1,query\nimg/c.jpg,1,2,gallery\n"
    dataset = load(write(images, text + "img/d.jpg,-1,2,gallery\n"))
    assert dataset.train.paths == [images / "img" / "a.jpg"]
    assert dataset.gallery.names == ("img/c.jpg",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("path,id,camera,split\n", "no images"),
        ("path,id,cam,split\nimg/a.jpg,1,1,train\n", 'line 1: the column "camera" is not there'),
        ("path,id,camera,split,id\nimg/a.jpg,1,1,train,1\n", 'line 1: the column "id" is twice there'),
        ("path,id,camera,split\nimg/a.jpg,1,1,train\nimg/b.jpg,1\n", "line 3: 2 fields"),
        ("path,id,camera,split\nimg/a.jpg,1,1,galery\n", "line 2: the split is .galery.*gallery"),
        ("path,id,camera,split\nimg/a.jpg,,1,query\n", "no image is left to use"),
        ("path,id,camera,split\nimg/a.jpg,a\0,1,query\n", "line 2, character 12: a NUL"),
        ("path,id,camera,split\nimg/a.jpg,1,1,train\nimg/b.jpg,1,,gallery\n", "line 3: a gallery image needs a camera"),
        ("path,id,camera,split\n,1,1,train\n", "line 2: the path is empty"),
        ("path,id,camera,split\nimg/a.jpg,1,1,train\nimg/./a.jpg,1,1,train\n", "line 3: .* already, on line 2"),
        ("path,id,camera,split\nimg/a.jpg,1,1,train\nimg/no.jpg,1,1,train\n", "line 3: .*no.jpg does not exist"),
    ],
)
def test_manifest_errors_name_the_line(images: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load(write(images, text))


def test_manifest_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path,id\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        load(tmp_path / "list.csv")


@pytest.mark.parametrize("none", ["", "-1", "-1.0", " -1 "])
def test_images_without_an_identity_are_left_out_of_scoring_aloud_and_train(
    images: Path, listener: Any, none: str
) -> None:
    text = MANIFEST + f"img/e.jpg,{none},9,gallery\n"
    dataset = load(write(images, text), listener)
    assert dataset.gallery.names == ("img/d.jpg",) and dataset.train.identities == ("", "5")
    assert "1 gallery image without an identity was left out" in "".join(listener.warnings)
    kept = load_dataset(str(images / "list.csv"), Path("unused"), SilentReporter(), keep_unknown=True)
    assert kept.gallery.identities == ("7", "")
    assert dataset.fingerprint() == load(write(images, MANIFEST)).fingerprint()


def test_a_folder_without_any_identity_trains(tmp_path: Path) -> None:
    Image.new("RGB", (8, 16)).save(tmp_path / "-1_c1s1_000001_00.jpg")
    assert load(tmp_path).train.identities == ("",)


STRICT = ["17", "017", "17.0", "1_7", "\uff11\uff17", "+17", "1e1", "-17", "9" * 30]
STRICT += ["ada", "Ada", "e\u0301", "\u00e9", "a,b", 'a"b', "a\nb", "ab"]


def test_names_are_kept_and_never_merged(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, [f"{n}.jpg" for n in range(len(STRICT))])
    with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as file:
        rows = ((f"{n}.jpg", name, name, "train") for n, name in enumerate(STRICT))
        csv.writer(file).writerows([("path", "id", "camera", "split"), *rows])
    split = load(tmp_path / "m.csv").train
    assert dict(zip(split.names, split.identities, strict=True)) == {f"{n}.jpg": s for n, s in enumerate(STRICT)}
    assert split.identities == split.cameras
    assert len(set(split.person_ids.tolist())) == len(set(split.camera_ids.tolist())) == len(STRICT)


def test_ids_beyond_int64_in_file_names(tmp_path: Path, write_images: Write) -> None:
    ids = ("99999999999999999999", "99999999999999999998")
    write_images(tmp_path, [f"{name}_c{name}_1.jpg" for name in ids])
    split = load(tmp_path).train
    assert split.identities == split.cameras == ids[::-1] and split.person_ids.tolist() == [0, 1]
