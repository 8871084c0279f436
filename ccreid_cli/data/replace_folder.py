"""Putting a verified dataset in its place in the official tree; a crash loses neither the old nor the new one."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.data.catalog import DatasetInfo
from ccreid_cli.data.recognise import Candidate, examine
from ccreid_cli.data.splits import ReidDataset

REPLACED_PREFIX = ".ccreid-replaced-"


def recover_replaced(info: DatasetInfo, data_dir: Path) -> None:
    """Finish or undo a replacement that was killed between its two renames. The dataset's lock must be held."""
    for aside in (data_dir / info.name).glob(f"{REPLACED_PREFIX}*"):
        target = aside.with_name(aside.name.removeprefix(REPLACED_PREFIX))
        if os.path.lexists(target):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)


def put_in_place(candidate: Candidate, data_dir: Path, reporter: Reporter) -> Path:
    """Move a dataset from a workspace on the same disk to the official tree, by one rename.

    What is in its place already is replaced if the new one is complete and differs in any byte of any image: whoever
    calls has made sure that the user wants that. The dataset's lock must be held.

    Args:
        candidate: The new one.
        data_dir: The data directory.
        reporter: Told what was done.

    Returns:
        The dataset's folder.

    Raises:
        DataError: The new one is not complete and something is in its place, or the disk refuses.
    """
    info = candidate.info
    target = data_dir / info.name / candidate.place.folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() or (target.is_dir() and any(target.iterdir())):
            return _replace(candidate, target, reporter)
        candidate.root.rename(target)
    except OSError as error:
        raise DataError(f"could not put {info.name} at {target}: {error.strerror or error}.") from error
    if not candidate.is_complete:
        reporter.warning(f"{info.name} is laid out as it is. {candidate.what_is_wrong}")
    reporter.message(f"{info.name} is laid out: {target}")
    return target


def _replace(candidate: Candidate, target: Path, reporter: Reporter) -> Path:
    """Put a verified dataset in the place of another, unless they are the same."""
    info = candidate.info
    if not candidate.is_complete or candidate.dataset is None:
        raise DataError(
            f"{target} is kept: what was to replace it is not the published {info.title}. {candidate.what_is_wrong}",
            "Move it away first if the new one is to be taken as it is.",
        )
    there = examine(info, target)
    if there is not None and there.dataset is not None and _same_images(there.dataset, candidate.dataset):
        reporter.message(f"{info.name} is there already, image for image the same: {target}")
        return target
    if target.is_symlink():
        target.unlink()  # the folder it points to is not ours
        candidate.root.rename(target)
    else:
        aside = target.with_name(f"{REPLACED_PREFIX}{target.name}")
        target.rename(aside)
        candidate.root.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    reporter.message(f"{info.name} is replaced: {target}")
    return target


def _same_images(one: ReidDataset, other: ReidDataset) -> bool:
    return one.fingerprint() == other.fingerprint() and all(
        filecmp.cmp(mine, yours, shallow=False)
        for split in one.splits
        for mine, yours in zip(one.splits[split].paths, other.splits[split].paths, strict=True)
    )
