"""Unpacking archives that nobody vouches for: all of one appears in the right place, or nothing does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.files import free_bytes
from ccreid_cli.core.reporter import Reporter, SilentReporter, Task
from ccreid_cli.transfer.checks import byte_text
from ccreid_cli.transfer.entries import Entry, damage_explained, open_archive
from ccreid_cli.transfer.partial import disk_errors_explained

INCOMING_PREFIX = ".ccreid-incoming-"
_COPY_BYTES = 1024 * 1024
_BLOCK_BYTES = 4096  # what a file or folder takes on disk beyond its bytes, at most


def extract_archive(archive: Path, target: Path, *, reporter: Reporter | None = None) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tar.bz2 (told by content, not by name) into the new folder `target`.

    Every name and size is checked before the first byte is written. The files go to a folder beside `target` whose
    name starts with `INCOMING_PREFIX`, and that folder is renamed once all are there and match their checksums. What
    a killed process left of it goes first, so whoever calls holds a lock. Only contents are taken from the archive: no
    modes, owners or times. Thumbs.db, ``__MACOSX/`` and the like are left out.

    Args:
        archive: The archive; it is only read.
        target: The folder to make; it must not exist.
        reporter: Where progress goes.

    Raises:
        DataError: The archive is damaged, encrypted, of an unknown kind, or holds what must not be unpacked (absolute
            paths, "..", links, devices, colliding names, absurd sizes); `target` exists; the disk is too small.
    """
    if os.path.lexists(target):
        raise DataError(f"{target} is there already, so nothing was unpacked.", "Move it away or remove it first.")
    incoming = target.with_name(INCOMING_PREFIX + target.name)
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        with open_archive(archive) as entries:
            _need_room(archive, entries, target)
            with disk_errors_explained(incoming):
                incoming.mkdir(parents=True)
            with _progress(f"unpacking {archive.name}", entries, reporter) as task:
                for entry in entries:
                    _unpack(archive, entry, incoming / entry.path, task)
        with disk_errors_explained(target):
            if hasattr(os, "sync"):  # a power cut after the rename must not leave a folder of empty files
                os.sync()
            incoming.rename(target)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def test_archive(archive: Path, *, reporter: Reporter | None = None) -> None:
    """Read an archive to its end, checksums included, without writing anything.

    Args:
        archive: A .zip, .tar, .tar.gz or .tar.bz2.
        reporter: Where progress goes.

    Raises:
        DataError: It could not be unpacked.
    """
    with open_archive(archive) as entries, _progress(f"testing {archive.name}", entries, reporter) as task:
        for entry in entries:
            for _ in _blocks(archive, entry, task):
                pass


def _progress(what: str, entries: list[Entry], reporter: Reporter | None) -> AbstractContextManager[Task]:
    return (reporter or SilentReporter()).task(what, sum(entry.size for entry in entries), unit="B")


def _need_room(archive: Path, entries: list[Entry], target: Path) -> None:
    needed = sum(entry.size + _BLOCK_BYTES for entry in entries)
    free = free_bytes(target.parent)
    if needed > free:
        raise DataError(
            f"{archive} unpacks to {byte_text(needed)}, and the disk of {target.parent} has only {byte_text(free)} "
            "free.",
            "Free some space on that disk, or choose a folder on another one.",
        )


def _unpack(archive: Path, entry: Entry, place: Path, task: Task) -> None:
    """Make the folder or file `place`. A file must be new, whatever the file system takes for the same name."""
    with disk_errors_explained(place):
        if entry.is_folder:
            place.mkdir(parents=True, exist_ok=True)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            for block in _blocks(archive, entry, task):
                file.write(block)


def _blocks(archive: Path, entry: Entry, task: Task) -> Iterator[bytes]:
    """Read the content of `entry`; zipfile and tarfile compare its length and checksum."""
    if entry.is_folder:
        return
    with damage_explained(archive), entry.open() as content:
        while block := content.read(_COPY_BYTES):
            yield block
            task.advance(len(block))
