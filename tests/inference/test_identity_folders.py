from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tiny import Warnings

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.inference import identity_folders
from ccreid_cli.inference.identity_folders import COPY, HARD, SYMBOLIC, check_folder, folder_name, write_folders


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "in" / name for name in ("a.jpg", "x/b.jpg", "y/b.jpg", "c.jpg")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(file))
    return files


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", [HARD, SYMBOLIC, COPY])
def test_a_folder_per_identity(tmp_path: Path, images: list[Path], how: str) -> None:
    out = tmp_path / "deep" / "out"
    assert write_folders(out, images, ["1", "2", "2", ""], how, Warnings()) == how
    found = content(out)
    assert set(found.values()) == {str(file) for file in images[:3]}
    assert {name.partition("/")[0] for name in found} == {"1", "2"} and "2/b.jpg" in found and len(found) == 3
    one = out / "1" / "a.jpg"
    assert (one.is_symlink(), one.samefile(images[0])) == (how == SYMBOLIC, how != COPY)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_where_hard_links_are_impossible_copies_are_made_and_that_is_said(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setitem(identity_folders._PLACERS, HARD, refuse)
    reporter = Warnings()
    assert write_folders(tmp_path / "out", images, ["1"] * 4, HARD, reporter) == COPY
    assert len(reporter.said) == 1 and "hard links are impossible" in reporter.said[0]
    assert set(content(tmp_path / "out").values()) == set(map(str, images))


def test_nothing_is_left_where_an_image_is_gone(tmp_path: Path, images: list[Path]) -> None:
    images[2].unlink()
    with pytest.raises(DataError, match="could not write"):
        write_folders(tmp_path / "out", images, ["1"] * 4, HARD, Warnings())
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_what_is_there_is_never_replaced(tmp_path: Path, images: list[Path]) -> None:
    check_folder(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
    for place in (tmp_path / "in", images[0], images[0] / "below"):
        with pytest.raises(UsageError):
            check_folder(place)


def test_no_name_leads_out_of_the_folder() -> None:
    assert [folder_name(name) for name in ("0001", "Zoë 2", "a/b", "..", ".x", "a%2Fb", "..\\c")] == [
        "0001",
        "Zoë 2",
        "a%2Fb",
        "%2E.",
        "%2Ex",
        "a%252Fb",
        "%2E.%5Cc",
    ]
