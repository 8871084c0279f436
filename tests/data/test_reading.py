"""What each dataset's files mean, on made trees with the real names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.catalog import CATALOG, DatasetInfo
from ccreid_cli.data.reading import dataset_state, load_dataset
from ccreid_cli.data.records import Record
from ccreid_cli.data.splits import ReidDataset, Split, queries_without_match
from ccreid_cli.data.statistics import dataset_statistics

Write = Callable[..., Path]


def load(name: str, data_dir: Path) -> ReidDataset:
    return load_dataset(name, data_dir, SilentReporter())


def test_market_drops_junk_keeps_distractors_and_sorts(tmp_path: Path, write_boxes: Write) -> None:
    write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15")
    dataset = load("market1501", tmp_path)
    assert dataset.gallery.names == (
        "bounding_box_test/0000_c3s1_000151_01.jpg",
        "bounding_box_test/0001_c2s1_000301_00.jpg",
        "bounding_box_test/0003_c1s1_000301_00.jpg",
    )
    assert dataset.gallery.person_ids.tolist() == [0, 1, 3]
    assert dataset.gallery.camera_ids.tolist() == [2, 1, 0]
    assert dataset.train.person_ids.tolist() == [2, 2, 7]
    assert dataset.train.camera_ids.tolist() == [0, 1, 5]
    assert dataset.train.person_ids.dtype == dataset.train.camera_ids.dtype == np.int64
    assert [path.is_file() for path in dataset.train.paths] == [True] * 3
    assert dataset.has_evaluation and dataset.has_train_ids
    assert (dataset.train.num_ids, dataset.train.num_cameras, dataset.gallery.num_ids) == (2, 3, 3)


def test_duke_has_eight_cameras(tmp_path: Path, write_images: Write) -> None:
    root = tmp_path / "dukemtmcreid" / "DukeMTMC-reID"
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        write_images(root / folder, ["0005_c2_f0046985.jpg", "0005_c8_f0046985.jpg"])
    assert load("dukemtmcreid", tmp_path).train.camera_ids.tolist() == [1, 7]


def test_msmt17_boxes_have_two_digit_cameras_and_repeated_test_ids(tmp_path: Path, write_images: Write) -> None:
    root = tmp_path / "msmt17" / "MSMT17_V1"
    write_images(root / "bounding_box_train", ["0000_c14_0030.jpg", "0000_c1_0002.jpg"])
    write_images(root / "query", ["0000_c15_0001.jpg"])
    write_images(root / "bounding_box_test", ["0000_c10_0001.jpg", "0001_c2_0001.jpg"])
    dataset = load("msmt17", tmp_path)
    assert dict(zip(dataset.train.names, dataset.train.camera_ids.tolist(), strict=True)) == {
        "bounding_box_train/0000_c14_0030.jpg": 13,
        "bounding_box_train/0000_c1_0002.jpg": 0,
    }
    assert dataset.query.camera_ids.tolist() == [14]
    assert dataset.gallery.person_ids.tolist() == [0, 1]  # identity 0 of the test set, somebody else than in train
    assert CATALOG["msmt17"].test_ids_repeat


@pytest.mark.parametrize(
    ("folder", "train", "test"), [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")]
)
def test_msmt17_lists_take_train_and_val(
    tmp_path: Path, write_images: Write, folder: str, train: str, test: str
) -> None:
    root = tmp_path / "msmt17" / folder
    lists = {
        "list_train.txt": (train, "0000/0000_000_01_0303morning_0008_0.jpg 0"),
        "list_val.txt": (train, "0001/0001_003_14_0303noon_0108_1.jpg 1"),
        "list_query.txt": (test, "0000/0000_000_15_0303morning_0008_0.jpg 0"),
        "list_gallery.txt": (test, "0000/0000_009_10_0303morning_0008_0.jpg 0"),
    }
    for name, (images, line) in lists.items():
        write_images(root / images, [line.split()[0]])
        (root / name).write_text(line + "\n")
    dataset = load("msmt17", tmp_path)
    assert dataset.train.person_ids.tolist() == [0, 1]
    assert dataset.train.camera_ids.tolist() == [0, 13]
    assert dataset.query.camera_ids.tolist() == [14]
    assert dataset.gallery.camera_ids.tolist() == [9]
    assert all(path.is_file() for split in dataset.splits.values() for path in split.paths)


def test_msmt17_list_that_names_an_absent_image(tmp_path: Path, write_images: Write) -> None:
    root = tmp_path / "msmt17" / "MSMT17_V1"
    write_images(root, ["train/0000/0000_000_01_a_0008_0.jpg", "test/0000/0000_000_01_a_0008_0.jpg"])
    for name in ("list_train.txt", "list_query.txt", "list_gallery.txt"):
        (root / name).write_text("0000/0000_000_01_a_0008_0.jpg 0\n")
    (root / "list_val.txt").write_text("0009/0009_000_01_a_0008_0.jpg 9\n")
    with pytest.raises(DataError, match=r"1 listed image is not in .*0009_000_01_a"):
        load("msmt17", tmp_path)
    (root / "list_val.txt").write_text("nonsense\n")
    with pytest.raises(DataError, match=r"list_val.txt, line 1"):
        load("msmt17", tmp_path)


def test_personx_maps_its_six_cameras(tmp_path: Path, write_images: Write) -> None:
    root = tmp_path / "personx" / "PersonX"
    cameras = [3, 4, 8, 10, 11, 12]
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        write_images(root / folder, [f"{number:04}_c{camera}_1.jpg" for number, camera in enumerate(cameras)])
    assert load("personx", tmp_path).train.camera_ids.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("folder", ["VeRi", "VeRi_with_plate"])
def test_veri_has_twenty_cameras(tmp_path: Path, write_images: Write, folder: str) -> None:
    for split in ("image_train", "image_query", "image_test"):
        write_images(tmp_path / "veri" / folder / split, ["0001_c001_00016450_0.jpg", "0402_c020_00052495_0.jpg"])
    dataset = load("veri", tmp_path)
    assert dataset.train.camera_ids.tolist() == [0, 19]
    assert dataset.root.name == folder


def test_cuhk03_is_png_and_detected_comes_first(tmp_path: Path, write_images: Write) -> None:
    for kind, name in (("labeled", "0002_c1_09.png"), ("detected", "0001_c2_01.png")):
        for folder in ("bounding_box_train", "query", "bounding_box_test"):
            write_images(tmp_path / "cuhk03-np" / kind / folder, [name])
    dataset = load("cuhk03-np", tmp_path)
    assert (dataset.train.person_ids.tolist(), dataset.train.camera_ids.tolist()) == ([1], [1])


def test_vehicleid_without_cameras_removes_nothing(tmp_path: Path, write_images: Write) -> None:
    root = tmp_path / "vehicleid" / "VehicleID_V1.0"
    write_images(root / "image", [f"{number:07}.jpg" for number in range(1, 7)])
    (root / "train_test_split").mkdir()
    (root / "train_test_split" / "train_list.txt").write_text("0000001 10\n0000002 10\n")
    (root / "train_test_split" / "test_list_800.txt").write_text("0000003 11\n0000005 12\n0000004 11\n0000006 12\n")
    dataset = load("vehicleid", tmp_path)
    assert dataset.gallery.person_ids.tolist() == dataset.query.person_ids.tolist() == [11, 12]
    assert dataset.gallery.names == ("image/0000003.jpg", "image/0000005.jpg")
    assert not dataset.has_cameras
    assert not queries_without_match(dataset.query, dataset.gallery).any()


def test_veri_wild_takes_cameras_from_its_table(tmp_path: Path, write_images: Write) -> None:
    root = tmp_path / "veri-wild" / "VERI-Wild"
    write_images(root / "images", ["00001/000001.jpg", "00002/000002.jpg", "00002/000003.jpg"])
    lists = root / "train_test_split"
    lists.mkdir()
    (lists / "vehicle_info.txt").write_text(
        "id/image;Camera ID;Time;Model;Type;Color\n"
        "00001/000001;174;a;b;c;d\n00002/000002;1;a;b;c;d\n00002/000003;2;a;b;c;d\n"
    )
    (lists / "train_list.txt").write_text("00001/000001\n")
    (lists / "test_3000_query.txt").write_text("00002/000002\n")
    (lists / "test_3000.txt").write_text("00002/000003\n")
    dataset = load("veri-wild", tmp_path)
    assert (dataset.train.camera_ids.tolist(), dataset.gallery.camera_ids.tolist()) == ([173], [1])
    assert dataset.gallery.person_ids.tolist() == [2]


@pytest.mark.parametrize(
    "place",
    ["", "Market-1501-v15.09.15", "market1501", "market1501/any name", "market1501/Market-1501-v15.09.15/again"],
)
def test_folders_given_directly_or_too_deep_are_taken_and_named(
    tmp_path: Path, write_boxes: Write, listener: Any, place: str
) -> None:
    write_boxes(tmp_path / place)
    dataset = load_dataset("market1501", tmp_path, listener)
    assert len(dataset.train) == 3
    assert str(tmp_path / place) in listener.messages[0]


def test_counts_that_differ_from_the_published_are_a_warning(tmp_path: Path, write_boxes: Write, listener: Any) -> None:
    write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15")
    load_dataset("market1501", tmp_path, listener)
    (warning,) = listener.warnings
    assert "3 train images (published: 12,936)" in warning


def test_missing_dataset_says_where_what_and_how(tmp_path: Path) -> None:
    data_dir = tmp_path / "D"
    with pytest.raises(DataError) as caught:
        load("market1501", data_dir)
    assert str(data_dir / "market1501" / "Market-1501-v15.09.15") in caught.value.message
    assert "bounding_box_train, query, bounding_box_test" in caught.value.message
    assert "does not exist" in caught.value.message
    assert f"ccreid data fetch market1501 --data-dir {data_dir}" in (caught.value.hint or "")


def test_missing_dataset_names_every_accepted_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("msmt17", tmp_path)
    assert str(tmp_path / "msmt17" / "MSMT17_V1") in caught.value.message
    assert str(tmp_path / "msmt17" / "MSMT17_V2") in caught.value.message
    assert "--archive" in (caught.value.hint or "")


def test_missing_dataset_whose_archive_lies_there(tmp_path: Path) -> None:
    (tmp_path / "Market-1501-v15.09.15.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="not laid out") as caught:
        load("market1501", tmp_path)
    assert f"--archive {tmp_path / 'Market-1501-v15.09.15.zip'}" in (caught.value.hint or "")


def test_half_a_dataset_says_which_half(tmp_path: Path, write_images: Write) -> None:
    root = tmp_path / "market1501" / "Market-1501-v15.09.15"
    write_images(root / "bounding_box_train", ["0002_c1s1_000451_03.jpg"])
    with pytest.raises(DataError, match="has bounding_box_train but not query, bounding_box_test"):
        load("market1501", tmp_path)


def test_no_images_says_what_is_there_instead(tmp_path: Path, write_boxes: Write) -> None:
    root = write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15")
    for path in (root / "query").glob("0*.jpg"):
        path.rename(path.with_suffix(".tiff"))
    with pytest.raises(DataError, match=r"no query image was found in .*query, which holds .*2 \.tiff"):
        load("market1501", tmp_path)


def test_a_camera_the_dataset_does_not_have(tmp_path: Path, write_boxes: Write, write_images: Write) -> None:
    root = write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15")
    write_images(root / "query", ["0009_c7s1_000001_00.jpg"])
    with pytest.raises(DataError, match=r"1 image from cameras that are not its own .*0009_c7s1"):
        load("market1501", tmp_path)


def test_names_without_identity_are_left_out_with_a_warning(
    tmp_path: Path, write_boxes: Write, write_images: Write, listener: Any
) -> None:
    root = write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15")
    write_images(root / "query", ["holiday.jpg"])
    assert len(load_dataset("market1501", tmp_path, listener).query) == 2
    assert any("query/holiday.jpg" in text for text in listener.warnings)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match='did you mean "market1501"') as caught:
        load("market1051", Path("D"))
    assert "dukemtmcreid" in (caught.value.hint or "")
    with pytest.raises(UsageError, match='did you mean "dukemtmcreid"'):
        load("duke", Path("D"))
    with pytest.raises(DataError, match="does not exist"):
        load("./nothing/here", Path("D"))


def test_names_of_the_catalogue_win_over_paths(
    tmp_path: Path, write_boxes: Write, write_images: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "market1501", ["a.jpg"])
    write_boxes(tmp_path / "D" / "market1501" / "Market-1501-v15.09.15")
    assert load("market1501", tmp_path / "D").name == "market1501"


def test_toy_is_made_on_first_use(tmp_path: Path, write_boxes: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = pytest.importorskip("ccreid_cli.data.toy")
    made: list[Path] = []

    def make_toy(folder: Path, seed: int = 0, reporter: object = None) -> None:
        made.append(write_boxes(folder))
        (folder / "bounding_box_train" / "0007_c6s3_077419_03.jpg").unlink()  # it has four cameras

    monkeypatch.setattr(toy, "make_toy", make_toy)
    names = [load("toy", tmp_path).train.names for _ in range(2)]
    assert made == [tmp_path / "toy"]
    assert names[0] == names[1]


def test_fingerprint_is_of_content_not_of_place(tmp_path: Path, write_boxes: Write, write_images: Write) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    roots = [write_boxes(base / "market1501" / "Market-1501-v15.09.15") for base in (one, other)]
    assert load("market1501", one).fingerprint() == load("market1501", other).fingerprint()
    write_images(roots[1] / "query", ["0009_c1s1_000001_00.jpg"])
    assert load("market1501", one).fingerprint() != load("market1501", other).fingerprint()


def test_dataset_state(tmp_path: Path, write_boxes: Write, small: Callable[..., DatasetInfo]) -> None:
    info = small()
    assert dataset_state(info, tmp_path).state == "absent"
    root = write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15")
    state = dataset_state(info, tmp_path)
    assert (state.state, state.root, state.num_images) == ("present", root, {"train": 3, "query": 2, "gallery": 3})
    next((root / "query").glob("0*.jpg")).unlink()
    state = dataset_state(info, tmp_path)
    assert state.state == "incomplete" and state.problems


def test_statistics(tmp_path: Path, write_boxes: Write) -> None:
    write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15")
    values = dataset_statistics(load("market1501", tmp_path)).as_json()
    assert values["splits"]["train"]["num_images"] == 3
    assert values["splits"]["train"]["images_per_camera"] == {"1": 1, "2": 1, "6": 1}
    assert values["splits"]["train"]["max_images_per_id"] == 2
    assert values["splits"]["gallery"]["num_distractors"] == 1
    assert values["num_queries_without_match"] == 0


def test_split_select(tmp_path: Path) -> None:
    records = [Record("a.jpg", "1", "0"), Record("b.jpg", "", "0"), Record("c.jpg", "2", "1")]
    split = ReidDataset.from_records("mine", tmp_path, {"train": records}).train
    assert split.select(np.array([True, False, True])).names == ("a.jpg", "c.jpg")
    assert split.select(np.array([2, 0])).person_ids.tolist() == [2, 1]
    assert split.select(np.array([2, 0])).identities == ("2", "1")
    assert (split.num_ids, len(Split.empty(tmp_path))) == (2, 0)


def test_queries_without_match_against_a_slow_oracle(rng: np.random.Generator, tmp_path: Path) -> None:
    def draw(count: int) -> list[Record]:
        return [Record(f"{i:03}.jpg", str(rng.integers(6)), rng.choice(["", "1", "2"])) for i in range(count)]

    for num_gallery in [0, 1, *[8] * 20]:
        drawn = {"query": draw(10), "gallery": draw(num_gallery)}
        dataset = ReidDataset.from_records("mine", tmp_path, drawn)
        query, gallery = dataset.query, dataset.gallery
        slow = [
            not any(g == q and (c != k or c == "") for g, c in zip(gallery.identities, gallery.cameras, strict=True))
            for q, k in zip(query.identities, query.cameras, strict=True)
        ]
        assert queries_without_match(query, gallery).tolist() == slow


@pytest.mark.shared
def test_real_market(shared: Path, tmp_path: Path) -> None:
    import zipfile

    archive = shared / "data" / "Market-1501-v15.09.15.zip"
    if not archive.is_file():
        pytest.skip("Market-1501 is not in the shared folder")
    with zipfile.ZipFile(archive) as file:  # names only: counting and parsing need no bytes
        names = [name for name in file.namelist() if not name.endswith("/")]
    for folder in {name.rpartition("/")[0] for name in names}:
        (tmp_path / "market1501" / folder).mkdir(parents=True)
    for name in names:
        os.close(os.open(f"{tmp_path}/market1501/{name}", os.O_CREAT))
    dataset = load("market1501", tmp_path)
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (12_936, 3_368, 15_913)
    golden = np.load(shared / "golden" / "market1501_mobilenet_v2_train.npz")
    np.testing.assert_array_equal(dataset.train.person_ids, golden["ids"])
    np.testing.assert_array_equal(dataset.train.camera_ids, golden["cams"])
