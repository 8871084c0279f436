"""Pictures in tar files, as webdataset packs them: ``KEY.jpg``, and if need be ``KEY.json`` or ``KEY.cls`` with labels.

A tar is read from its beginning to its end and in memory only: whatever its entries are called, nothing is written.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from ccreid_cli.core.errors import DataError

MOST_BYTES = 256 << 20
"""Of a picture."""
_MOST_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A picture in a tar, or why it is none; or what is said of the pictures with its key.

    Attributes:
        name: What the tar calls it.
        data: The picture's bytes; empty where it is none.
        problem: Why it is not read; empty where it is.
        labels: What is said of its key; None for pictures.
    """

    name: str
    data: bytes = b""
    problem: str = ""
    labels: dict[str, object] | None = None

    @property
    def key(self) -> str:
        """What a picture and its labels have in common: the name up to the first dot after the last slash."""
        folder, slash, file = self.name.rpartition("/")
        return folder + slash + file.partition(".")[0]


def entries_of(file: BinaryIO, place: str, is_picture: Callable[[str], bool]) -> Iterator[Entry]:
    """Read the pictures of a tar and their labels, in order.

    Args:
        file: The tar, at its beginning.
        place: What it is called in messages.
        is_picture: Says by its name whether a file is a picture.

    Yields:
        Pictures, links and others that are named like pictures, and labels.

    Raises:
        DataError: The tar is damaged, or ends too early.
    """
    count = 0
    counted = _Counted(file)
    try:
        with tarfile.open(fileobj=cast(BinaryIO, counted), mode="r|") as tar:
            for member in tar:
                entry = _entry(tar, member, is_picture(PurePosixPath(member.name).name))
                if entry is not None:
                    count += entry.labels is None
                    yield entry
                vars(tar)["members"].clear()  # tarfile keeps a note of each
            if counted.num_bytes < tar.offset + tarfile.BLOCKSIZE:  # where it takes the end of the file for its own
                raise tarfile.ReadError("it has no end mark")
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(
            f"{place} is damaged or cut off, after {count:,} whole pictures: {error}.",
            "Get it again, then repeat the command: what other files gave is kept.",
        ) from error


class _Counted:
    """Counts the bytes that are read of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0

    def read(self, size: int) -> bytes:
        """Read as the file does."""
        data = self._file.read(size)
        self.num_bytes += len(data)
        return data


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo, is_picture: bool) -> Entry | None:
    if is_picture:
        problem = _problem(member)
        return Entry(member.name, b"" if problem else _read(tar, member), problem)
    ending = PurePosixPath(member.name).suffix.lower()
    if ending not in (".json", ".cls") or not member.isreg() or member.size > _MOST_LABEL_BYTES:
        return None
    return Entry(member.name, labels=_labels(ending, _read(tar, member)))


def _problem(member: tarfile.TarInfo) -> str:
    """Return why a member that is named like a picture is not read."""
    if not member.isreg():
        kind = "a link" if member.issym() or member.islnk() else "a folder" if member.isdir() else "no plain file"
        return f"{kind} in the tar"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the tar"
    return f"{member.size:,} bytes" if member.size > MOST_BYTES else ""


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _labels(ending: str, data: bytes) -> dict[str, object]:
    """Return what labels say; nothing where they cannot be read."""
    text = data.decode("utf-8", "replace").strip()
    if ending == ".cls":
        return {"id": text}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
