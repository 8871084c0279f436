"""Where a user's own images have identities and cameras: in the file names, or in folders named like identities.

Each split is read by its own form. Where file names and folders say different things, both are said and nothing is
guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.names import UNKNOWN, name_of
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import few, plural
from ccreid_cli.data.file_names import Tracked, camera_of, is_camera_folder, is_split_folder, of_tracker
from ccreid_cli.data.own_folders import Crop
from ccreid_cli.data.records import SPLITS, Record


class Form(Enum):
    """Where a split's identities are. The values are what ``--columns id=...`` takes."""

    NAMES = "names"
    FOLDERS = "folders"
    NOWHERE = ""


_HOW = {Form.NAMES: "from the file names", Form.FOLDERS: "from the sub-folders", Form.NOWHERE: "unknown"}
_MANIFEST = (
    "Write a CSV manifest (path,id,camera,split), or say which it is: --columns id=names (0002_c1_000451.jpg) or "
    "--columns id=folders (one folder per identity)."
)


def read_labels(
    root: Path, crops: dict[str, list[Crop]], chosen: Form | None, reporter: Reporter
) -> tuple[dict[str, list[Record]], bool]:
    """Read identities and cameras of a folder's images.

    Args:
        root: The folder.
        crops: Its images by split.
        chosen: What the user says the identities are in; None decides by what is there.
        reporter: Told what was taken for what.

    Returns:
        Images by split; and whether identities that are decimal numbers keep these as their numbers.

    Raises:
        DataError: What is there can be read in two ways, or queries and gallery have no identities.
    """
    forms = {split: _chosen_form(root, found, chosen) or _form(root, split, found) for split, found in crops.items()}
    forms = _in_common(crops, forms)
    records = {split: [_record(crop, forms[split]) for crop in crops.get(split, ())] for split in SPLITS}
    _check_query_against_gallery(root, forms, records)
    _say(root, crops, forms, records, reporter)
    _say_cameras(root, forms, records, reporter)
    return records, Form.FOLDERS not in forms.values()


def _chosen_form(root: Path, crops: Sequence[Crop], chosen: Form | None) -> Form | None:
    """Return the user's choice, which all images must follow."""
    if chosen is Form.NAMES:
        stray = next((crop for crop in crops if crop.named is None), None)
        if stray is not None:
            raise DataError(f"{root / stray.name}: its name gives no identity and camera, as 0002_c1_000451.jpg does.")
    if chosen is Form.FOLDERS:
        stray = next((crop for crop in crops if not crop.folder), None)
        if stray is not None:
            raise DataError(f"{root / stray.name}: it lies in no folder of an identity.")
    return chosen


def _form(root: Path, split: str, crops: Sequence[Crop]) -> Form:
    """Decide where the identities of one split are.

    Raises:
        DataError: They may be in two places that disagree, or are nowhere where they are needed.
    """
    num_named = sum(crop.named is not None for crop in crops)
    num_nested = sum(bool(crop.folder) for crop in crops)
    if num_named == len(crops) and (num_nested < num_named or _names_agree(crops) or _folders_are_cameras(crops)):
        return Form.NAMES
    if num_nested == len(crops):
        if num_named and not _names_agree(crops):
            raise _two_readings(root, split, crops, num_named)
        _refuse_other_folders(root, crops)
        return Form.FOLDERS
    if split != "train":
        stray = next(crop for crop in crops if not crop.folder and crop.named is None)
        raise DataError(
            f"{root / stray.name}: queries and gallery need identities, and this image has none.",
            "Name images like 0002_c1_000451.jpg, put them in one folder per identity, or write a CSV manifest.",
        )
    return Form.NOWHERE


def _in_common(crops: dict[str, list[Crop]], forms: dict[str, Form]) -> dict[str, Form]:
    """Read all splits by their folders where not all can be read by names and those that can say the same by both."""
    by_names = [split for split, form in forms.items() if form is Form.NAMES]
    both = all(all(crop.folder for crop in crops[split]) and _names_agree(crops[split]) for split in by_names)
    if Form.FOLDERS not in forms.values() or not both:
        return forms
    return {split: Form.FOLDERS if split in by_names else form for split, form in forms.items()}


def _pairs(crops: Sequence[Crop]) -> set[tuple[str, str]]:
    return {(crop.folder, crop.named.identity) for crop in crops if crop.named is not None}


def _names_agree(crops: Sequence[Crop]) -> bool:
    """Say whether each sub-folder holds one identity of the names and each of these lies in one sub-folder."""
    pairs = _pairs(crops)
    return len(pairs) == len({folder for folder, _ in pairs}) == len({identity for _, identity in pairs})


def _folders_are_cameras(crops: Sequence[Crop]) -> bool:
    """Say whether the sub-folders are named like cameras and each holds images of one camera by the names."""
    cameras = {(crop.folder, crop.named.camera) for crop in crops if crop.named is not None}
    folders = {folder for folder, _ in cameras}
    return all(is_camera_folder(folder) for folder in folders) and len(cameras) == len(folders)


def _two_readings(root: Path, split: str, crops: Sequence[Crop], num_named: int) -> DataError:
    folders = sorted({crop.folder for crop in crops})
    identities = {identity for _, identity in _pairs(crops)}
    shown = next(crop for crop in crops if crop.named is not None)
    names = plural(len(identities), "identity", "identities")
    return DataError(
        f"{root}: the {split} images can be read in two ways that disagree. By their names ({num_named:,} of "
        f"{len(crops):,} are like {shown.file_name}) they show {names}; by their sub-folders ({few(folders)}) "
        f"{plural(len(folders), 'identity', 'identities')}.",
        _MANIFEST,
    )


