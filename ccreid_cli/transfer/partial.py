"""A half-downloaded file on disk: the bytes so far and what must be known to go on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.files import sync_folder

PART_SUFFIX = ".part"
STATE_SUFFIX = ".part.json"
KEPT = "What has arrived is kept: the same command goes on from there."


@contextmanager
def disk_errors_explained(path: Path, kept: str = "") -> Iterator[None]:
    """Turn an OSError of the block (a full disk, a folder that is not writable) into a `DataError`.

    Args:
        path: The file that is being written.
        kept: One more sentence for the hint: what was kept, and how to go on.
    """
    try:
        yield
    except OSError as error:
        hint = "Free some space on that disk, or choose a folder on another one that is writable."
        raise DataError(f"could not write {path}: {error.strerror or error}.", f"{hint} {kept}".strip()) from error


@dataclass(frozen=True)
class Origin:
    """Where the bytes of a partial file come from.

    Attributes:
        url: Address, without user name and password.
        etag: Entity tag of the answer, or "".
        last_modified: Date of the answer, or "".
        size: Bytes of the whole file, or None where the server did not say.
    """

    url: str
    etag: str = ""
    last_modified: str = ""
    size: int | None = None

    @property
    def validator(self) -> str:
        """What ``If-Range`` may name: a strong entity tag, else the date, else ""."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class Partial:
    """The file ``<target>.part`` and its description ``<target>.part.json``.

    Whatever moment the process is killed at, the two belong together or the bytes are not used: the bytes are dropped
    before a new description is written, and a description is there before the first byte.

    Args:
        target: Where the whole file is to appear.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + PART_SUFFIX)
        self._state = target.with_name(target.name + STATE_SUFFIX)
        try:
            self.origin: Origin | None = Origin(**json.loads(self._state.read_text("utf-8")))
        except (OSError, ValueError, TypeError):  # none, or not one of ours: the bytes are not used
            self.origin = None

    @property
    def length(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    def resume_headers(self, url: str, has_digest: bool) -> dict[str, str]:
        """Return the header fields that ask `url` for the missing bytes; empty to ask for the whole file.

        Args:
            url: The source, as `shown`.
            has_digest: A published hash decides in the end: bytes from elsewhere, or without validator, will do.
        """
        is_same = self.origin is not None and self.origin.url == url
        validator = self.origin.validator if self.origin and is_same else ""
        if not self.origin or not self.length or not (validator or has_digest):
            return {}
        return {"Range": f"bytes={self.length}-"} | ({"If-Range": validator} if validator else {})

    def restart(self, origin: Origin) -> None:
        """Drop the bytes and begin again with `origin`."""
        with disk_errors_explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            self._state.write_text(json.dumps(asdict(origin), indent=1))
        self.origin = origin

    def discard(self) -> None:
        """Remove the bytes and the description."""
        with disk_errors_explained(self.path):
            self.path.unlink(missing_ok=True)
            self._state.unlink(missing_ok=True)
        self.origin = None

    def publish(self) -> None:
        """Sync the bytes to disk and give the file its final name."""
        with disk_errors_explained(self.path):
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
            self.path.replace(self.target)
        sync_folder(self.target.parent)
        self.discard()
