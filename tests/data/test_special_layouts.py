"""MARS, DukeMTMC-VideoReID, PRID2011, LaST and folders per identity, as their authors lay them out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.data.install import install_dataset
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset

Write = Callable[..., Path]


def load(name: object, data_dir: Path, reporter: Any = None) -> ReidDataset:
    return load_dataset(str(name), data_dir, reporter or SilentReporter())


def sizes(dataset: ReidDataset) -> list[int]:
    return [len(split) for split in dataset.splits.values()]


@pytest.fixture
def mars(tmp_path: Path, write_images: Write) -> Path:
    test = ["00-1C1T0001F001.jpg", "0000C1T0001F001.jpg", "0002C1T0001F001.jpg", "0002C1T0001F002.jpg"]
    test += ["0002C2T0001F001.jpg"]
    root = tmp_path / "data" / "mars" / "MARS"
    write_images(root / "bbox_train", ["0001/0001C1T0001F001.jpg", "0001/0001C6T0001F001.jpg"])
    write_images(root / "bbox_test", [f"{name[:4]}/{name}" for name in test])
    (root / "info").mkdir()
    (root / "info" / "test_name.txt").write_text("\n".join(test))
    tracks = np.array([[1, 1, -1, 1], [2, 2, 0, 1], [3, 4, 2, 1], [5, 5, 2, 2]], dtype=np.float64)
    savemat(root / "info" / "tracks_test_info.mat", {"track_test_info": tracks})
    savemat(root / "info" / "query_IDX.mat", {"query_IDX": np.array([[3]])})
    return root


def test_mars(mars: Path, tmp_path: Path) -> None:
    for name, data_dir in (("mars", tmp_path / "data"), (mars, tmp_path), (mars.parent, tmp_path)):
        dataset = load(name, data_dir)
        assert sizes(dataset) == [2, 2, 2]
        assert set(dataset.query.identities) == {"0002"} and set(dataset.query.cameras) == {"1"}
        assert dataset.gallery.identities == ("0000", "0002")


def test_mars_with_lists_that_do_not_fit(mars: Path, tmp_path: Path) -> None:
    (mars / "info" / "test_name.txt").write_text("0002C1T0001F001.jpg\n")
    with pytest.raises(DataError, match="track 2 is of images 2 to 2, but test_name.txt names 1"):
        load(mars, tmp_path)
    (mars / "info" / "query_IDX.mat").write_bytes(b"not a matrix")
    with pytest.raises(DataError, match=r"query_IDX\.mat does not hold the array"):
        load(mars, tmp_path)


@pytest.mark.parametrize("form", ["{}_C{}_F0012_X1.jpg", "{}C{}F0012X1.jpg"])
def test_dukemtmc_videoreid(tmp_path: Path, write_images: Write, form: str) -> None:
    root = tmp_path / "dukemtmc-videoreid" / "DukeMTMC-VideoReID"
    for split, person, camera in (("train", "0001", 5), ("query", "0002", 1), ("gallery", "0002", 8)):
        write_images(root / split, [f"{person}/0007/{form.format(person, camera)}"])
    for name in ("dukemtmc-videoreid", root):
        dataset = load(name, tmp_path)
        assert (dataset.gallery.identities, dataset.gallery.cameras) == (("0002",), ("8",))
        assert sizes(dataset) == [1, 1, 1]


@pytest.mark.parametrize("form", ["single_shot/{}/person_{}.png", "multi_shot/{}/person_{}/0001.png"])
def test_prid2011(tmp_path: Path, write_images: Write, form: str) -> None:
    root = tmp_path / "prid2011" / "prid_2011"
    pairs = [("cam_a", person) for person in ("0001", "0101", "0300")]
    pairs += [("cam_b", person) for person in ("0001", "0101", "0300")]
    write_images(root, [form.format(*pair) for pair in pairs])
    for name in ("prid2011", root):
        dataset = load(name, tmp_path)
        assert sizes(dataset) == [2, 1, 2]
        assert (dataset.query.identities, dataset.query.cameras) == (("0101",), ("1",))
        assert dataset.gallery.identities == ("0101", "0300")


def test_last(tmp_path: Path, write_images: Write) -> None:
    names = ["train/000001/000001_000_1.jpg", "val/query/000003_0_1.jpg", "val/gallery/000003/000003_1_1.jpg"]
    names += [
        "test/query/000002_000_0.jpg",
        "test/gallery/000002/000002_001_0.jpg",
        "test/gallery/000009/000009_1_0.jpg",
    ]
    write_images(tmp_path / "last" / "last", names)
    for name in ("last", tmp_path / "last" / "last"):
        dataset = load(name, tmp_path)
        assert sizes(dataset) == [1, 1, 2] and not dataset.has_cameras
        assert (dataset.query.identities, dataset.gallery.identities) == (("000002",), ("000002", "000009"))


def test_folders_per_identity_beside_market1501(tmp_path: Path, write_images: Write) -> None:
    names = ["train_all/0002/0002_c1s1_000451_03.jpg", "train/0002/0002_c1s1_000451_03.jpg"]
    names += ["query/0001/0001_c1s1_001051_00.jpg", "gallery/0001/0001_c2s1_000301_00.jpg"]
    write_images(tmp_path / "market1501" / "Market-1501-v15.09.15" / "pytorch", names)
    assert sizes(load("market1501", tmp_path)) == [1, 1, 1]


@pytest.mark.parametrize("name", ["mars", "dukemtmc-videoreid", "prid2011", "last"])
def test_rows_take_an_archive(name: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="http") as caught:
        install_dataset(CATALOG[name], tmp_path, accepted=True)
    assert "--archive" in str(getattr(caught.value, "hint", ""))


def test_a_folder_here_that_is_named_like_a_dataset(
    tmp_path: Path, write_images: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "last", ["1_c1_0.jpg"])
    monkeypatch.chdir(tmp_path)
    assert load("last", tmp_path / "data").train.identities == ("1",)
