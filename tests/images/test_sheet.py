from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import exif
from PIL import Image

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.images.sheet import Cell, check_sheet, draw_sheet, save_sheet


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 40), (0, 200, 0)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_cells_headings_and_captions_have_their_places(picture: Path) -> None:
    sheet, unread = draw_sheet([[Cell(picture), None]], row_names=["id 1"], column_names=["a", "b"])
    assert sheet.size == (6 + 44 + 2 * (64 + 6), 6 + 16 + 128 + 6) and not unread
    assert [sheet.getpixel((x, 90)) for x in (82, 152)] == [(0, 200, 0), (255, 255, 255)]
    captioned, _ = draw_sheet([[Cell(picture, "1: 0.9", framed=True)]])
    assert captioned.size == (6 + 64 + 6, 6 + 128 + 6 + 16)
    assert captioned.getpixel((4, 60)) == (30, 100, 200)


def test_what_cannot_be_read_is_grey_and_named(picture: Path) -> None:
    sheet, unread = draw_sheet([[Cell(picture), Cell(picture.with_name("gone.png"))]])
    assert list(unread) == [picture.with_name("gone.png")] and "no such file" in unread[picture.with_name("gone.png")]
    assert sheet.getpixel((110, 60)) == (225, 225, 225)


def test_a_picture_stands_upright_and_its_cell_has_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    Image.new("L", (64, 32), 9).save(path, exif=exif(6))  # 32 wide, 64 high when it is shown
    sheet, _ = draw_sheet([[Cell(path)]], cell_height=64)
    assert (np.asarray(sheet.convert("L")) == 9).sum() == 64 * 32


def test_what_fits_no_sheet_is_refused(picture: Path) -> None:
    with pytest.raises(DataError, match="1 rows of 3000 pictures do not fit"):
        draw_sheet([[Cell(picture)] * 3000])
    assert draw_sheet([[Cell(picture)]] * 200)[0].height <= 16_000


def test_the_ending_decides_the_format(picture: Path) -> None:
    sheet, _ = draw_sheet([[Cell(picture)]])
    with Image.open(save_sheet(sheet, picture.with_name("s.webp"))) as image:
        assert image.format == "WEBP"
    with pytest.raises(UsageError, match=r"ends in \.png"):
        check_sheet(picture.with_name("s.gif"))
