"""Whether a file is, whole, the one that was asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ccreid_cli.core.errors import DataError


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it arrives.

    Attributes:
        size: Bytes, or None.
        sha256_prefix: First hexadecimal digits of its SHA-256, or None.
        md5: Its MD5, 32 hexadecimal digits, or None.
        check: Called with the path of the whole file; raises `DataError` when its content is no good.
    """

    size: int | None = None
    sha256_prefix: str | None = None
    md5: str | None = None
    check: Callable[[Path], None] | None = None

    @property
    def has_digest(self) -> bool:
        """Whether a published hash decides."""
        return bool(self.sha256_prefix or self.md5)

    def problem(self, path: Path) -> str | None:
        """Say what is wrong with the file at `path`, or return None: it is whole and right."""
        size = path.stat().st_size
        if self.size not in (None, size):
            return f"is {size:,} bytes long instead of {self.size:,}"
        for name, published in (("sha256", self.sha256_prefix), ("md5", self.md5)):
            if published:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, name).hexdigest()
                if not found.startswith(published.lower()):
                    return f"has the {name} {found[: max(8, len(published))]}, the published one is {published.lower()}"
        try:
            if self.check:
                self.check(path)
        except DataError as error:
            return f"does not pass its check: {error.message}"
        return None


def byte_text(count: int) -> str:
    """Return a number of bytes as a person reads it, such as "91.3 MB"."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def looks_like_html(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a web page: a log-in, a captive portal, "file not found"."""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html", b"<head"))
