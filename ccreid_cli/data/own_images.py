"""A user's own images: a Market-style folder, a bare folder of crops, or a folder per identity.

Which of them it is is decided by what is there. (A CSV or TSV manifest is read by `data.manifest`.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import plural
from ccreid_cli.data.layouts import JUNK_ID, MARKET_PATTERN, list_images
from ccreid_cli.data.locate import is_archive_name
from ccreid_cli.data.manifest import MANIFEST_ENDINGS, read_manifest
from ccreid_cli.data.records import SPLITS, Record
from ccreid_cli.data.splits import ReidDataset, Split, queries_without_match

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
NO_CAMERA = -1
"""Camera of an image whose name gives none, until cameras are numbered."""

_SPLIT_FOLDERS = {
    "train": ("bounding_box_train", "image_train", "train"),
    "query": ("query", "image_query"),
    "gallery": ("bounding_box_test", "image_test", "gallery", "test"),
}
_MARKET_NAME = re.compile(MARKET_PATTERN)
_CAMERA_IN_NAME = re.compile(r"_c(\d+)")
_UNKNOWN_ID = -1


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


def load_own_images(path: Path, reporter: Reporter) -> ReidDataset:
    """Load a user's own images.

    Args:
        path: A folder, or a CSV/TSV manifest. In a folder, split sub-folders (``bounding_box_train``, ``query``,
            ``bounding_box_test``; ``image_train``, ...; ``train``, ``query``, ``gallery`` or ``test``) are used where
            they exist; otherwise everything is for training. Inside, names like ``0002_c1_000451.jpg`` give identity
            and camera; sub-folders are identities; anything else has neither. Identity -1 is junk and left out.
        reporter: Told what was taken for what.

    Returns:
        The dataset. Cameras are numbered from 0 in their order; without any camera, evaluation removes no image.

    Raises:
        DataError: There are no images, or a manifest is wrong.
    """
    if path.is_file():
        records = _from_file(path)
        root = path.parent
    else:
        root = _root_of(path, reporter)
        records = _from_folder(root, reporter)
    if not any(records.values()):
        raise DataError(f"no image was found in {path}.", f"Images end in {', '.join(IMAGE_ENDINGS)}.")
    dataset = _build(path, root, records)
    _say_what_evaluation_will_do(dataset, reporter)
    return dataset


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


def _from_folder(root: Path, reporter: Reporter) -> dict[str, list[Record]]:
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
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    num_junk = 0
    for split, found in crops.items():
        read = [reader(crop) for crop in found]
        records[split] = [record for record in read if record is not None]
        num_junk += len(read) - len(records[split])
    if num_junk and not any(records.values()):
        raise DataError(
            f"{root}: {'the one image is' if num_junk == 1 else f'all {num_junk:,} images are'} junk (identity -1).",
            "Leave the -1 out of the names of images to train on.",
        )
    if num_junk:
        reporter.message(f"{root}: {plural(num_junk, 'junk image is', 'junk images are')} left out (identity -1).")
    return records


def _choose_reader(root: Path, crops: dict[str, list[_Crop]], reporter: Reporter) -> Callable[[_Crop], Record | None]:
    """Decide what names and sub-folders mean, from all splits together, and say so."""
    everything = [crop for found in crops.values() for crop in found]
    num_market = sum(_MARKET_NAME.match(crop.file_name) is not None for crop in everything)
    num_nested = sum(bool(crop.identity) for crop in everything)
    if everything and num_market == len(everything) and (not num_nested or _names_agree_with_folders(everything)):
        reporter.message(f"{root}: identities and cameras are taken from the file names.")
        return _market_record
    if everything and num_nested == len(everything):
        identities = sorted({crop.identity for crop in everything})
        numbers = {name: number for number, name in enumerate(name for name in identities if name != str(JUNK_ID))}
        reporter.message(f"{root}: its sub-folders are taken as {plural(len(numbers), 'identity', 'identities')}.")
        return lambda crop: _identity_record(crop, numbers)
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
    return lambda crop: Record(crop.name, _UNKNOWN_ID, NO_CAMERA)


def _names_agree_with_folders(crops: list[_Crop]) -> bool:
    """Say whether each sub-folder holds one identity of the names and each of these lies in one sub-folder."""
    pairs = {(crop.identity, match[1]) for crop in crops if (match := _MARKET_NAME.match(crop.file_name))}
    return len(pairs) == len({folder for folder, _ in pairs}) == len({identity for _, identity in pairs})


def _market_record(crop: _Crop) -> Record | None:
    match = _MARKET_NAME.match(crop.file_name)
    if match is None or int(match[1]) == JUNK_ID:
        return None
    return Record(crop.name, int(match[1]), int(match[2]))


def _identity_record(crop: _Crop, numbers: dict[str, int]) -> Record | None:
    if crop.identity not in numbers:
        return None
    camera = _CAMERA_IN_NAME.search(crop.file_name)
    return Record(crop.name, numbers[crop.identity], int(camera[1]) if camera else NO_CAMERA)


def _build(path: Path, root: Path, records: dict[str, list[Record]]) -> ReidDataset:
    """Number the cameras from 0; without any, tell query from gallery so that evaluation removes nothing."""
    numbers = sorted({record.camera for found in records.values() for record in found})
    has_cameras = numbers != [NO_CAMERA]
    camera_ids = {number: index for index, number in enumerate(numbers)}

    def split(name: str) -> Split:
        without = 1 if name == "gallery" else 0
        return Split.from_records(
            root,
            (record._replace(camera=camera_ids[record.camera] if has_cameras else without) for record in records[name]),
        )

    train, query, gallery = (split(name) for name in SPLITS)
    return ReidDataset(str(path), root, train, query, gallery, has_cameras=has_cameras)


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
