"""A contact sheet: one row per identity, one column per camera, to see at a glance what a dataset holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.data.splits import ReidDataset, Split
from ccreid_cli.images.sheet import Cell, check_sheet, draw_sheet, save_sheet


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
    check_sheet(out)
    if split not in dataset.splits:
        raise UsageError(f'there is no split "{split}".', f"Splits: {', '.join(dataset.splits)}.")
    images = dataset.splits[split]
    if not len(images):
        raise DataError(f"{dataset.name} has no {split} images to show.")
    rows, columns, chosen = _cells(images, num_ids)
    paths = images.paths
    cells = [
        [Cell(paths[chosen[row, column]]) if (row, column) in chosen else None for column in range(len(columns))]
        for row in range(len(rows))
    ]
    sheet, unread = draw_sheet(cells, row_names=rows, column_names=columns, cell_height=cell_height)
    for path, reason in unread.items():
        raise DataError(f"{path} does not decode: {reason}.")
    return save_sheet(sheet, out)


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
