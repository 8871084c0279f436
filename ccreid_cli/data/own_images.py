"""A user's own images: a Market-style folder, a bare folder of crops, or a folder per identity.

Which of them it is is decided by what is there. (A CSV or TSV manifest is read by `data.manifest`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.names import UNKNOWN
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import plural
from ccreid_cli.data.columns import form_of
from ccreid_cli.data.file_names import parse_pattern
from ccreid_cli.data.image_files import endings_text
from ccreid_cli.data.locate import is_archive_name
from ccreid_cli.data.manifest import MANIFEST_ENDINGS, read_manifest
from ccreid_cli.data.own_folders import find_crops, find_root
from ccreid_cli.data.own_labels import read_labels, with_tracks
from ccreid_cli.data.records import Record
from ccreid_cli.data.splits import ReidDataset, queries_without_match


def is_path_like(name: str) -> bool:
    """Say whether a name that is in no catalogue was meant as a path."""
    return any(sign in name for sign in "/\\~") or name.startswith(".") or name.lower().endswith(MANIFEST_ENDINGS)


def load_own_images(
    path: Path,
    reporter: Reporter,
    *,
    columns: Mapping[str, str] | None = None,
    pattern: str = "",
    keep_unknown: bool = False,
) -> ReidDataset:
    """Load a user's own images.

    Args:
        path: A folder, or a CSV/TSV manifest. In a folder, split sub-folders (``bounding_box_train``, ``query``,
            ``bounding_box_test``; ``image_train``, ...; ``train``, ``query``, ``gallery`` or ``test``) are used where
            they exist; otherwise everything is for training. Inside, names like ``0002_c1_000451.jpg`` give identity
            and camera; sub-folders are identities; anything else has neither.
        reporter: Told what was taken for what, and of every image that is left out.
        columns: What the user says the fields are called, or where identities are (see `data.columns`).
        pattern: As ``--pattern``: a regular expression whose groups say what names of files in a folder mean.
        keep_unknown: Whether queries and gallery images without an identity stay, for what needs no identities;
            otherwise they are left out and counted. Images to train on need none.

    Returns:
        The dataset. Cameras are numbered from 0 in their order; without any camera, evaluation removes no image.

    Raises:
        DataError: There are no images, or a manifest is wrong.
    """
    if path.is_file():
        root, by_value = path.parent, True
        records = _from_file(path, columns or {}, reporter)
        if pattern:
            raise UsageError("--pattern is for folders; a manifest has columns.", "Leave it out.")
    else:
        chosen = form_of(columns or {})
        root = find_root(path, reporter)
        records, by_value = read_labels(root, find_crops(root, reporter), chosen, reporter)
        records = with_tracks(root, records, parse_pattern(pattern), reporter)
    if not any(records.values()):
        raise DataError(f"no image was found in {path}.", endings_text())
    if not keep_unknown:
        records = _without_unknown(path, records, reporter)
    dataset = _build(path, root, records, by_value)
    _say_what_evaluation_will_do(dataset, reporter)
    return dataset


def _without_unknown(path: Path, records: dict[str, list[Record]], reporter: Reporter) -> dict[str, list[Record]]:
    """Leave out queries and gallery images that have no identity to be scored by."""
    kept = {"train": records["train"]}
    for split, one, many in (("query", "query", "queries"), ("gallery", "gallery image", "gallery images")):
        kept[split] = [record for record in records[split] if record.identity != UNKNOWN]
        left_out = len(records[split]) - len(kept[split])
        if left_out:
            verb = "was" if left_out == 1 else "were"
            reporter.warning(f"{path}: {plural(left_out, one, many)} without an identity {verb} left out.")
    if not any(kept.values()):
        raise DataError(
            f"{path}: no image is left to use, as no query and no gallery image has an identity.",
            'Images to train on need none: put them in "train".',
        )
    return kept


def _from_file(path: Path, columns: Mapping[str, str], reporter: Reporter) -> dict[str, list[Record]]:
    if path.suffix.lower() in MANIFEST_ENDINGS:
        return read_manifest(path, columns, reporter)
    if is_archive_name(path.name):
        raise DataError(
            f"{path} is an archive, not a folder.",
            "Unpack it and give the folder, or the features that `ccreid extract` makes of a .tar; for a dataset of "
            "the catalogue: `ccreid data fetch NAME --archive FILE`.",
        )
    raise DataError(
        f"{path} is neither a folder nor a manifest (.csv, .tsv).", "Give the folder that holds the images."
    )


def _build(path: Path, root: Path, records: dict[str, list[Record]], by_value: bool) -> ReidDataset:
    dataset = ReidDataset.from_records(str(path), root, records, ids_by_value=by_value)
    if dataset.has_cameras:
        return dataset
    gallery = replace(dataset.gallery, camera_ids=np.ones(len(dataset.gallery), dtype=np.int64))
    return replace(dataset, gallery=gallery)  # by its number, too, it shares no camera with the queries


def _say_what_evaluation_will_do(dataset: ReidDataset, reporter: Reporter) -> None:
    if not dataset.has_evaluation:
        reporter.message(f"{dataset.name}: no queries with a gallery, so there is nothing to evaluate on.")
        return
    if not dataset.has_cameras:
        reporter.message(f"{dataset.name}: no cameras are known, so evaluation counts every gallery image.")
    unmatched = int(queries_without_match(dataset.query, dataset.gallery).sum())
    if unmatched:
        reporter.warning(
            f"{dataset.name}: {unmatched:,} of {len(dataset.query):,} queries have no gallery image of their identity "
            "in another camera and cannot be scored."
        )
