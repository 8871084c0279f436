"""A contact sheet: one row per identity, one column per camera, to see at a glance what a dataset holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.data.splits import ReidDataset, Split

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_GAP, _MARGIN = 4, 44
_PAPER, _INK = (255, 255, 255), (60, 60, 60)


def contact_sheet(
    dataset: ReidDataset, out: Path, num_ids: int = 8, *, split: str = "train", cell_height: int = 128
) -> Path:
    """Draw the sheet and save it.

    The identities are those that most cameras saw; each cell is the first image, by name, of that identity in that
    camera. Without identities the sheet shows the first images by camera, `num_ids` rows of them.

    Args:
        dataset: What to show.
        out: A .png, .jpg or .webp file.
        num_ids: Number of rows.
        split: train, query or gallery.
        cell_height: Pixels; the width follows the images' own shape.

    Returns:
        `out`.

    Raises:
        UsageError: `out` has another ending, or there is no such split.
        DataError: The split is empty, an image does not decode, or `out` cannot be written.
    """
    image_format = _FORMATS.get(out.suffix.lower())
    if image_format is None:
        raise UsageError(f"{out}: a contact sheet ends in {', '.join(_FORMATS)}.")
    if split not in dataset.splits:
        raise UsageError(f'there is no split "{split}".', f"Splits: {', '.join(dataset.splits)}.")
    images = dataset.splits[split]
    if not len(images):
        raise DataError(f"{dataset.name} has no {split} images to show.")
    rows, columns, cells = _cells(images, num_ids)
    sheet = _draw(images, rows, columns, cells, cell_height)
    with atomic_path(out) as temporary:
        sheet.save(temporary, format=image_format)
    return out


def _cells(split: Split, num_ids: int) -> tuple[list[str], list[str], dict[tuple[int, int], int]]:
    """Choose which image is in which cell: row names, column names, (row, column) -> index of the image."""
    cameras = np.unique(split.camera_ids)
    if not (split.person_ids >= 0).any():
        columns = max(1, min(8, len(split)))
        shown = range(min(len(split), num_ids * columns))
        return [""] * -(-len(shown) // columns), [""] * columns, {(i // columns, i % columns): i for i in shown}
    cameras = cameras[:24]  # one column per image, where each is its own camera, would fit no screen
    ids = _most_seen(split, num_ids)
    cells: dict[tuple[int, int], int] = {}
    for row, person_id in enumerate(ids):
        for column, camera in enumerate(cameras):
            found = np.flatnonzero((split.person_ids == person_id) & (split.camera_ids == camera))
            if len(found):
                cells[row, column] = int(found[0])
    return [f"id {person_id}" for person_id in ids], [f"cam {camera}" for camera in cameras], cells


def _most_seen(split: Split, num_ids: int) -> list[int]:
    """Return the identities that most cameras saw, the lower number first among equals; 0 is nobody in particular."""
    pairs = np.unique(np.stack([split.person_ids, split.camera_ids]), axis=1)
    ids, num_cameras = np.unique(pairs[0], return_counts=True)
    order = np.lexsort((ids, -num_cameras, ids <= 0))
    return sorted(ids[order][:num_ids].tolist())


def _draw(
    split: Split, rows: list[str], columns: list[str], cells: dict[tuple[int, int], int], cell_height: int
) -> Image.Image:
    pictures = {cell: _read(split.root / split.names[index]) for cell, index in cells.items()}
    shapes = [picture.width / picture.height for picture in pictures.values()]
    cell_width = max(24, round(cell_height * min(2.0, float(np.median(shapes)))))
    size = (_MARGIN + len(columns) * (cell_width + _GAP), 20 + len(rows) * (cell_height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for column, name in enumerate(columns):
        pen.text((_MARGIN + column * (cell_width + _GAP), 4), name, _INK, font)
    for row, name in enumerate(rows):
        pen.text((2, 20 + row * (cell_height + _GAP)), name, _INK, font)
    for (row, column), picture in pictures.items():
        cell = ImageOps.pad(picture, (cell_width, cell_height), color=_PAPER)
        sheet.paste(cell, (_MARGIN + column * (cell_width + _GAP), 20 + row * (cell_height + _GAP)))
    return sheet


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        raise DataError(f"{path} does not decode: {error}.") from error
