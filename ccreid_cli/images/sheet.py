"""Contact sheets: a grid of pictures with headings and captions, as one image file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.images.decoding import read_picture, reason_of

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_GAP, _LINE, _MARGIN = 6, 16, 44
_PAPER, _INK, _EMPTY, _FRAME = (255, 255, 255), (60, 60, 60), (225, 225, 225), (30, 100, 200)
_LEAST_SIDE, _MOST_SIDE = 8, 16_000
"""Pixels of a cell and of the sheet; WebP and many viewers take no more."""


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet.

    Attributes:
        path: The image file.
        caption: What stands below it.
        framed: Whether it is marked by a frame.
    """

    path: Path
    caption: str = ""
    framed: bool = False


def check_sheet(out: Path) -> None:
    """Refuse, before any work is done, a file that cannot be written.

    Raises:
        UsageError: The ending names no image format that sheets are written in.
    """
    if out.suffix.lower() not in _FORMATS:
        raise UsageError(f"{out}: a contact sheet ends in {', '.join(_FORMATS)}.")


def draw_sheet(
    rows: Sequence[Sequence[Cell | None]],
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    cell_height: int = 128,
) -> tuple[Image.Image, dict[Path, str]]:
    """Draw a grid of pictures. One that cannot be read is a grey box.

    Args:
        rows: At least one row of cells; None leaves a place empty.
        row_names: A heading for each row, if any.
        column_names: A heading for each column, if any.
        cell_height: Pixels, less where the sheet would grow too tall; the width follows the pictures' median shape.

    Returns:
        The sheet, and why each file that cannot be read was not.

    Raises:
        DataError: There are too many rows or columns for one picture.
    """
    columns = max(len(row) for row in rows)
    cells = [(line, column, cell) for line, row in enumerate(rows) for column, cell in enumerate(row) if cell]
    below = _LINE if any(cell.caption for _, _, cell in cells) else 0
    left, top = _GAP + (_MARGIN if row_names else 0), _GAP + (_LINE if column_names else 0)
    cell_height = min(cell_height, (_MOST_SIDE - top) // len(rows) - _GAP - below)
    cell_width = round(cell_height * statistics.median([_shape_of(cell.path) for _, _, cell in cells] or [0.5]))
    cell_width = min(cell_width, (_MOST_SIDE - left) // columns - _GAP)
    if min(cell_width, cell_height) < _LEAST_SIDE:
        raise DataError(
            f"{len(rows)} rows of {columns} pictures do not fit on one sheet.", "Show fewer, as by a smaller --top."
        )
    step_x, step_y = cell_width + _GAP, cell_height + _GAP + below
    sheet = Image.new("RGB", (left + columns * step_x, top + len(rows) * step_y), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for column, name in enumerate(column_names):
        pen.text((left + column * step_x, 3), name, _INK, font)
    for line, name in enumerate(row_names):
        pen.text((2, top + line * step_y), name, _INK, font)
    unread: dict[Path, str] = {}
    for line, column, cell in cells:
        x, y = left + column * step_x, top + line * step_y
        sheet.paste(_picture(cell.path, (cell_width, cell_height), unread), (x, y))
        pen.text((x, y + cell_height + 1), cell.caption, _FRAME if cell.framed else _INK, font)
        if cell.framed:
            pen.rectangle((x - 2, y - 2, x + cell_width + 1, y + cell_height + 1), outline=_FRAME, width=2)
    return sheet, unread


def save_sheet(sheet: Image.Image, out: Path) -> Path:
    """Write a sheet in the format that the ending of `out` names, and return `out`.

    Raises:
        UsageError: As `check_sheet`.
        DataError: `out` cannot be written.
    """
    check_sheet(out)
    with atomic_path(out) as temporary:
        sheet.save(temporary, format=_FORMATS[out.suffix.lower()])
    return out


def _shape_of(path: Path) -> float:
    """Return width / height of a picture, within what makes a readable cell."""
    try:
        image = read_picture(path)
        return min(2.0, max(0.35, image.width / image.height))
    except Exception:  # Pillow's decoders raise almost anything on damaged bytes
        return 0.5


def _picture(path: Path, size: tuple[int, int], unread: dict[Path, str]) -> Image.Image:
    try:
        return ImageOps.pad(read_picture(path), size, color=_PAPER)
    except Exception as error:  # as above
        unread[path] = reason_of(error)
        return Image.new("RGB", size, _EMPTY)
