"""What is in a zip or tar archive: read by zipfile and tarfile, and refused where it could do harm or is damaged."""

from __future__ import annotations

import bz2
import gzip
import os
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

from ccreid_cli.core.errors import DataError
from ccreid_cli.transfer.checks import byte_text, looks_like_html

MAX_ENTRIES = 1_000_000
MAX_RATIO = 200
_HARMLESS_BYTES = 1024 * 1024  # below this many bytes even absurdly well packed content does no harm
_MAX_READ_BYTES = 1024 * 1024  # tarfile reads an extended header at once: no honest one comes near this
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 2048
_SNIFFED_BYTES = 1024
_ZIP_ENCRYPTED = 0x41
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", ".ds_store"})
_FOREIGN = {b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
)
_FETCH_AGAIN = "Delete it and fetch it again."
_BY_HAND = "Unpack it with another program, then use `ccreid data link NAME FOLDER`."
_UNSAFE = "Nothing was unpacked. Such an archive is damaged or made to do harm: get it again from its authors."


@dataclass(frozen=True)
class Entry:
    """A file or folder in an archive.

    Attributes:
        name: Name as written in the archive, with slashes.
        size: Bytes of its content, as declared.
        is_folder: Whether it is a folder.
        open: Opens its content, while the archive is open.
    """

    name: str
    size: int
    is_folder: bool
    open: Callable[[], IO[bytes]]

    @property
    def path(self) -> PurePosixPath:
        """Relative path; empty for the archive's own top."""
        return PurePosixPath(self.name)

    @property
    def is_clutter(self) -> bool:
        """Whether it is what desktop systems leave behind: Thumbs.db, .DS_Store, ``__MACOSX/``, ``._*``."""
        name = self.path.name
        return name.lower() in _CLUTTER or name.startswith("._") or "__MACOSX" in self.path.parts


@contextmanager
def damage_explained(archive: Path) -> Iterator[None]:
    """Turn what zipfile and tarfile raise into a message.

    Raises:
        DataError: The archive is cut short or damaged.
    """
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"{archive} is cut short or damaged: {error or type(error).__name__}.", _FETCH_AGAIN) from error


@contextmanager
def open_archive(archive: Path) -> Iterator[list[Entry]]:
    """Open an archive, recognised by its first bytes, and check all names and sizes in it.

    Args:
        archive: A .zip, .tar, .tar.gz or .tar.bz2 file, whatever it is called.

    Yields:
        Its files and folders without clutter, in the order of the archive.

    Raises:
        DataError: It is missing, damaged, encrypted, of a kind that is not read, or must not be unpacked.
    """
    if not archive.is_file():
        raise DataError(f"there is no archive {archive}.", "Check the path.")
    with ExitStack() as stack:
        with damage_explained(archive):
            file = stack.enter_context(archive.open("rb"))
            entries = _checked(archive, _entries(archive, file, stack))
        yield entries


def _entries(archive: Path, file: IO[bytes], stack: ExitStack) -> Iterator[Entry]:
    start = file.read(_SNIFFED_BYTES)
    file.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_entries(archive, stack.enter_context(zipfile.ZipFile(file)))
    if start.startswith(b"\x1f\x8b"):
        return _tar_entries(archive, cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file))))
    if start.startswith(b"BZh"):
        return _tar_entries(archive, cast(IO[bytes], stack.enter_context(bz2.BZ2File(file))))
    try:
        tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], "utf-8", "replace")
    except tarfile.HeaderError as error:
        raise _unknown_format(archive, start) from error
    return _tar_entries(archive, file)


def _unknown_format(archive: Path, start: bytes) -> DataError:
    if not start:
        return DataError(f"{archive} is empty.", _FETCH_AGAIN)
    if looks_like_html(start):
        return DataError(f"{archive} is a web page, not an archive.", "Open it in a browser: it may say why.")
    kind = next((name for magic, name in _FOREIGN.items() if start.startswith(magic)), None)
    what = f"is packed as {kind}, which is not read" if kind else "is not an archive"
    return DataError(f"{archive} {what}: it must be .zip, .tar, .tar.gz or .tar.bz2.", _BY_HAND)


def _zip_entries(archive: Path, reader: zipfile.ZipFile) -> Iterator[Entry]:
    for info in reader.infolist():
        # As written: zipfile cuts a name at its first NUL. Some programs write Windows' separator.
        name = info.orig_filename.replace("\\", "/")
        if info.flag_bits & _ZIP_ENCRYPTED:
            raise DataError(f"{archive} is encrypted ({name!r} needs a password).", _BY_HAND)
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not written on Unix
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refusal(archive, f"holds {name!r}, which is a link or a special file")
        yield Entry(name, info.file_size, name.endswith("/") or kind == stat.S_IFDIR, partial(reader.open, info))


