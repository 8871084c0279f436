"""Unpacking archives that nobody vouches for: all of one appears in the right place, or nothing does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.files import free_bytes
from ccreid_cli.core.locks import FileLock, LockedError
from ccreid_cli.core.reporter import Reporter, SilentReporter, Task
from ccreid_cli.transfer.archive_readers import damage_explained, open_archive
from ccreid_cli.transfer.checks import byte_text
from ccreid_cli.transfer.entries import Entry, Inventory, Kind, is_clutter
from ccreid_cli.transfer.partial import disk_errors_explained

INCOMING_PREFIX = ".ccreid-incoming-"
MAX_ENTRIES = 2_000_000
MAX_RATIO = 200.0
_LOCK_SUFFIX = ".lock"
_COPY_BYTES = 1024 * 1024


def extract_archive(
    archive: Path,
    target: Path,
    *,
    reporter: Reporter | None = None,
    max_total_bytes: int | None = None,
    max_entries: int = MAX_ENTRIES,
    max_ratio: float = MAX_RATIO,
    skip: Callable[[PurePosixPath], bool] = is_clutter,
) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tar.bz2 (told by content, not by name) into the new folder `target`.

    Every name and size is checked before the first byte is written. The files go to a folder beside `target` whose
    name starts with `INCOMING_PREFIX`, and that folder is renamed once all are there and match their checksums. What
    a killed process left there is removed by the next call. Files get mode 0644, folders 0755 (less the umask).

    Args:
        archive: The archive; it is only read.
        target: The folder to make; it must not exist.
        reporter: Where progress goes.
        max_total_bytes: Bytes that all files together may have, or None.
        max_entries: Entries that the archive may have.
        max_ratio: How many times its packed size the whole or an entry may grow to.
        skip: Says of a path in the archive whether it is left out; Thumbs.db, ``__MACOSX/`` and the like by default.

    Raises:
        DataError: The archive is damaged, encrypted, of an unknown kind, or holds what must not be unpacked (absolute
            paths, "..", links, devices, colliding names, absurd sizes); `target` exists; the disk is too small.
    """
    reporter = reporter or SilentReporter()
    incoming = target.with_name(INCOMING_PREFIX + target.name)
    with FileLock(_lock_path(incoming), what=f"unpacking to {target}", reporter=reporter):
        if os.path.lexists(target):
            raise DataError(f"{target} is there already, so nothing was unpacked.", "Move it away or remove it first.")
        _remove_leftovers(target.parent, incoming)

        def limits() -> Inventory:
            return Inventory(archive, max_total_bytes, max_entries, max_ratio, skip)

        declared = _survey(archive, limits)
        _need_room(declared, target)
        try:
            _unpack(archive, incoming, limits, declared, reporter)
            with disk_errors_explained(target):
                if hasattr(os, "sync"):  # a power cut after the rename must not leave a folder of empty files
                    os.sync()
                incoming.rename(target)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


def test_archive(
    archive: Path,
    *,
    reporter: Reporter | None = None,
    max_total_bytes: int | None = None,
    max_entries: int = MAX_ENTRIES,
    max_ratio: float = MAX_RATIO,
) -> None:
    """Read an archive to its end, checksums included, without writing anything.

    Args:
        archive: A .zip, .tar, .tar.gz or .tar.bz2.
        reporter: Where progress goes.
        max_total_bytes: As of `extract_archive`.
        max_entries: As of `extract_archive`.
        max_ratio: As of `extract_archive`.

    Raises:
        DataError: It could not be unpacked.
    """

    def limits() -> Inventory:
        return Inventory(archive, max_total_bytes, max_entries, max_ratio, is_clutter)

    declared, again = _survey(archive, limits), limits()
    with (
        open_archive(archive) as entries,
        (reporter or SilentReporter()).task(f"testing {archive.name}", declared.total_bytes, unit="B") as task,
    ):
        for entry in entries:
            if again.add(entry) is not None and entry.kind is Kind.FILE:
                _copy(archive, entry, None, task)


def _survey(archive: Path, limits: Callable[[], Inventory]) -> Inventory:
    """Read all that the archive declares and refuse it for any of it."""
    with open_archive(archive) as entries:
        inventory = limits()
        for entry in entries:
            inventory.add(entry)
    if not inventory.num_files:
        raise DataError(f"{archive} holds no files.", "Delete it and fetch it again.")
    return inventory


def _need_room(declared: Inventory, target: Path) -> None:
    free = free_bytes(target.parent)
    if declared.disk_bytes > free:
        raise DataError(
            f"{declared.archive} unpacks to {byte_text(declared.disk_bytes)}, "
            f"and the disk of {target.parent} has only {byte_text(free)} free.",
            "Free some space on that disk, or choose a folder on another one.",
        )


def _unpack(
    archive: Path, incoming: Path, limits: Callable[[], Inventory], declared: Inventory, reporter: Reporter
) -> None:
    """Write the files. All checks are made once more: the archive may have changed since it was surveyed."""
    again, made = limits(), {incoming}
    with disk_errors_explained(incoming):
        incoming.mkdir(mode=0o755, parents=True)
    with (
        open_archive(archive) as entries,
        reporter.task(f"unpacking {archive.name}", declared.total_bytes, unit="B") as task,
    ):
        for entry in entries:
            path = again.add(entry)
            if path is None:
                continue
            place = incoming / path
            _make_folder(place if entry.kind is Kind.FOLDER else place.parent, made)
            if entry.kind is Kind.FILE:
                _copy(archive, entry, place, task)


def _make_folder(folder: Path, made: set[Path]) -> None:
    """Make `folder` and those above it, down from one that is in `made`."""
    if folder in made:
        return
    _make_folder(folder.parent, made)
    with disk_errors_explained(folder):
        folder.mkdir(mode=0o755)
    made.add(folder)


def _copy(archive: Path, entry: Entry, place: Path | None, task: Task) -> None:
    """Read the content of `entry`, and write it to the new file `place` if one is given."""
    left = entry.size
    with ExitStack() as stack:
        with damage_explained(archive):
            content = stack.enter_context(entry.open())
        file = stack.enter_context(_created(place)) if place else None
        while True:
            with damage_explained(archive):
                block = content.read(min(_COPY_BYTES, left + 1))  # one more than is left: to see content that goes on
                left -= len(block)
                if left < 0 or (left and not block):
                    raise EOFError(f"{entry.name!r} is not {entry.size} bytes long")
            if not block:
                return
            if file:
                file.write(block)
            task.advance(len(block))


@contextmanager
def _created(place: Path) -> Iterator[IO[bytes]]:
    """Make a file that must not be there yet, links included, and that nobody may run."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)  # the last for Windows
    with disk_errors_explained(place), os.fdopen(os.open(place, flags, 0o644), "wb") as file:
        yield file


def _lock_path(incoming: Path) -> Path:
    return incoming.with_name(incoming.name + _LOCK_SUFFIX)


def _remove_leftovers(folder: Path, own: Path) -> None:
    """Remove what killed processes left in `folder`; `own` is locked by this one, others only if nobody holds them."""
    for leftover in list(folder.glob(f"{INCOMING_PREFIX}*")):
        if f"{_LOCK_SUFFIX}." in f"{leftover.name}.":  # a lock, or the note of who holds it
            continue
        if leftover == own:
            _remove(leftover)
            continue
        with suppress(LockedError):
            lock = FileLock(_lock_path(leftover))
            lock.acquire(wait=False)
            try:
                _remove(leftover)
            finally:
                lock.release()


def _remove(leftover: Path) -> None:
    if leftover.is_dir() and not leftover.is_symlink():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)
