"""Whether a file is, whole, the one that was asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter

READ_BYTES = 1024 * 1024
_HTML_START = re.compile(
    rb"\s*(<!--.{0,400}?-->\s*)?<(!doctype\s+html|html|head|body|script|title|meta)\b", re.I | re.S
)


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it arrives.

    Attributes:
        size: Bytes, or None.
        sha256_prefix: First hexadecimal digits (6 or more, up to all 64) of its SHA-256, or None.
        md5: Its MD5, 32 hexadecimal digits, or None.
        check: Called with the path of the whole file; raises `DataError` when its content is no good.
    """

    size: int | None = None
    sha256_prefix: str | None = None
    md5: str | None = None
    check: Callable[[Path], None] | None = None

    def __post_init__(self) -> None:
        """Refuse digests that could never match: they are a mistake of the caller."""
        for name, digest, lengths in (("sha256_prefix", self.sha256_prefix, "6,64"), ("md5", self.md5, "32")):
            if digest is not None and not re.fullmatch(rf"[0-9a-fA-F]{{{lengths}}}", digest):
                raise ValueError(f"{name} is not {lengths} hexadecimal digits: {digest!r}")

    @property
    def has_digest(self) -> bool:
        """Whether a published hash decides."""
        return self.sha256_prefix is not None or self.md5 is not None

    @property
    def can_tell(self) -> bool:
        """Whether a file cut short would be noticed without the server's word on its length."""
        return self.has_digest or self.size is not None or self.check is not None

    def problem(self, path: Path, reporter: Reporter) -> str | None:
        """Say what is wrong with the file at `path`, or return None: it is whole and right.

        Args:
            path: The file, whatever it is called for now.
            reporter: Shows the progress of reading it.
        """
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"is {size:,} bytes long instead of {self.size:,}"
        return self._digest_problem(path, size, reporter) or self._content_problem(path)

    def _digest_problem(self, path: Path, size: int, reporter: Reporter) -> str | None:
        wanted = {"sha256": self.sha256_prefix, "md5": self.md5}
        hashes = {name: hashlib.new(name, usedforsecurity=False) for name, digest in wanted.items() if digest}
        if not hashes:
            return None
        with path.open("rb") as file, reporter.task(f"checking {path.name}", size, unit="B") as task:
            while block := file.read(READ_BYTES):
                for digest in hashes.values():
                    digest.update(block)
                task.advance(len(block))
        for name, digest in hashes.items():
            published, found = str(wanted[name]).lower(), digest.hexdigest()
            if not found.startswith(published):
                return f"has the {name} {found[: max(8, len(published))]}, the published one is {published}"
        return None

    def _content_problem(self, path: Path) -> str | None:
        if self.check is None:
            return None
        try:
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
    return _HTML_START.match(start.removeprefix(b"\xef\xbb\xbf")) is not None
