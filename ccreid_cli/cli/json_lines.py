"""``--progress json``: each line on stderr is one JSON object, whoever writes it.

Each has ``time`` (seconds since 1970) and ``event``: ``message``, ``warning``, ``error`` (with ``hint``) and ``table``
for what is said, ``begin``, ``progress`` and ``end`` for pieces of work. Results go to stdout as without it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TextIO


class JsonStream(io.TextIOBase):
    """Stands for stderr, so that a line which a library writes there becomes an object too.

    Args:
        stream: Where the objects go.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        """Write an object for each line that is complete now."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            self.write_event("message", text=line.rstrip())
        return len(text)

    def write_event(self, event: str, **fields: object) -> None:
        """Write one object."""
        write_event(self.stream, event, **fields)

    def flush(self) -> None:
        """Hand on what is written."""
        self.stream.flush()


def write_event(stream: TextIO, event: str, **fields: object) -> None:
    """Write one object, with the time, as a line."""
    values = {"time": round(time.time(), 3), "event": event, **finite(fields)}
    stream.write(json.dumps(values, default=str) + "\n")
    stream.flush()


def finite(value: Any) -> Any:
    """Return `value` with None for numbers, at any depth, that JSON has no name for."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def is_asked_for(words: Sequence[str]) -> bool:
    """Tell whether a command line asks for JSON lines: to be known before it is parsed, since that may fail."""
    return "--progress=json" in words or ("--progress", "json") in pairwise(words)


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Turn all that is written to stderr within the block into objects."""
    stream, sys.stderr = sys.stderr, JsonStream(sys.stderr)
    try:
        yield
    finally:
        sys.stderr.write("\n")  # ends a line that was left open
        sys.stderr = stream
