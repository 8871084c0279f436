"""A user's own images: a Market-style folder, a bare folder of crops, or a folder per identity.

Which of them it is is decided by what is there. (A CSV or TSV manifest is read by `data.manifest`.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.names import UNKNOWN, name_of
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import plural
from ccreid_cli.data.layouts import MARKET_PATTERN, list_images
from ccreid_cli.data.locate import is_archive_name
from ccreid_cli.data.manifest import MANIFEST_ENDINGS, read_manifest
from ccreid_cli.data.records import SPLITS, Record
from ccreid_cli.data.splits import ReidDataset, queries_without_match

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

_SPLIT_FOLDERS = {
    "train": ("bounding_box_train", "image_train", "train"),
    "query": ("query", "image_query"),
    "gallery": ("bounding_box_test", "image_test", "gallery", "test"),
}
_MARKET_NAME = re.compile(MARKET_PATTERN)
_CAMERA_IN_NAME = re.compile(r"_c([0-9]+)")


@dataclass(frozen=True)
class _Crop:
    """One image file: path relative to the root, and the sub-folder of its split it lies in (empty: none)."""

    name: str
    identity: str

    @property
    def file_name(self) -> str:
        return self.name.rpartition("/")[2]


def is_path_like(name: str) -> bool:
    """Say whether a name that is in no catalogue was meant as a path."""
    return any(sign in name for sign in "/\\~") or name.startswith(".") or name.lower().endswith(MANIFEST_ENDINGS)


def load_own_images(path: Path, reporter: Reporter, *, keep_unknown: bool = False) -> ReidDataset:
    """Load a user's own images.

    Args:
        path: A folder, or a CSV/TSV manifest. In a folder, split sub-folders (``bounding_box_train``, ``query``,
            ``bounding_box_test``; ``image_train``, ...; ``train``, ``query``, ``gallery`` or ``test``) are used where
            they exist; otherwise everything is for training. Inside, names like ``0002_c1_000451.jpg`` give identity
            and camera; sub-folders are identities; anything else has neither.
        reporter: Told what was taken for what.
        keep_unknown: Whether queries and gallery images without an identity stay, for what needs no identities;
            otherwise they are left out and counted. Images to train on need none.

    Returns:
        The dataset. Cameras are numbered from 0 in their order; without any camera, evaluation removes no image.

    Raises:
        DataError: There are no images, or a manifest is wrong.
    """
    if path.is_file():
        root, by_value = path.parent, True
        records = _from_file(path)
    else:
        root = _root_of(path, reporter)
        records, by_value = _from_folder(root, reporter)
    if not any(records.values()):
        raise DataError(f"no image was found in {path}.", f"Images end in {', '.join(IMAGE_ENDINGS)}.")
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


def _from_file(path: Path) -> dict[str, list[Record]]:
    if path.suffix.lower() in MANIFEST_ENDINGS:
        return read_manifest(path)
    if is_archive_name(path.name):
        raise DataError(
            f"{path} is an archive, not a folder.",
            "Extract it and give the folder; for a dataset of the catalogue: ccreid data fetch NAME --archive FILE.",
        )
    raise DataError(
        f"{path} is neither a folder nor a manifest (.csv, .tsv).", "Give the folder that holds the images."
    )


def _root_of(path: Path, reporter: Reporter) -> Path:
    """Go one level down where a folder holds nothing but one dataset's folder, as archives often unpack."""
    if _split_folders(path) or list_images(path, IMAGE_ENDINGS):
        return path
    inside = _subfolders(path)
    if len(inside) == 1 and _split_folders(inside[0]):
        reporter.message(f"{path} holds only {inside[0].name}, which is taken.")
        return inside[0]
    return path


