"""One walk finds the images of a folder for every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.image_files import find_images, image_endings, is_image
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.inference.image_list import list_source

Write = Callable[..., Path]


def test_circles_of_links_end_and_every_command_counts_the_same(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / "l", ["a/1_c1_0.png"])
    (tmp_path / "l" / "a" / "up").symlink_to("..")
    (tmp_path / "l" / "self").symlink_to("self")
    assert find_images(tmp_path / "l").names == ["a/1_c1_0.png"]
    dataset = load_dataset(str(tmp_path / "l"), tmp_path, SilentReporter())
    images = list_source(str(tmp_path / "l"), None, tmp_path, SilentReporter())
    assert dataset.train.names == images.names == ("a/1_c1_0.png",)


def test_linked_files_and_folders_elsewhere_are_followed_once(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / "elsewhere", ["x.png", "sub/y.png"])
    write_images(tmp_path / "l", ["z/real.png"])
    (tmp_path / "l" / "a").symlink_to(tmp_path / "l" / "z")
    (tmp_path / "l" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "l" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "l" / "link.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "l" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = find_images(tmp_path / "l")
    assert found.names == ["b/sub/y.png", "b/x.png", "link.png", "z/real.png"]
    assert (found.repeated, found.broken_links) == (["a", "c"], ["gone.png"])


def test_folders_of_systems_hold_no_images(tmp_path: Path, write_images: Write) -> None:
    names = ["@eaDir/a.jpg", ".thumbnails/b.png", "__MACOSX/c.jpg", "$RECYCLE.BIN/d.jpg", "._e.jpg", "lost+found/f.jpg"]
    write_images(tmp_path, [*names, "real.jpg"])
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    found = find_images(tmp_path)
    assert (found.names, found.unreadable) == (["real.jpg"], [])


@pytest.mark.parametrize("ending", ["tif", "tiff", "jfif", "jpe", "gif", "ppm", "avif", "bmp", "webp", "jp2", "TIF"])
def test_what_pillow_opens_is_an_image(ending: str, tmp_path: Path) -> None:
    if f".{ending.lower()}" not in image_endings():
        pytest.skip(f"Pillow here cannot open .{ending}")
    Image.new("RGB", (8, 16)).save(tmp_path / f"0001_c1_0.{ending}")
    assert is_image(f"0001_c1_0.{ending}")
    assert load_dataset(str(tmp_path), tmp_path, SilentReporter()).train.identities == ("0001",)


def test_endings_that_pillow_opens_though_they_are_no_pictures(tmp_path: Path) -> None:
    assert not {".pdf", ".eps", ".h5", ".mpg", ".fits", ".ico"} & image_endings()
