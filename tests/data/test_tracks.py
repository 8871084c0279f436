"""Tracklets, frames and checked identities: columns of a manifest, and names of a tracker's crops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tiny import Warnings

from ccreid_cli.core.errors import CcreidError, DataError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.file_names import of_tracker, parse_pattern, tracklet_of
from ccreid_cli.data.own_images import load_own_images
from ccreid_cli.data.splits import ReidDataset, Tracks


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def manifest(root: Path, text: str, **columns: str) -> tuple[ReidDataset, Warnings]:
    touch(root, "a.jpg", "b.jpg", "c.jpg")
    (root / "m.csv").write_text(text)
    reporter = Warnings()
    return load_own_images(root / "m.csv", reporter, columns=columns), reporter


def test_columns_of_a_manifest(tmp_path: Path) -> None:
    text = (
        "path,id,camera,split,tracklet,frame,checked\n"
        "b.jpg,x,1,train,1-7,12,1\na.jpg,,1,train,,13.5,\nc.jpg,y,2,train,-1,,no\n"
    )
    dataset, reporter = manifest(tmp_path, text)
    tracks = dataset.train.tracks
    assert tracks is not None and dataset.train.names == ("a.jpg", "b.jpg", "c.jpg")
    assert tracks.tracklets == ("", "1-7", "") and tracks.checked.tolist() == [False, True, False]
    assert np.array_equal(tracks.times, [13.5, 12, math.nan], equal_nan=True)
    assert len(reporter.said) == 1 and "1 image has neither a number nor a date in the column frame" in reporter.said[0]
    part = dataset.train.select(np.array([1]))
    assert part.tracks is not None and part.tracks.tracklets == ("1-7",)


def test_times_may_be_dates_and_columns_other_names(tmp_path: Path) -> None:
    text = "path,id,track,time\na.jpg,x,t,2024-05-01T10:00:00\nb.jpg,x,t,2024-05-01T10:00:02.5\nc.jpg,x,,100\n"
    dataset, reporter = manifest(tmp_path, text, tracklet="track")
    assert dataset.train.tracks is not None and dataset.train.tracks.tracklets == ("t", "t", "")
    assert np.diff(dataset.train.tracks.times)[0] == 2.5 and not reporter.said


def test_without_such_columns_nothing_is_known_and_the_fingerprint_is_as_ever(tmp_path: Path) -> None:
    plain, _ = manifest(tmp_path, "path,id,camera,split\na.jpg,x,1,train\nb.jpg,y,1,train\n")
    tracked, _ = manifest(tmp_path, "path,id,camera,split,tracklet\na.jpg,x,1,train,t\nb.jpg,y,1,train,\n")
    empty, _ = manifest(tmp_path, "path,id,camera,split,tracklet\na.jpg,x,1,train,\nb.jpg,y,1,train,\n")
    assert plain.train.tracks is None and empty.train.tracks is None
    assert plain.fingerprint() == empty.fingerprint() != tracked.fingerprint()
    assert Tracks.join([(2, None), (3, None)]) is None
    joined = Tracks.join([(2, None), (2, tracked.train.tracks)])
    assert joined is not None and joined.tracklets == ("", "", "t", "") and not joined.checked.any()


@pytest.mark.parametrize(
    ("name", "camera", "tracklet", "frame"),
    [
        ("cam01_track0005_frame000123.jpg", "01", "01-0005", 123),
        ("site-A_Cam2-t17-f3.png", "2", "2-17", 3),
        ("c3_track9.jpg", "3", "3-9", math.nan),
    ],
)
def test_names_of_trackers(name: str, camera: str, tracklet: str, frame: float) -> None:
    said = of_tracker(name)
    assert said is not None and said[:3] == ("", camera, tracklet)
    assert said.frame == frame or (math.isnan(said.frame) and math.isnan(frame))


@pytest.mark.parametrize("name", ["0002_c1s1_000451_03.jpg", "cam01.jpg", "track5.jpg", "abc1_t5_f7.jpg", "a.jpg"])
def test_other_names_are_none(name: str) -> None:
    assert of_tracker(name) is None


def test_tracklets_of_mars() -> None:
    assert tracklet_of("0001C1T0002F003.jpg") == "0001C1T0002"
    assert tracklet_of("00-1C6T0002F003.jpg") == "00-1C6T0002" and tracklet_of("0002_c1s1_000451_03.jpg") == ""


def test_a_folder_of_a_trackers_crops(tmp_path: Path) -> None:
    touch(tmp_path, "x/cam1_track1_frame5.jpg", "x/cam1_track2_frame5.jpg", "cam2_track1_frame5.jpg", "other.jpg")
    train = load_own_images(tmp_path, SilentReporter()).train
    assert train.tracks is not None
    by_name = dict(zip(train.names, zip(train.cameras, train.tracks.tracklets, strict=True), strict=True))
    assert by_name["x/cam1_track1_frame5.jpg"] == ("1", "1-1") and by_name["cam2_track1_frame5.jpg"] == ("2", "2-1")
    assert by_name["other.jpg"] == ("", "")


def test_a_pattern_of_the_users(tmp_path: Path) -> None:
    touch(tmp_path, "ada.k7.00012.jpg", "bea.k9.00013.jpg")
    pattern = r"^(?P<id>\w+)\.k(?P<camera>\d)\.(?P<frame>\d+)"
    train = load_own_images(tmp_path, SilentReporter(), pattern=pattern).train
    assert (train.identities, train.cameras) == (("ada", "bea"), ("7", "9"))
    assert train.tracks is not None and train.tracks.times.tolist() == [12, 13]
    touch(tmp_path, "stray.jpg")
    with pytest.raises(DataError, match=r"stray\.jpg: its name does not fit"):
        load_own_images(tmp_path, SilentReporter(), pattern=pattern)


@pytest.mark.parametrize(("text", "words"), [("(", "no regular"), ("a(?P<who>b)", "group who"), ("abc", "names no")])
def test_a_wrong_pattern(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_pattern(text)
    assert parse_pattern("") is None and issubclass(UsageError, CcreidError)
