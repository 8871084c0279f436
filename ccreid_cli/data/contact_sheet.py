"""A contact sheet: one row per identity, one column per camera, to see at a glance what a dataset holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.names import UNKNOWN
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
    if not split.num_ids:
        columns = max(1, min(8, len(split)))
        shown = range(min(len(split), num_ids * columns))
        return [""] * -(-len(shown) // columns), [""] * columns, {(i // columns, i % columns): i for i in shown}
    cameras = np.unique(split.camera_ids)[:24]  # one column per image, where each has its own, would fit no screen
    cells: dict[tuple[int, int], int] = {}
    rows = []
    for row, person_id in enumerate(_most_seen(split, num_ids)):
        own = split.person_ids == person_id
        rows.append(f"id {split.identities[int(own.argmax())]}")
        for column, camera in enumerate(cameras):
            found = np.flatnonzero(own & (split.camera_ids == camera))
            if len(found):
                cells[row, column] = int(found[0])
    named = [split.cameras[int((split.camera_ids == camera).argmax())] for camera in cameras]
    return rows, [f"cam {name}" if name != UNKNOWN else "no camera" for name in named], cells


def _most_seen(split: Split, num_ids: int) -> list[int]:
    """Return the identities that most cameras saw, the lower number first among equals; 0000 is nobody in particular.

    Args:
        split: The images, some of known identity.
        num_ids: How many to return, at most.
    """
    known = split.person_ids >= 0
    pairs, first = np.unique(np.stack([split.person_ids, split.camera_ids])[:, known], axis=1, return_index=True)
    ids, start, num_cameras = np.unique(pairs[0], return_index=True, return_counts=True)
    images = np.flatnonzero(known)[first[start]]
    is_distractor = np.array([not split.identities[image].strip("0") for image in images], dtype=np.bool_)
    order = np.lexsort((ids, -num_cameras, is_distractor))
    return sorted(ids[order][:num_ids].tolist())