def _from_folder(root: Path, reporter: Reporter) -> tuple[dict[str, list[Record]], bool]:
    """Return the images by split, and whether identities that are decimal numbers keep these as their numbers."""
    folders = _split_folders(root)
    if not folders:
        crops = {"train": _crops_in(root, root)}
    else:
        crops = {split: _crops_in(root, folder) for split, folder in folders.items()}
        loose = list_images(root, IMAGE_ENDINGS)
        if loose:
            left_out = plural(len(loose), "image is", "images are")
            reporter.warning(f"{root}: {left_out} left out, being outside {_names(folders.values())}.")
    crops = {split: found for split, found in crops.items() if found}
    reader = _choose_reader(root, crops, reporter)
    records = {split: [reader(crop) for crop in crops.get(split, [])] for split in SPLITS}
    return records, reader is not _folder_record


def _choose_reader(root: Path, crops: dict[str, list[_Crop]], reporter: Reporter) -> Callable[[_Crop], Record]:
    """Decide what names and sub-folders mean, from all splits together, and say so."""
    everything = [crop for found in crops.values() for crop in found]
    num_market = sum(_MARKET_NAME.match(crop.file_name) is not None for crop in everything)
    num_nested = sum(bool(crop.identity) for crop in everything)
    if everything and num_market == len(everything) and (not num_nested or _names_agree_with_folders(everything)):
        reporter.message(f"{root}: identities and cameras are taken from the file names.")
        return _market_record
    if everything and num_nested == len(everything):
        identities = {name_of(crop.identity) for crop in everything} - {UNKNOWN}
        reporter.message(f"{root}: its sub-folders are taken as {plural(len(identities), 'identity', 'identities')}.")
        return _folder_record
    if "query" in crops or "gallery" in crops:
        stray = next(crop for crop in everything if not crop.identity and not _MARKET_NAME.match(crop.file_name))
        raise DataError(
            f"{root / stray.name}: queries and gallery need identities, and this image has none.",
            "Name images like 0002_c1_000451.jpg, put them in one folder per identity, or write a CSV manifest.",
        )
    if num_market or num_nested:
        reporter.warning(
            f"{root}: {num_market:,} of {len(everything):,} images are named with identity and camera and "
            f"{num_nested:,} are in sub-folders; all are taken as crops without identities."
        )
    else:
        reporter.message(f"{root}: taken as crops without identities or cameras.")
    return lambda crop: Record(crop.name, UNKNOWN, UNKNOWN)


def _names_agree_with_folders(crops: list[_Crop]) -> bool:
    """Say whether each sub-folder holds one identity of the names and each of these lies in one sub-folder."""
    pairs = {(crop.identity, match[1]) for crop in crops if (match := _MARKET_NAME.match(crop.file_name))}
    return len(pairs) == len({folder for folder, _ in pairs}) == len({identity for _, identity in pairs})


def _market_record(crop: _Crop) -> Record:
    match = _MARKET_NAME.match(crop.file_name)
    assert match is not None, "only chosen where all names match"
    return Record(crop.name, name_of(match[1]), match[2])


def _folder_record(crop: _Crop) -> Record:
    camera = _CAMERA_IN_NAME.search(crop.file_name)
    return Record(crop.name, name_of(crop.identity), camera[1] if camera else UNKNOWN)


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


def _split_folders(root: Path) -> dict[str, Path]:
    folders = {}
    for split, names in _SPLIT_FOLDERS.items():
        present = [root / name for name in names if (root / name).is_dir()]
        if present:
            folders[split] = present[0]
    return folders


def _crops_in(root: Path, folder: Path) -> list[_Crop]:
    """List all images below `folder`, however deep, with the first sub-folder each is in."""
    crops = []
    for current in (folder, *_folders_below(folder)):
        identity = current.relative_to(folder).parts[0] if current != folder else ""
        prefix = "" if current == root else current.relative_to(root).as_posix() + "/"
        crops += [_Crop(prefix + name, identity) for name in list_images(current, IMAGE_ENDINGS)]
    return crops


def _folders_below(folder: Path) -> list[Path]:
    return [below for child in _subfolders(folder) for below in (child, *_folders_below(child))]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX"
    )


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(folder.name for folder in folders)