def _tar_entries(archive: Path, file: IO[bytes]) -> Iterator[Entry]:
    stream = _TarStream(archive, file)
    reader = tarfile.TarFile(fileobj=cast(Any, stream), encoding="utf-8", errors="replace")
    while member := reader.next():
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise _refusal(archive, f"holds {member.name!r}, which is a link or a special file")
        size = 0 if member.isdir() else member.size  # some programs note a size for folders
        yield Entry(member.name, size, member.isdir(), partial(_tar_content, reader, member))
    if stream.last_read != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile takes a cut or a broken header for the end
        raise tarfile.ReadError("the mark at the end is missing")
    while stream.read(_MAX_READ_BYTES):  # to the end, where the checksum of a packed stream is compared
        pass


def _tar_content(reader: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = reader.extractfile(member)
    assert content is not None, "only called for files"
    return content


class _TarStream:
    """The bytes of a tar archive for tarfile, which is kept from reading anything absurd.

    Attributes:
        last_read: What the last read gave: the mark at the end, if all is well, after the last entry.
    """

    def __init__(self, archive: Path, file: IO[bytes]) -> None:
        self._archive = archive
        self._file = file
        self.last_read = b""
        self.tell = file.tell

    def seek(self, position: int) -> int:
        _check_size(self._archive, position)
        return self._file.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise tarfile.ReadError("a header of absurd length")
        self.last_read = self._file.read(size)
        _check_size(self._archive, self._file.tell())
        return self.last_read


def _checked(archive: Path, entries: Iterator[Entry]) -> list[Entry]:
    """Return the entries to unpack. Each is checked before the next one is read.

    Raises:
        DataError: The archive must not be unpacked, or there is nothing to unpack.
    """
    kept: list[Entry] = []
    places: dict[str, tuple[str, bool]] = {}
    total = 0
    for number, entry in enumerate(entries):
        if number == MAX_ENTRIES:
            raise _refusal(archive, f"has more than {MAX_ENTRIES:,} entries")
        if problem := _name_problem(entry.name):
            raise _refusal(archive, f"holds an entry named {entry.name[:200]!r}, which {problem}")
        if entry.size < 0:
            raise _refusal(archive, f"declares {entry.size} bytes for {entry.name!r}")
        total += entry.size
        _check_size(archive, total)
        if entry.path.parts and not entry.is_clutter:
            _check_collisions(archive, entry, places)
            kept.append(entry)
    if all(entry.is_folder for entry in kept):
        raise DataError(f"{archive} holds no files.", _FETCH_AGAIN)
    return kept


def _name_problem(name: str) -> str | None:
    """Say why `name` leads out of the target, or cannot be a file name on every system."""
    windows = PureWindowsPath(name)  # knows slashes, backslashes and drive letters
    if windows.anchor:
        return "is an absolute path"
    if ".." in windows.parts:
        return "leads out of the folder"
    if not name or "\\" in name or _CONTROL.search(name):
        return "is empty, or has a backslash or control characters"
    if len(os.fsencode(name)) > _MAX_PATH_BYTES or any(len(os.fsencode(p)) > _MAX_NAME_BYTES for p in windows.parts):
        return "is too long"
    return None


def _check_size(archive: Path, size: int) -> None:
    """Refuse an archive that unpacks to more bytes than an honest one of its length."""
    packed = archive.stat().st_size
    if size > _HARMLESS_BYTES + MAX_RATIO * packed:
        raise _refusal(
            archive, f"is packed too well to be true: {byte_text(packed)} that unpack to {byte_text(size)} or more"
        )


def _check_collisions(archive: Path, entry: Entry, places: dict[str, tuple[str, bool]]) -> None:
    """Refuse what would fall on one place on disk, on systems too that ignore case or Unicode form.

    Args:
        archive: For the message.
        entry: The entry to add.
        places: Of each name so far, with case and Unicode form taken away: the name as written, and whether it is a
            folder. Those of the entry and of the folders above it are added.
    """
    own = entry.path
    for path in (own, *own.parents[:-1]):
        name, is_folder = str(path), entry.is_folder or path is not own
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        first, was_folder = places.get(key, (name, True))
        if first != name:
            raise _refusal(archive, f"holds {first!r} and {name!r}, which are one name where case does not count")
        if key in places and not (is_folder and was_folder):
            raise _refusal(archive, f"holds {name!r} twice")
        places[key] = (name, is_folder)


def _refusal(archive: Path, what: str) -> DataError:
    return DataError(f"{archive} {what}.", _UNSAFE)
