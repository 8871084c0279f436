"""Linking a dataset that lies elsewhere, and removing what can be made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.locks import LockedError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.data.catalog import DatasetInfo
from ccreid_cli.data.install import DOWNLOADS_FOLDER, WORK_PREFIX, lock_of
from ccreid_cli.data.recognise import Candidate, examine
from ccreid_cli.images.cache import CACHE_FOLDER
from ccreid_cli.transfer.partial import PART_SUFFIX, STATE_SUFFIX


@dataclass(frozen=True)
class CleanReport:
    """What `clean` did.

    Attributes:
        freed_bytes: Bytes of what was removed.
        removed: What was removed.
        in_use: What was left because another process is using it.
    """

    freed_bytes: int
    removed: tuple[Path, ...]
    in_use: tuple[Path, ...]


def link_dataset(info: DatasetInfo, place: Path, data_dir: Path, reporter: Reporter | None = None) -> Path:
    """Make a dataset that lies elsewhere part of the official tree, by a symbolic link.

    Args:
        info: The dataset.
        place: Its folder, or one up to two levels above it.
        data_dir: The data directory.
        reporter: Told what was linked, and where it differs from the published dataset.

    Returns:
        The link, ``<data-dir>/<name>/<folder>``.

    Raises:
        DataError: The folder is not that dataset, or something else is where the link goes.
    """
    reporter = reporter or SilentReporter()
    candidate = _recognise(info, place.expanduser())
    if candidate.dataset is None:
        raise DataError(f"{place} cannot be linked as {info.name}. {candidate.what_is_wrong}")
    if candidate.problems:
        reporter.warning(f"{info.name}: {candidate.what_is_wrong}")
    link = data_dir / info.name / candidate.place.folder
    if link.exists() and link.samefile(candidate.root):
        return link
    if os.path.lexists(link):
        raise DataError(f"{link} is there already.", "Move it away first.")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(candidate.root.resolve(), target_is_directory=True)
    except OSError as error:
        raise DataError(f"could not link {link}: {error.strerror or error}.") from error
    reporter.message(f"{info.name} is linked: {link} -> {candidate.root.resolve()}")
    return link


def clean(data_dir: Path) -> CleanReport:
    """Remove decoded caches, partial downloads and what killed runs left; datasets and kept archives stay.

    Args:
        data_dir: The data directory.

    Returns:
        What was removed, and what is in use by another process and was left.
    """
    removed: list[Path] = []
    in_use: list[Path] = []
    freed = 0
    for path, key in _removable(data_dir):
        lock = lock_of(data_dir, key)
        try:
            lock.acquire(wait=False)
        except LockedError:
            in_use.append(path)
            continue
        try:
            freed += _remove(path)
            removed.append(path)
        finally:
            lock.release()
    with suppress(OSError):
        (data_dir / DOWNLOADS_FOLDER).rmdir()
    return CleanReport(freed, tuple(removed), tuple(in_use))


def _recognise(info: DatasetInfo, place: Path) -> Candidate:
    if not place.is_dir():
        raise DataError(f"{place} is not a folder.", f"For an archive: ccreid data fetch {info.name} --archive FILE")
    level = [place]
    for _ in range(3):
        for root in level:
            candidate = examine(info, root)
            if candidate is not None:
                return candidate
        level = sorted(child for root in level for child in root.iterdir() if child.is_dir())
    raise DataError(
        f"{place} is not {info.title}: no folder in it has {info.parts_text}.", "Give the folder that holds them."
    )


def _removable(data_dir: Path) -> Iterator[tuple[Path, str]]:
    """List what may go, each with the dataset whose lock protects it."""
    if not data_dir.is_dir():
        return
    if (data_dir / CACHE_FOLDER).is_dir():
        yield data_dir / CACHE_FOLDER, "cache"
    for path in sorted(data_dir.glob(f"{WORK_PREFIX}*")):
        yield path, path.name.removeprefix(WORK_PREFIX)
    for path in sorted(data_dir.glob(f"{DOWNLOADS_FOLDER}/*")):
        yield path, path.name
    for suffix in (PART_SUFFIX, STATE_SUFFIX):
        for path in sorted((*data_dir.glob(f"*{suffix}"), *data_dir.glob(f"[!.]*/*{suffix}"))):
            yield path, path.name.removesuffix(suffix)


def _remove(path: Path) -> int:
    """Remove a file or folder and return its bytes."""
    if path.is_dir() and not path.is_symlink():
        size = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
        shutil.rmtree(path, ignore_errors=True)
        return size
    size = path.lstat().st_size
    path.unlink()
    return size
