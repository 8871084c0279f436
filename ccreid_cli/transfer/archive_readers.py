"""Reading zip and tar archives entry by entry, with a plain message for whatever is wrong with one."""

from __future__ import annotations

import bz2
import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from ccreid_cli.core.errors import DataError
from ccreid_cli.transfer.checks import looks_like_html
from ccreid_cli.transfer.entries import Entry, Kind

# Names and sizes of headers are read at once: no honest one comes near this.
MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_TRAILING_BYTES = 16 * 1024 * 1024
_SNIFFED_BYTES = 1024
_ZIP_LOCAL_HEADER_BYTES = 30
_ZIP_ENCRYPTED = 0x41
# zipfile unpacks the other methods without a bound on memory.
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
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
BY_HAND_HINT = "Unpack it with another program, then use `ccreid data link NAME FOLDER`."


@contextmanager
def damage_explained(archive: Path) -> Iterator[None]:
    """Turn what the archive readers raise into a message.

    Raises:
        DataError: The archive is cut short or damaged.
    """
    try:
        yield
    except _DAMAGE as error:
        raise DataError(
            f"{archive} is cut short or damaged: {error or type(error).__name__}.", "Delete it and fetch it again."
        ) from error


@contextmanager
def open_archive(archive: Path) -> Iterator[Iterator[Entry]]:
    """Open an archive, recognised by its first bytes.

    Args:
        archive: A .zip, .tar, .tar.gz or .tar.bz2 file, whatever it is called.

    Yields:
        Its entries, in the order of the archive. The end of the archive is checked after the last one.

    Raises:
        DataError: It is missing, damaged, encrypted or of a kind that is not read.
    """
    if not archive.is_file():
        raise DataError(f"there is no archive {archive}.", "Check the path.")
    with ExitStack() as stack:
        with damage_explained(archive):
            file = stack.enter_context(archive.open("rb"))
            start = file.read(_SNIFFED_BYTES)
            file.seek(0)
        yield _entries(archive, file, start, stack)


def _entries(archive: Path, file: IO[bytes], start: bytes, stack: ExitStack) -> Iterator[Entry]:
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_entries(archive, file, stack)
    if start.startswith(b"\x1f\x8b"):
        return _tar_entries(archive, cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file))))
    if start.startswith(b"BZh"):
        return _tar_entries(archive, cast(IO[bytes], stack.enter_context(bz2.BZ2File(file))))
    if _is_tar_header(start):
        return _tar_entries(archive, file)
    raise _unknown_format(archive, start)


def _unknown_format(archive: Path, start: bytes) -> DataError:
    if not start:
        return DataError(f"{archive} is empty.", "Delete it and fetch it again.")
    if looks_like_html(start):
        return DataError(f"{archive} is a web page, not an archive.", "Open it in a browser: it may say why.")
    kind = next((name for magic, name in _FOREIGN.items() if start.startswith(magic)), None)
    what = f"is packed as {kind}, which is not read" if kind else "is not an archive"
    return DataError(f"{archive} {what}: it must be .zip, .tar, .tar.gz or .tar.bz2.", BY_HAND_HINT)


def _zip_entries(archive: Path, file: IO[bytes], stack: ExitStack) -> Iterator[Entry]:
    with damage_explained(archive):
        reader = stack.enter_context(zipfile.ZipFile(file))
        _refuse_overlaps(archive, reader)
        for info in reader.infolist():
            if info.flag_bits & _ZIP_ENCRYPTED:
                raise DataError(f"{archive} is encrypted ({info.filename!r} needs a password).", BY_HAND_HINT)
            if info.compress_type not in _ZIP_METHODS:
                raise DataError(f"{archive} is packed by method {info.compress_type}, which is not read.", BY_HAND_HINT)
            # zipfile cuts a name at its first NUL: the name as written tells of the attempt
            name = info.orig_filename if "\0" in info.orig_filename else info.filename
            yield Entry(name, _zip_kind(info), info.file_size, info.compress_size, partial(reader.open, info))


def _zip_kind(info: zipfile.ZipInfo) -> Kind:
    unix_kind = stat.S_IFMT(info.external_attr >> 16)
    if unix_kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return Kind.OTHER
    return Kind.FOLDER if info.is_dir() or unix_kind == stat.S_IFDIR else Kind.FILE


def _refuse_overlaps(archive: Path, reader: zipfile.ZipFile) -> None:
    """Refuse entries that share bytes of the archive, which lets a small one declare any amount."""
    end = 0
    for info in sorted(reader.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise DataError(f"{archive} is made to do harm: its entries overlap.", "Get it again from its authors.")
        end = info.header_offset + _ZIP_LOCAL_HEADER_BYTES + info.compress_size


def _is_tar_header(block: bytes) -> bool:
    """Whether the first 512 bytes are a tar header: its checksum counts its own eight bytes as blanks."""
    if len(block) < tarfile.BLOCKSIZE:
        return False
    try:
        declared = int(block[148:156].strip(b"\0 ") or b"x", 8)
    except ValueError:
        return False
    return declared == sum(block[:148]) + 8 * ord(" ") + sum(block[156 : tarfile.BLOCKSIZE])


class _ForwardStream:
    """The bytes of a tar archive for tarfile, which is kept from reading backwards or anything absurd at once.

    Attributes:
        last_read: What the last read gave: after the last entry it tells the end mark from a cut or a broken header.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.last_read = b""

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        if position < self._file.tell():
            raise tarfile.ReadError("a header points backwards")
        return self._file.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header of absurd length")
        self.last_read = self._file.read(size)
        return self.last_read


class _TarReader(tarfile.TarFile):
    """Names the list that `TarFile` keeps of all it has read, so that it can be emptied: it grows with the archive."""

    members: list[tarfile.TarInfo]


def _tar_entries(archive: Path, file: IO[bytes]) -> Iterator[Entry]:
    with damage_explained(archive):
        stream = _ForwardStream(file)
        reader = _TarReader(fileobj=cast(Any, stream), encoding="utf-8", errors="replace")
        while member := reader.next():
            yield Entry(member.name, _tar_kind(member), _tar_size(member), None, partial(_tar_content, reader, member))
            reader.members.clear()
        if stream.last_read != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("the mark at the end is missing")
        _read_to_end(file)


def _tar_content(reader: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = reader.extractfile(member)
    assert content is not None, "only called for files"
    return content


def _tar_kind(member: tarfile.TarInfo) -> Kind:
    if member.isdir():
        return Kind.FOLDER
    return Kind.FILE if member.isreg() and not member.issparse() else Kind.OTHER


def _tar_size(member: tarfile.TarInfo) -> int:
    return 0 if member.isdir() else member.size  # some writers note a size for folders, which have no content


def _read_to_end(file: IO[bytes]) -> None:
    """Read what follows the end mark, padding as a rule: only then is the checksum of a packed stream looked at."""
    trailing = 0
    while block := file.read(MAX_HEADER_BYTES // 16):
        trailing += len(block)
        if trailing > MAX_TRAILING_BYTES:
            raise tarfile.ReadError("there is more data after the end mark than an honest archive has")
