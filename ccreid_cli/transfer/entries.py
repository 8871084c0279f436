"""The names and sizes inside an archive: what may be unpacked and what must not."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import IO

from ccreid_cli.core.errors import DataError
from ccreid_cli.transfer.checks import byte_text

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 2048
# Below this many bytes even absurdly well packed content does no harm.
HARMLESS_BYTES = 1024 * 1024
BLOCK_BYTES = 4096
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", ".ds_store"})


class Kind(Enum):
    """What an entry of an archive is."""

    FILE = "file"
    FOLDER = "folder"
    OTHER = "link, device or other special file"


@dataclass(frozen=True)
class Entry:
    """One entry as the archive describes it; nothing of it is trusted.

    Attributes:
        name: Name as written in the archive.
        kind: What it is.
        size: Bytes of its content, as declared.
        packed_size: Bytes that the content takes in the archive, where each entry is packed by itself.
        open: Opens its content; only in the order of the archive, before the next entry is asked for.
    """

    name: str
    kind: Kind
    size: int
    packed_size: int | None
    open: Callable[[], IO[bytes]]


def is_clutter(path: PurePosixPath) -> bool:
    """Whether `path` is what desktop systems leave behind: Thumbs.db, .DS_Store, ``__MACOSX/``, ``._*``."""
    return path.name.lower() in _CLUTTER or path.name.startswith("._") or "__MACOSX" in path.parts


def safe_path(name: str) -> PurePosixPath:
    """Return the relative path that the entry `name` stands for; "." for the archive's own top.

    Raises:
        DataError: The name leads out of the target, or cannot be a file name on every system.
    """
    problem = _name_problem(name)
    if problem:
        raise DataError(f"the archive holds an entry named {name[:200]!r}, which {problem}.", UNSAFE_HINT)
    return PurePosixPath(*(part for part in name.split("/") if part not in ("", ".")))


UNSAFE_HINT = "Nothing was unpacked. Such an archive is damaged or made to do harm: get it again from its authors."


def _name_problem(name: str) -> str | None:
    parts = name.split("/")
    if name.startswith("/"):
        return "is an absolute path"
    if ".." in parts:
        return "leads out of the folder"
    if "\\" in name:
        return "has a backslash"
    if re.match(r"[A-Za-z]:", parts[0]):
        return "starts with a drive letter"
    if not name or _CONTROL.search(name):
        return "is empty or has control characters"
    if len(os.fsencode(name)) > MAX_PATH_BYTES or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts):
        return "is too long"
    return None


@dataclass
class Inventory:
    """Everything that an archive declares, checked entry by entry as it is read, before a byte is unpacked.

    Args:
        archive: The archive, for messages and for its length on disk.
        max_total_bytes: Bytes that all files together may declare, or None.
        max_entries: Entries that the archive may have.
        max_ratio: How many times its packed size anything may grow to.
        skip: Says of a path whether it is left out.

    Attributes:
        total_bytes: Declared bytes of the files to unpack.
        disk_bytes: The same in whole disk blocks, folders included.
        num_files: Files to unpack.
    """

    archive: Path
    max_total_bytes: int | None
    max_entries: int
    max_ratio: float
    skip: Callable[[PurePosixPath], bool]
    total_bytes: int = 0
    disk_bytes: int = 0
    num_files: int = 0
    _num_entries: int = 0
    _declared_bytes: int = 0
    _kinds: dict[str, tuple[str, Kind]] = field(default_factory=dict)
    _folders: set[PurePosixPath] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Look up what the ratio is measured against."""
        self._archive_bytes = self.archive.stat().st_size

    def add(self, entry: Entry) -> PurePosixPath | None:
        """Check one entry against the limits and all entries before it.

        Returns:
            Its path, or None when it is to be left out.

        Raises:
            DataError: The archive must not be unpacked.
        """
        path = safe_path(entry.name)
        self._num_entries += 1
        if self._num_entries > self.max_entries:
            raise self._refusal(f"has more than {self.max_entries:,} entries")
        if entry.kind is Kind.OTHER:
            raise self._refusal(f"holds {entry.name!r}, which is a {entry.kind.value}")
        self._check_size(entry)
        if not path.parts:
            if entry.kind is Kind.FILE:
                raise self._refusal(f"holds a file named {entry.name!r}")
            return None
        if self.skip(path):
            return None
        self._check_collisions(path, entry.kind)
        if entry.kind is Kind.FILE:
            self.num_files += 1
            self.total_bytes += entry.size
            self.disk_bytes += -(-entry.size // BLOCK_BYTES) * BLOCK_BYTES
        return path

    def _check_size(self, entry: Entry) -> None:
        """Hold the declared bytes, those of left-out files too, against the limits."""
        if entry.size < 0 or (entry.kind is Kind.FOLDER and entry.size):
            raise self._refusal(f"declares {entry.size} bytes for {entry.name!r}")
        self._declared_bytes += entry.size
        if self.max_total_bytes is not None and self._declared_bytes > self.max_total_bytes:
            raise self._refusal(f"declares more than the {byte_text(self.max_total_bytes)} that it may unpack to")
        for name, size, packed in (
            (f"{entry.name!r} in it", entry.size, entry.packed_size),
            ("it", self._declared_bytes, self._archive_bytes),
        ):
            if packed is not None and size > HARMLESS_BYTES and size > self.max_ratio * packed:
                raise self._refusal(
                    f"is packed too well to be true: {name} grows from {byte_text(packed)} to {byte_text(size)}"
                )

    def _check_collisions(self, path: PurePosixPath, kind: Kind) -> None:
        """Refuse what would fall on one place on disk, on systems too that ignore case or Unicode form."""
        if path.parent not in self._folders:
            for folder in reversed(path.parents[:-1]):
                self._claim(folder, Kind.FOLDER)
            self._folders.add(path.parent)
        self._claim(path, kind)

    def _claim(self, path: PurePosixPath, kind: Kind) -> None:
        name = str(path)
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        first_name, first_kind = self._kinds.setdefault(key, (name, Kind.OTHER))
        if first_kind is Kind.OTHER:
            self._kinds[key] = (name, kind)
            self.disk_bytes += BLOCK_BYTES if kind is Kind.FOLDER else 0
        elif first_name != name:
            raise self._refusal(f"holds {first_name!r} and {name!r}, which are one name where case does not count")
        elif kind is not first_kind:
            raise self._refusal(f"holds {name!r} both as a file and as a folder")
        elif kind is Kind.FILE:
            raise self._refusal(f"holds {name!r} twice")

    def _refusal(self, what: str) -> DataError:
        return DataError(f"{self.archive} {what}.", UNSAFE_HINT)
