"""A contact sheet of search results: one row per query, the query first, then what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.words import plural

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_GAP, _CAPTION = 6, 16
_PAPER, _INK, _EMPTY, _FRAME = (255, 255, 255), (60, 60, 60), (225, 225, 225), (30, 100, 200)
_MAX_SIDE = 16_000
"""Pixels; WebP and many viewers take no more."""


@dataclass(frozen=True)
class SheetRow:
    """One query and what was found for it.

    Attributes:
        query: The query image.
        matches: Image and caption of each match, the best first.
    """

    query: Path
    matches: Sequence[tuple[Path, str]]


def check_sheet(out: Path) -> None:
    """Refuse, before any work is done, a file that cannot be written.

    Raises:
        UsageError: The ending names no image format that sheets are written in.
    """
    if out.suffix.lower() not in _FORMATS:
        raise UsageError(f"{out}: a contact sheet ends in {', '.join(_FORMATS)}.")


def search_sheet(
    rows: Sequence[SheetRow], out: Path, *, cell_height: int = 160, reporter: Reporter | None = None
) -> Path:
    """Draw the sheet and save it. A picture that cannot be read is a grey box.

    Args:
        rows: At least one query.
        out: A .png, .jpg or .webp file.
        cell_height: Pixels, less where the sheet would grow too tall; the width follows the pictures' own shape.
        reporter: Told of pictures that cannot be read.

    Returns:
        `out`.

    Raises:
        UsageError: `out` has another ending.
        DataError: `out` cannot be written, or there are too many rows or columns for one picture.
    """
    check_sheet(out)
    columns = 1 + max(len(row.matches) for row in rows)
    cell_height = min(cell_height, _MAX_SIDE // len(rows) - _GAP - _CAPTION)
    cell_width = round(cell_height * _shape_of(rows[0].query))
    cell_width = min(cell_width, _MAX_SIDE // columns - _GAP)
    if min(cell_width, cell_height) < 8:
        raise DataError(
            f"{len(rows)} queries of {columns - 1} matches do not fit on one sheet.", "Use a smaller --top."
        )
    step_x, step_y = cell_width + _GAP, cell_height + _GAP + _CAPTION
    sheet = Image.new("RGB", (columns * step_x + _GAP, len(rows) * step_y + _GAP), _PAPER)
    missing: list[Path] = []
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for line, row in enumerate(rows):
        top = _GAP + line * step_y
        for column, (path, caption) in enumerate([(row.query, "query"), *row.matches]):
            left = _GAP + column * step_x
            cell = _cell(path, cell_width, cell_height)
            if cell is None and path not in missing:
                missing.append(path)
            sheet.paste(cell or Image.new("RGB", (cell_width, cell_height), _EMPTY), (left, top))
            pen.text((left, top + cell_height + 1), caption, _FRAME if column == 0 else _INK, font)
        pen.rectangle((_GAP - 2, top - 2, _GAP + cell_width + 1, top + cell_height + 1), outline=_FRAME, width=2)
    if missing:
        text = f"{plural(len(missing), 'image')} cannot be read and {'is' if len(missing) == 1 else 'are'} left grey"
        (reporter or SilentReporter()).warning(f"{out}: {text}; the first is {missing[0]}.")
    with atomic_path(out) as temporary:
        sheet.save(temporary, format=_FORMATS[out.suffix.lower()])
    return out


def _shape_of(path: Path) -> float:
    """Return width / height of a picture, within what makes a readable cell."""
    try:
        with Image.open(path) as image:
            return min(2.0, max(0.35, image.width / image.height))
    except Exception:  # Pillow's decoders raise almost anything on damaged bytes
        return 0.5


def _cell(path: Path, width: int, height: int) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            return ImageOps.pad(image.convert("RGB"), (width, height), color=_PAPER)
    except Exception:  # as above
        return None
