from __future__ import annotations

from pathlib import Path

import pytest

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.inference.image_list import list_folder, list_source


def test_list_folder_takes_every_image_below_once(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("sub0/0.png", "sub1/1.png", "notes.txt", ".hidden.png", "__MACOSX/a.png", ".git/a.png", "B.JPEG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    assert list_folder(folder, SilentReporter()).names == ("B.JPEG", "sub0/0.png", "sub1/1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        list_folder(tmp_path / "empty", SilentReporter())


def test_list_source_tells_splits_apart(tmp_path: Path) -> None:
    for name in ("train/0001_c1_1.jpg", "query/0002_c1_1.jpg", "gallery/0002_c2_1.jpg", "gallery/0003_c1_1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    everything = list_source(str(tmp_path), None, tmp_path, SilentReporter())
    assert len(everything) == 4 and everything.ids is None
    gallery = list_source(str(tmp_path), "gallery", tmp_path, SilentReporter())
    assert gallery.ids is not None and gallery.cams is not None
    assert (gallery.ids, gallery.cams, gallery.splits) == (("0002", "0003"), ("2", "1"), None)
    with pytest.raises(UsageError, match="test"):
        list_source(str(tmp_path), "test", tmp_path, SilentReporter())
