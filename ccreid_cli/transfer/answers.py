"""What a server's answer means for a file of which a part may have arrived."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ccreid_cli.transfer.checks import Expected
from ccreid_cli.transfer.http import RETRIED_STATUS, Answer, RangeUnusable, SourceFailed, TryAgain
from ccreid_cli.transfer.partial import Origin, Partial


@dataclass(frozen=True)
class Body:
    """Where the bytes of an answer belong.

    Attributes:
        offset: Position in the file of the first byte that comes.
        length: Bytes that must come, or None where only the end of the body tells.
        origin: What to write down about the file.
    """

    offset: int
    length: int | None
    origin: Origin


def body_of(answer: Answer, url: str, partial: Partial, offset: int, expected: Expected) -> Body:
    """Judge the head of an answer before anything on disk changes.

    Args:
        answer: What the server said.
        url: The source that was asked.
        partial: What has arrived so far.
        offset: The position that the missing bytes were asked from; 0 where the whole file was.
        expected: What is known of the file.

    Raises:
        SourceFailed: This source has no such file.
        TryAgain: The server is busy or broken for now.
        RangeUnusable: The whole file must be asked for.
    """
    if answer.status == 200:
        return _whole_file(answer, url, partial, expected)
    if answer.status == 206 and offset:
        return _missing_bytes(answer, url, partial, offset, expected)
    if answer.status == 416 and offset:
        return _nothing_missing(answer, partial, offset)
    if answer.status in RETRIED_STATUS:
        raise TryAgain(f"answered {answer.status_text}", answer.retry_after)
    raise SourceFailed(f"answered {answer.status_text}")


def _whole_file(answer: Answer, url: str, partial: Partial, expected: Expected) -> Body:
    _refuse_encoding(answer, partial)
    declared = answer.body_bytes
    if declared == 0:
        raise SourceFailed("sent an empty file")
    _compare_size(declared, expected)
    if declared is None and not answer.is_chunked and not expected.can_tell:
        raise SourceFailed("does not say how long the file is, so a cut one could not be told from a whole one")
    size = declared if declared is not None else expected.size
    return Body(0, size, Origin.of(url, answer, size))


def _missing_bytes(answer: Answer, url: str, partial: Partial, offset: int, expected: Expected) -> Body:
    assert partial.origin is not None, "a range is only asked for a described part"
    known, bounds = partial.origin, answer.content_range
    if bounds is None or answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RangeUnusable("answered 206 without a usable Content-Range")
    first, last, total = bounds
    size = total if total is not None else known.size
    if size is None or first != offset or not first <= last < size:
        raise RangeUnusable(f"was asked for the bytes from {offset} and sent {answer.headers['Content-Range']!r}")
    _compare_size(size, expected)
    origin = Origin.of(url, answer, size)
    changed = origin.url == known.url and known.contradicts(origin)
    if changed or (known.size is not None and size != known.size):
        raise RangeUnusable("has a different file now")
    if answer.body_bytes not in (None, last - first + 1):
        raise RangeUnusable(f"announced {answer.body_bytes} bytes for a range of {last - first + 1}")
    return Body(offset, last - first + 1, origin)


def _nothing_missing(answer: Answer, partial: Partial, offset: int) -> Body:
    """Judge "416 Range Not Satisfiable": right when every byte is here already, which only the total can tell."""
    assert partial.origin is not None, "a range is only asked for a described part"
    total = re.fullmatch(r"bytes \*/(\d{1,18})", answer.headers.get("Content-Range", "").strip(), re.ASCII)
    if total and int(total[1]) == offset and partial.origin.size in (None, offset):
        origin = partial.origin
        return Body(offset, 0, Origin(origin.url, origin.etag, origin.last_modified, offset))
    raise RangeUnusable(f"answered {answer.status_text}")


def _compare_size(size: int | None, expected: Expected) -> None:
    if size is not None and expected.size is not None and size != expected.size:
        raise SourceFailed(f"has a file of {size:,} bytes instead of {expected.size:,}")


def _refuse_encoding(answer: Answer, partial: Partial) -> None:
    """Refuse a body that was compressed for the way, which was not asked for and has neither length nor ranges.

    Some servers say so of every gzip file that they hold: then the body is the file.
    """
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    is_gzip_file = partial.target.suffix.lower() in (".gz", ".tgz") and encoding in ("gzip", "x-gzip")
    if encoding not in ("", "identity") and not is_gzip_file:
        raise SourceFailed(f'sent the file as "Content-Encoding: {encoding[:40]}", which was not asked for')
