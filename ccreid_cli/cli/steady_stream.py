"""A stderr whose loss (its reader is gone, its disk is full) ends no work: what cannot be said is not said."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class SteadyStream:
    """A text stream that drops what cannot be written.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if that can be."""
        with suppress(OSError, ValueError):  # a closed stream raises the latter
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what is written, if that can be."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_stderr() -> Iterator[None]:
    """Let stderr be such a stream within the block."""
    stream = sys.stderr
    sys.stderr = cast(TextIO, SteadyStream(stream))
    try:
        yield
    finally:
        sys.stderr = stream
