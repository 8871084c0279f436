"""A half-downloaded file on disk: the bytes so far and what must be known to go on from there."""

from __future__ import annotations

import errno
import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.files import atomic_write_text, sync_folder
from ccreid_cli.transfer.http import Answer, shown

PART_SUFFIX = ".part"
STATE_SUFFIX = ".part.json"
KEPT = "What has arrived is kept: the same command goes on from there."


@contextmanager
def disk_errors_explained(path: Path, kept: str = "") -> Iterator[None]:
    """Turn what the file system refuses into a message.

    Args:
        path: The file that is being written.
        kept: One more sentence for the hint: what was kept, and how to go on.

    Raises:
        DataError: The disk is full, or the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "Free some space on that disk, or choose a folder on another one."
        else:
            hint = "The folder must exist on a disk that takes a file of this size, and be writable."
        raise DataError(f"could not write {path}: {error.strerror or error}.", f"{hint} {kept}".strip()) from error


@dataclass(frozen=True)
class Origin:
    """Where the bytes of a partial file come from.

    Attributes:
        url: Address, without user name and password.
        etag: Entity tag of the answer, or "".
        last_modified: Date of the answer, or "".
        size: Bytes of the whole file, or None while the server has not said.
    """

    url: str
    etag: str = ""
    last_modified: str = ""
    size: int | None = None

    @classmethod
    def of(cls, url: str, answer: Answer, size: int | None) -> Origin:
        """Return the origin that `answer` to a request for `url` tells of."""
        headers = answer.headers
        return cls(shown(url), headers.get("ETag", ""), headers.get("Last-Modified", ""), size)

    @property
    def validator(self) -> str:
        """What ``If-Range`` may name: a strong entity tag, else the date, else ""."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def contradicts(self, other: Origin) -> bool:
        """Whether both name a validator of the same kind and the two differ, so that the file was changed."""
        if self.etag and other.etag:
            return self.etag != other.etag
        return bool(self.last_modified and other.last_modified and self.last_modified != other.last_modified)


class Partial:
    """The file ``<target>.part`` and its description ``<target>.part.json``.

    Whatever moment the process is killed at, the two either belong together or the bytes are not used: the bytes are
    dropped before a new description is written, and a description is there before the first byte.

    Args:
        target: Where the whole file is to appear.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + PART_SUFFIX)
        self.state_path = target.with_name(target.name + STATE_SUFFIX)
        self.origin = self._read_origin()
        if self.origin is None or (self.origin.size is not None and self.length > self.origin.size):
            self.origin = None

    @property
    def length(self) -> int:
        """Bytes that have arrived."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def fits(self, url: str, any_source: bool) -> bool:
        """Whether the bytes may be gone on with from `url`.

        Args:
            url: The source to go on with.
            any_source: A published hash decides in the end, so bytes of another source will do.
        """
        return self.origin is not None and (any_source or self.origin.url == shown(url))

    def resume_headers(self, url: str, any_source: bool) -> dict[str, str]:
        """Return the header fields that ask for the missing bytes; empty where the whole file must be asked for."""
        if self.origin is None or not self.length or not self.fits(url, any_source):
            return {}
        same_url, validator = self.origin.url == shown(url), self.origin.validator
        if not any_source and not validator:
            return {}
        condition = {"If-Range": validator} if same_url and validator else {}
        return {"Range": f"bytes={self.length}-", **condition}

    def is_complete(self, url: str, any_source: bool) -> bool:
        """Whether every byte has arrived (they are still to be checked)."""
        return self.fits(url, any_source) and self.origin is not None and self.origin.size == self.length > 0

    def restart(self, origin: Origin) -> None:
        """Drop the bytes and begin again with `origin`."""
        with disk_errors_explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("wb"):
                pass
        self.describe(origin)

    def describe(self, origin: Origin) -> None:
        """Write down where the bytes come from."""
        atomic_write_text(self.state_path, json.dumps(asdict(origin), indent=1))
        self.origin = origin

    def settle_size(self) -> None:
        """Take the length on disk for the size of the whole file: the body has marked its own end."""
        assert self.origin is not None, "restart() comes first"
        self.describe(replace(self.origin, size=self.length))

    def writer(self) -> PartWriter:
        """Return a context manager that appends to the file."""
        return PartWriter(self.path)

    def discard(self) -> None:
        """Remove both files."""
        with disk_errors_explained(self.path):
            self.path.unlink(missing_ok=True)
            self._remove_state()
        self.origin = None

    def publish(self) -> None:
        """Sync the bytes to disk and give the file its final name."""
        with disk_errors_explained(self.target):
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
            self.path.replace(self.target)
            self._remove_state()
        sync_folder(self.target.parent)

    def _remove_state(self) -> None:
        """Remove the description, and what a process killed while writing it left; the lock is held."""
        for path in (self.state_path, *self.state_path.parent.glob(f".{glob.escape(self.state_path.name)}.*.tmp")):
            path.unlink(missing_ok=True)

    def _read_origin(self) -> Origin | None:
        """Return the written description, or None where there is none that can be trusted."""
        try:
            fields = json.loads(self.state_path.read_text("utf-8"))
            origin = Origin(**fields)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        texts_fit = all(isinstance(text, str) for text in (origin.url, origin.etag, origin.last_modified))
        size_fits = origin.size is None or (type(origin.size) is int and origin.size > 0)
        return origin if texts_fit and size_fits else None


class PartWriter:
    """Appends to a partial file without a buffer, so that a kill loses nothing that has arrived."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> PartWriter:
        """Open the file."""
        with disk_errors_explained(self._path, KEPT):
            self._file = self._path.open("ab", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        with disk_errors_explained(self._path, KEPT):
            self._file.close()

    def write(self, data: bytes) -> None:
        """Append all of `data`.

        Raises:
            DataError: The disk is full or fails; what was written stays.
        """
        view = memoryview(data)
        with disk_errors_explained(self._path, KEPT):
            while view:
                view = view[self._file.write(view) :]