def _refuse_other_folders(root: Path, crops: Sequence[Crop]) -> None:
    """Refuse to take cameras, or parts of a dataset, for identities."""
    folders = sorted({crop.folder for crop in crops})
    for is_other, what in ((is_camera_folder, "cameras"), (is_split_folder, "parts of a dataset")):
        others = [folder for folder in folders if is_other(folder)]
        if len(others) == len(folders):
            raise DataError(
                f"{root}: its sub-folders ({few(folders)}) are named like {what}, and the file names (such as "
                f"{crops[0].file_name}) give no identities: as one folder per identity they would be "
                f"{plural(len(folders), 'identity', 'identities')}.",
                _MANIFEST,
            )


def with_tracks(
    root: Path, records: dict[str, list[Record]], pattern: re.Pattern[str] | None, reporter: Reporter
) -> dict[str, list[Record]]:
    """Add what names of a tracker's crops say: camera, tracklet and frame, and with a pattern of the user's the id.

    Args:
        root: The folder, for messages.
        records: Images by split.
        pattern: What the user says the names are; by default names like ``cam01_track0005_frame000123.jpg`` are known.
        reporter: Told what was taken.

    Raises:
        DataError: A name does not fit the user's pattern.
    """
    found = {
        record.name: said
        for split in SPLITS
        for record in records[split]
        if (said := of_tracker(record.name.rpartition("/")[2], *([pattern] if pattern else ())))
    }
    everything = [record for split in SPLITS for record in records[split]]
    stray = next((record for record in everything if record.name not in found), None)
    if pattern and stray:
        raise DataError(f"{root / stray.name}: its name does not fit --pattern {pattern.pattern}.")
    if not found:
        return records
    count = len({said.tracklet for said in found.values()} - {UNKNOWN})
    reporter.message(
        f"{root}: {len(found):,} of {len(everything):,} names are a tracker's: {plural(count, 'tracklet')}; its images "
        "show one object, and tracks of one camera at one time different ones."
    )
    return {split: [_with_track(record, found.get(record.name)) for record in part] for split, part in records.items()}


def _with_track(record: Record, said: Tracked | None) -> Record:
    if said is None:
        return record
    return record._replace(
        identity=said.identity or record.identity,
        camera=said.camera or record.camera,
        tracklet=said.tracklet,
        time=said.frame,
    )


def _record(crop: Crop, form: Form) -> Record:
    if form is Form.NAMES and crop.named is not None:
        return Record(crop.name, crop.named.identity, crop.named.camera)
    if form is Form.FOLDERS:
        camera = crop.named.camera if crop.named is not None else camera_of(crop.file_name)
        return Record(crop.name, name_of(crop.folder), camera)
    return Record(crop.name, UNKNOWN, UNKNOWN)


def _check_query_against_gallery(root: Path, forms: dict[str, Form], records: dict[str, list[Record]]) -> None:
    """Refuse queries and a gallery whose identities are from different places and have nothing in common."""
    if forms.get("query") == forms.get("gallery") or not (records["query"] and records["gallery"]):
        return
    queries, others = ({record.identity for record in records[split]} for split in ("query", "gallery"))
    if not queries & others:
        raise DataError(
            f"{root}: the queries' identities are taken {_HOW[forms['query']]} ({few(sorted(queries))}), the gallery's "
            f"{_HOW[forms['gallery']]} ({few(sorted(others))}), and none is in both.",
            "Lay both out in the same way, or write a CSV manifest.",
        )


def _say(
    root: Path,
    crops: dict[str, list[Crop]],
    forms: dict[str, Form],
    records: dict[str, list[Record]],
    reporter: Reporter,
) -> None:
    different = set(forms.values())
    if different == {Form.NAMES}:
        reporter.message(f"{root}: identities and cameras are taken from the file names.")
    elif different == {Form.FOLDERS}:
        identities = {record.identity for found in records.values() for record in found} - {UNKNOWN}
        reporter.message(f"{root}: its sub-folders are taken as {plural(len(identities), 'identity', 'identities')}.")
    elif different == {Form.NOWHERE}:
        _say_nothing_known(root, crops["train"], reporter)
    elif different:
        ways = "; ".join(f"{split}: {_HOW[form]}" for split, form in forms.items())
        reporter.warning(f"{root}: identities are taken in different ways. {ways}.")


def _say_nothing_known(root: Path, crops: Sequence[Crop], reporter: Reporter) -> None:
    num_named = sum(crop.named is not None for crop in crops)
    num_nested = sum(bool(crop.folder) for crop in crops)
    if num_named or num_nested:
        reporter.warning(
            f"{root}: {num_named:,} of {len(crops):,} images are named with identity and camera and "
            f"{num_nested:,} are in sub-folders; all are taken as crops without identities or cameras."
        )
    else:
        reporter.message(f"{root}: taken as crops without identities or cameras.")


def _say_cameras(root: Path, forms: dict[str, Form], records: dict[str, list[Record]], reporter: Reporter) -> None:
    """Say where only some of the names give a camera."""
    found = [record for split, form in forms.items() if form is Form.FOLDERS for record in records[split]]
    without = [record for record in found if record.camera == UNKNOWN]
    if without and len(without) < len(found):
        reporter.warning(
            f"{root}: {len(without):,} of {len(found):,} images have no camera in their names (as _c2), the first "
            f"{without[0].name}; evaluation takes none of them to be from the same camera as another image."
        )
