"""Downloads from servers that behave and, mostly, from those that do not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from bad_server import MODIFIED, Behaviour, Request, drip, good, in_turn, redirect, serving, status

from ccreid_cli.core.errors import DataError, NetworkError, UsageError
from ccreid_cli.transfer import download as download_module
from ccreid_cli.transfer.download import download

from .conftest import Listener

HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def fetch(urls: str | list[str], target: Path, **options: Any) -> Path:
    """`download` in a hurry."""
    options = {"retries": 2, "timeout": 5.0, "backoff": 0.01, **options}
    return download([urls] if isinstance(urls, str) else urls, target, **options)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def leave_part(
    target: Path,
    data: bytes,
    url: str,
    *,
    etag: str = '"v1"',
    last_modified: str = MODIFIED,
    size: int | None = 200_000,
) -> None:
    """Leave behind what a killed download leaves."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name("file.bin.part").write_bytes(data)
    state = {"url": url, "etag": etag, "last_modified": last_modified, "size": size}
    target.with_name("file.bin.part.json").write_text(json.dumps(state))


def assert_whole(target: Path, data: bytes) -> None:
    """The file is right, and nothing else lies about."""
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


# ---------------------------------------------------------------------------------------------------------------------
# Servers that misbehave, but from which the file can be had in the end. Each is met with nothing on disk and with a
# part of the file on disk.


def cut_head(request: Request) -> None:
    request.raw(b"HTTP/1.1 200 OK\r\nContent-Le")


def silence(request: Request) -> None:
    """Close without a word."""


def not_http(request: Request) -> None:
    request.raw(b"SSH-2.0-OpenSSH_9.6\r\n")


def reset_midway(data: bytes) -> Behaviour:
    def answer(request: Request) -> None:
        request.head(200, Content_Length=len(data), ETag='"v1"')
        request.body(data[:70_000])
        time.sleep(0.05)
        request.reset()

    return answer


def stall(data: bytes) -> Behaviour:
    def answer(request: Request) -> None:
        request.head(200, Content_Length=len(data), ETag='"v1"')
        request.body(data[:60_000])
        time.sleep(3)

    return answer


def drip_body(data: bytes) -> Behaviour:
    def answer(request: Request) -> None:
        request.head(200, Content_Length=len(data), ETag='"v1"')
        request.body(data[:60_000])
        drip(request, data[60_000:60_200])

    return answer


def drip_head(request: Request) -> None:
    drip(request, b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100)


def drip_chunk_size(data: bytes) -> Behaviour:
    def answer(request: Request) -> None:
        request.head(200, Transfer_Encoding="chunked", ETag='"v1"')
        request.chunked(data[:60_000], end=False)
        drip(request, b"10;" + b"x" * 100)

    return answer


def without_ranges(data: bytes) -> Behaviour:
    def answer(request: Request) -> None:
        request.head(200, Content_Length=len(data))
        request.body(data)

    return answer


def partial_answer(data: bytes, shift: int = 0, **changes: object) -> Behaviour:
    """206 with wrong header fields to a request for a range; right otherwise."""

    def answer(request: Request) -> None:
        start = request.range_start
        if start is None:
            return good(data)(request)
        head = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}", "ETag": '"v1"', **changes}
        request.head(206, **{name: value for name, value in head.items() if value is not None})
        request.body(data[start + shift :])

    return answer


def changed_ignoring_if_range(data: bytes) -> Behaviour:
    return partial_answer(data, ETag='"v2"')


def small_slices(data: bytes) -> Behaviour:
    """Never more than 30,000 bytes at once."""

    def answer(request: Request) -> None:
        start = request.range_start
        if start is None:
            return good(data, stop=30_000)(request)
        end = min(start + 30_000, len(data))
        request.head(206, Content_Range=f"bytes {start}-{end - 1}/{len(data)}", Content_Length=end - start, ETag='"v1"')
        request.body(data[start:end])

    return answer


def longer_than_its_range(data: bytes) -> Behaviour:
    def answer(request: Request) -> None:
        start = request.range_start
        if start is None:
            return good(data)(request)
        request.head(206, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}", Transfer_Encoding="chunked")
        request.chunked(data[start:] + b"and more")

    return answer


def chunked(data: bytes, cut: int | None = None) -> Behaviour:
    def answer(request: Request) -> None:
        request.head(200, Transfer_Encoding="chunked", ETag='"v1"')
        request.chunked(data[:cut], end=cut is None)

    return answer


def only_if(condition: Callable[[Request], bool], yes: Behaviour, no: Behaviour) -> Behaviour:
    return lambda request: (yes if condition(request) else no)(request)


SURVIVED: dict[str, Callable[[bytes], Behaviour]] = {
    "cut after 1 byte": lambda data: in_turn(good(data, stop=1), good(data)),
    "cut after a few bytes, then in the middle": lambda data: in_turn(
        good(data, stop=100), good(data, stop=90_000), good(data)
    ),
    "cut before the last byte": lambda data: in_turn(good(data, stop=len(data) - 1), good(data)),
    "cut every 5000 bytes": lambda data: good(data, stop=5000),
    "cut, no ranges the next time": lambda data: in_turn(good(data, stop=150_000), without_ranges(data)),
    "connection reset": lambda data: in_turn(reset_midway(data), good(data)),
    "cut in the head": lambda data: in_turn(cut_head, good(data)),
    "closes without an answer": lambda data: in_turn(silence, silence, good(data)),
    "speaks something else first": lambda data: in_turn(not_http, good(data)),
    "stalls": lambda data: in_turn(stall(data), good(data)),
    "drips the body": lambda data: in_turn(drip_body(data), good(data)),
    "drips the head": lambda data: in_turn(drip_head, good(data)),
    "drips a chunk's length": lambda data: in_turn(drip_chunk_size(data), good(data)),
    "200 instead of 206": without_ranges,
    "changed file": lambda data: good(data, etag='"v2"'),
    "changed file, ignores If-Range": changed_ignoring_if_range,
    "no validators": lambda data: good(data, etag=""),
    "weak ETag": lambda data: good(data, etag='W/"v1"'),
    "wrong start of the range": lambda data: partial_answer(
        data, 5, Content_Range=f"bytes 5-{len(data) - 1}/{len(data)}"
    ),
    "wrong total of the range": lambda data: partial_answer(
        data, Content_Range=f"bytes 100000-{len(data)}/{len(data) + 1}"
    ),
    "end of the range before its start": lambda data: partial_answer(data, Content_Range=f"bytes 100000-5/{len(data)}"),
    "garbage for a range": lambda data: partial_answer(data, Content_Range="bytes all of it"),
    "no Content-Range": lambda data: partial_answer(data, Content_Range=None),
    "range of unknown total": lambda data: partial_answer(data, Content_Range=f"bytes 100000-{len(data) - 1}/*"),
    "range and length disagree": lambda data: partial_answer(data, Content_Length=7),
    "range in an encoding": lambda data: partial_answer(data, Content_Encoding="gzip"),
    "several ranges": lambda data: partial_answer(
        data, Content_Range=None, Content_Type="multipart/byteranges; boundary=x"
    ),
    "more than the range": longer_than_its_range,
    "only small slices": small_slices,
    "416 for a range that exists": lambda data: only_if(
        lambda request: request.range_start is not None, status(416, Content_Range="bytes */5"), good(data)
    ),
    "416 without a total": lambda data: only_if(
        lambda request: request.range_start is not None, status(416), good(data)
    ),
    "500 twice": lambda data: in_turn(status(500), status(500), good(data)),
    "502 and 503 around a cut": lambda data: in_turn(status(502), good(data, stop=120_000), status(503), good(data)),
    "408": lambda data: in_turn(status(408), good(data)),
    "429 with Retry-After 0": lambda data: in_turn(status(429, Retry_After=0), good(data)),
    "503 with a Retry-After in the past": lambda data: in_turn(
        status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), good(data)
    ),
    "503 with a senseless Retry-After": lambda data: in_turn(status(503, Retry_After="soon"), good(data)),
    "chunked": chunked,
    "chunked, cut": lambda data: in_turn(chunked(data, 99_000), good(data)),
    "chunked, cut, no ranges": lambda data: in_turn(chunked(data, 99_000), chunked(data)),
    "wrong bytes the first time": lambda data: in_turn(good(bytes(len(data))), good(data)),
    "relative redirect": lambda data: only_if(
        lambda request: request.path == "/file.bin", redirect("/x/y"), good(data)
    ),
    "nine redirects": lambda data: only_if(
        lambda request: request.number % 10 < 9, redirect(lambda number: f"/{number}"), good(data)
    ),
    "calls itself a web page": lambda data: (
        lambda request: (
            request.head(200, Content_Length=len(data), Content_Type="text/html"),
            request.body(data),
        )
    ),
}


@pytest.mark.parametrize("start", ["from nothing", "from a part"])
@pytest.mark.parametrize("name", SURVIVED)
def test_the_file_arrives_in_the_end(name: str, start: str, payload: bytes, target: Path) -> None:
    with serving(SURVIVED[name](payload)) as server:
        if start == "from a part":
            leave_part(target, payload[:100_000], server.url())
        patience = 0.4 if "drips" in name or "stalls" in name else 5.0
        fetch(server.url(), target, sha256_prefix=sha256(payload)[:8], timeout=patience)
    assert_whole(target, payload)


# ---------------------------------------------------------------------------------------------------------------------
# Servers from which the file cannot be had: a clear error, and what was on disk is not spoilt.


def endless(request: Request) -> None:
    request.head(302, Location="/again", Transfer_Encoding="chunked")
    while True:
        request.raw(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def always_longer_than_it_is(data: bytes) -> Behaviour:
    def answer(request: Request) -> None:
        if request.range_start is None:
            request.head(200, Content_Length=len(data) + 5)
            request.body(data)
        else:
            request.head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)

    return answer


def with_head(body: bytes, **headers: object) -> Behaviour:
    def answer(request: Request) -> None:
        request.head(200, **headers)
        request.body(body)

    return answer


FATAL: dict[str, tuple[Callable[[bytes], Behaviour], str]] = {
    "400": (lambda data: status(400), "400 Bad Request"),
    "401": (lambda data: status(401), "401 Unauthorized"),
    "403": (lambda data: status(403), "403 Forbidden"),
    "404": (lambda data: status(404), "404 Not Found"),
    "410": (lambda data: status(410), "410 Gone"),
    "always 429": (lambda data: status(429, Retry_After=0), r"429 Too Many Requests \(3 times\)"),
    "always 500": (lambda data: status(500), r"500 Internal Server Error \(3 times\)"),
    "always 503": (lambda data: status(503), r"503 Service Unavailable \(3 times\)"),
    "unknown status": (lambda data: status(799), "799"),
    "204": (lambda data: lambda request: request.head(204), "204 No Content"),
    "304": (lambda data: lambda request: request.head(304), "304 Not Modified"),
    "206 to a request for all": (
        lambda data: (
            lambda request: (
                request.head(206, Content_Range="bytes 0-4/5", Content_Length=5)
                if request.range_start is None
                else request.head(416, Content_Length=0)
            )
        ),
        "206 Partial Content",
    ),
    "redirect to itself": (lambda data: redirect("/file.bin"), "redirects more than 10 times"),
    "ever new redirects": (lambda data: redirect(lambda number: f"/{number}"), "redirects more than 10 times"),
    "redirect with an endless body": (lambda data: endless, "redirects more than 10 times"),
    "redirect to file:": (lambda data: redirect("file:///etc/passwd"), "redirects to 'file:///etc/passwd'"),
    "redirect to ftp:": (lambda data: redirect("ftp://127.0.0.1/x"), 'starts with "ftp:"'),
    "redirect to no host": (lambda data: redirect("https:///x"), "names no host"),
    "redirect to nonsense": (lambda data: redirect("http://[::1"), "is not a valid address"),
    "redirect to a closed port": (lambda data: redirect("http://127.0.0.1:1/"), "could not be reached"),
    "web page": (lambda data: with_head(HTML, Content_Length=len(HTML)), "sent a web page"),
    "web page of a kind": (
        lambda data: with_head(b"<svg>" * 20, Content_Length=100, Content_Type="text/html; charset=utf-8"),
        "sent a web page",
    ),
    "empty": (lambda data: with_head(b"", Content_Length=0), "empty file"),
    "gzip-encoded": (
        lambda data: with_head(data, Content_Length=len(data), Content_Encoding="gzip"),
        "Content-Encoding",
    ),
    "length not a number": (lambda data: with_head(data, Content_Length="many"), "not a length"),
    "negative length": (lambda data: with_head(data, Content_Length=-5), "not a length"),
    "longer in words than in deeds": (always_longer_than_it_is, r"the connection was cut.*\(\d times\)"),
    "shorter than it is": (lambda data: with_head(data, Content_Length=1000), "has the sha256 "),
    "always other bytes": (lambda data: good(bytes(len(data)), etag='"x"'), "has the sha256 "),
    "always cut at the same place": (
        lambda data: with_head(data[:500], Content_Length=len(data)),
        "connection was cut",
    ),
    "never answers": (lambda data: lambda request: time.sleep(5), r"did not answer.*\(3 times\)"),
    "no end, no length": (lambda data: with_head(data[:5000]), "has the sha256 "),
}


@pytest.mark.parametrize("start", ["from nothing", "from a part"])
@pytest.mark.parametrize("name", FATAL)
def test_a_clear_error_and_nothing_spoilt(name: str, start: str, payload: bytes, target: Path) -> None:
    make, reason = FATAL[name]
    with serving(make(payload)) as server:
        if start == "from a part":
            leave_part(target, payload[:100_000], server.url())
        with pytest.raises(NetworkError) as caught:
            fetch(server.url(), target, sha256_prefix=sha256(payload), timeout=0.2 if "never" in name else 5.0)
        assert len(server.requests) < 40
    assert re.search(reason, caught.value.message)
    assert server.url() in caught.value.message and "file.bin" in caught.value.message
    assert "--archive FILE" in str(caught.value.hint)
    assert not target.exists()
    # whatever part is left, a server that behaves gets the file whole
    with serving(good(payload)) as server:
        fetch(server.url(), target, sha256_prefix=sha256(payload))
    assert_whole(target, payload)


@pytest.mark.parametrize(
    "behaviour", [status(404), status(503), redirect("file:///x"), with_head(HTML, Content_Length=len(HTML)), silence]
)
def test_an_answer_without_the_file_costs_no_byte_that_has_arrived(
    behaviour: Behaviour, payload: bytes, target: Path
) -> None:
    with serving(in_turn(behaviour, behaviour, behaviour, good(payload))) as server:
        leave_part(target, payload[:150_000], server.url())
        with pytest.raises(NetworkError):
            fetch(server.url(), target)
        assert part_of(target).read_bytes() == payload[:150_000]
        server.behaviour = good(payload)
        fetch(server.url(), target)
        assert server.sent_bytes - (len(HTML) if server.sent_bytes > 50_000 else 0) == 50_000
    assert_whole(target, payload)


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


def test_only_the_missing_bytes_are_sent(payload: bytes, target: Path) -> None:
    with serving(good(payload)) as server:
        leave_part(target, payload[:123_456], server.url())
        fetch(server.url(), target)
        assert server.sent_bytes == len(payload) - 123_456
        assert server.range_starts == [123_456]
        assert server.requests[0].headers["if-range"] == '"v1"'
        assert server.requests[0].headers["accept-encoding"] == "identity"
    assert_whole(target, payload)


def test_a_date_serves_as_validator_where_there_is_no_strong_tag(payload: bytes, target: Path) -> None:
    with serving(good(payload, etag="")) as server:
        leave_part(target, payload[:1000], server.url(), etag='W/"weak"')
        fetch(server.url(), target)
        assert server.requests[0].headers["if-range"] == MODIFIED
        assert server.sent_bytes == len(payload) - 1000


def test_without_validator_or_hash_it_starts_over(payload: bytes, target: Path) -> None:
    with serving(good(payload)) as server:
        leave_part(target, bytes(1000), server.url(), etag="", last_modified="")
        fetch(server.url(), target)
        assert server.range_starts == [None]
    assert_whole(target, payload)


def test_a_changed_file_is_not_glued_to_the_old_one(payload: bytes, target: Path) -> None:
    changed = payload[::-1]
    for behaviour in (good(changed, etag='"v2"'), changed_ignoring_if_range(changed)):
        with serving(behaviour) as server:
            leave_part(target, payload[:100_000], server.url())
            fetch(server.url(), target)  # no hash: only the tags tell
        assert_whole(target, changed)
        target.unlink()


def test_a_complete_part_needs_no_network(payload: bytes, target: Path) -> None:
    leave_part(target, payload, "http://127.0.0.1:1/file.bin")
    fetch("http://127.0.0.1:1/file.bin", target, md5=hashlib.md5(payload).hexdigest())
    assert_whole(target, payload)


def test_416_tells_that_nothing_is_missing(payload: bytes, target: Path) -> None:
    with serving(good(payload)) as server:
        leave_part(target, payload, server.url(), size=None)
        fetch(server.url(), target)
        assert server.sent_bytes == 0
    assert_whole(target, payload)


def test_a_damaged_part_is_found_out_by_the_hash(payload: bytes, target: Path, listener: Listener) -> None:
    with serving(good(payload)) as server:
        leave_part(target, bytes(100_000), server.url())
        fetch(server.url(), target, sha256_prefix=sha256(payload)[:8], reporter=listener)
        assert server.range_starts == [100_000, None]
    assert "has the sha256" in listener.text
    assert_whole(target, payload)


@pytest.mark.parametrize(
    "state",
    ["", "{", "[]", "null", '{"url": 5}', '{"url": "u", "size": "x"}', '{"url": "u", "more": 1}', "[" * 5000, "\xff"],
)
def test_a_part_without_a_readable_description_is_not_used(state: str, payload: bytes, target: Path) -> None:
    with serving(good(payload)) as server:
        leave_part(target, bytes(100_000), server.url())
        target.with_name("file.bin.part.json").write_bytes(state.encode("latin-1"))
        fetch(server.url(), target)
        assert server.range_starts == [None]
    assert_whole(target, payload)


def test_a_part_longer_than_the_file_is_not_used(payload: bytes, target: Path) -> None:
    with serving(good(payload)) as server:
        leave_part(target, bytes(300_000), server.url())
        fetch(server.url(), target)
    assert_whole(target, payload)


def test_a_flaky_line_may_be_cut_more_often_than_there_are_retries(payload: bytes, target: Path) -> None:
    with serving(good(payload, stop=9_000)) as server:
        fetch(server.url(), target, retries=1)
        assert len(server.requests) == 23
        assert server.sent_bytes == len(payload)
    assert_whole(target, payload)


def test_progress_is_shown_for_what_is_missing(payload: bytes, target: Path, listener: Listener) -> None:
    with serving(good(payload)) as server:
        leave_part(target, payload[:150_000], server.url())
        fetch(server.url(), target, reporter=listener, md5=hashlib.md5(payload).hexdigest())
    assert listener.tasks[0] == ["downloading file.bin (from 75 %)", 50_000, "B", 50_000]
    assert listener.tasks[1] == ["checking file.bin.part", 200_000, "B", 200_000]


# ---------------------------------------------------------------------------------------------------------------------
# Several sources


def test_the_next_source_takes_over(payload: bytes, target: Path) -> None:
    with serving(status(404)) as dead, serving(good(bytes(10))) as wrong, serving(good(payload)) as right:
        fetch([dead.url(), wrong.url(), right.url()], target, expected_size=len(payload))
        assert [len(server.requests) for server in (dead, wrong, right)] == [1, 1, 1]
        assert wrong.sent_bytes <= 10
    assert_whole(target, payload)


def test_the_next_source_goes_on_where_a_hash_decides(payload: bytes, target: Path) -> None:
    first_only = in_turn(good(payload, stop=80_000), status(404))
    with serving(first_only) as first, serving(good(payload, etag='"other"')) as second:
        fetch([first.url(), second.url()], target, sha256_prefix=sha256(payload)[:8])
        assert second.range_starts == [80_000]
        assert first.sent_bytes + second.sent_bytes == len(payload)
    assert_whole(target, payload)


def test_the_next_source_starts_over_where_no_hash_decides(payload: bytes, target: Path) -> None:
    other = payload[::-1]
    with serving(in_turn(good(payload, stop=80_000), status(404))) as first, serving(good(other)) as second:
        fetch([first.url(), second.url()], target)
        assert second.range_starts == [None]
    assert_whole(target, other)


def test_the_source_of_the_part_goes_first(payload: bytes, target: Path) -> None:
    with serving(good(payload)) as first, serving(good(payload)) as second:
        leave_part(target, payload[:100_000], second.url())
        fetch([first.url(), second.url()], target)
        assert (len(first.requests), second.sent_bytes) == (0, 100_000)
    assert_whole(target, payload)


def test_the_error_lists_every_source_without_passwords(payload: bytes, target: Path) -> None:
    with serving(status(404)) as first, serving(good(payload)) as second:
        login = second.url().replace("http://", "http://me:secret@")
        with pytest.raises(NetworkError) as caught:
            fetch([first.url(), login], target, md5="0" * 32)
    assert f"{first.url()} answered 404 Not Found" in caught.value.message
    assert f"{second.url()} gave a file that has the md5" in caught.value.message
    assert "secret" not in caught.value.message
    assert list(target.parent.iterdir()) == []


def test_the_description_keeps_no_password(payload: bytes, target: Path) -> None:
    with serving(good(payload, stop=10)) as server:
        with pytest.raises(NetworkError):
            fetch(server.url().replace("http://", "http://me:secret@"), target, retries=0)
        assert server.requests[0].headers["authorization"].startswith("Basic ")
    assert "secret" not in target.with_name("file.bin.part.json").read_text()


def test_no_source_at_all(target: Path) -> None:
    with pytest.raises(NetworkError, match="no source is known"):
        fetch([], target)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "/local/file", "http:///x", "http://[bad", "", "//h/x"]
)
def test_only_http_and_https(url: str, target: Path) -> None:
    with pytest.raises(UsageError, match="cannot download from"):
        fetch(["http://127.0.0.1:1/", url], target)


@pytest.mark.parametrize(
    "url", ["http://no-such-host.invalid/x", "http://127.0.0.1:1/x", "http://exa mple/x", "http://%/"]
)
def test_hosts_that_are_not_there(url: str, target: Path) -> None:
    with pytest.raises(NetworkError, match="could not be reached|not a usable address"):
        fetch(url, target)


# ---------------------------------------------------------------------------------------------------------------------
# Checks of the whole file


@pytest.mark.parametrize("wrong", [{"sha256_prefix": "0badc0de"}, {"md5": "0" * 32}])
def test_a_wrong_hash_is_tried_twice_and_leaves_nothing(wrong: dict[str, str], payload: bytes, target: Path) -> None:
    with serving(good(payload)) as server:
        with pytest.raises(NetworkError, match="the published one is 0"):
            fetch(server.url(), target, **wrong)
        assert server.range_starts == [None, None]
    assert list(target.parent.iterdir()) == []


def test_a_failed_check_is_tried_twice_and_then_told(payload: bytes, target: Path) -> None:
    def check(path: Path) -> None:
        assert path.stat().st_size == len(payload)
        raise DataError("it holds no images.")

    with (
        serving(good(payload)) as server,
        pytest.raises(NetworkError, match="does not pass its check: it holds no images"),
    ):
        fetch(server.url(), target, check=check)
    assert len(server.requests) == 2
    assert list(target.parent.iterdir()) == []


def test_a_wrong_size_is_refused_before_anything_is_sent(payload: bytes, target: Path) -> None:
    with serving(good(payload)) as server, pytest.raises(NetworkError, match="of 200,000 bytes instead of 199,999"):
        fetch(server.url(), target, expected_size=199_999)
    assert not part_of(target).exists()


def test_a_chunked_body_longer_than_published_is_cut_off(payload: bytes, target: Path) -> None:
    with serving(chunked(payload)) as server, pytest.raises(NetworkError, match="more than the 1,000 bytes"):
        fetch(server.url(), target, expected_size=1000)
    assert list(target.parent.iterdir()) == []


def test_a_body_of_no_stated_length_needs_something_to_check_it_by(payload: bytes, target: Path) -> None:
    with serving(with_head(payload)) as server:
        with pytest.raises(NetworkError, match="does not say how long the file is"):
            fetch(server.url(), target)
        fetch(server.url(), target, md5=hashlib.md5(payload).hexdigest())
    assert_whole(target, payload)


def test_a_gzip_file_that_the_server_calls_encoded_is_kept_as_it_is(payload: bytes, tmp_path: Path) -> None:
    with serving(with_head(payload, Content_Length=len(payload), Content_Encoding="x-gzip")) as server:
        assert fetch(server.url(), tmp_path / "set.tar.gz").read_bytes() == payload


def test_a_file_that_is_there_is_not_fetched_again(payload: bytes, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(payload)
    fetch("http://127.0.0.1:1/", target, sha256_prefix=sha256(payload).upper())
    assert_whole(target, payload)


def test_a_wrong_file_that_is_there_is_replaced_only_by_a_right_one(
    payload: bytes, target: Path, listener: Listener
) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    with serving(status(404)) as server, pytest.raises(NetworkError):
        fetch(server.url(), target, sha256_prefix=sha256(payload))
    assert target.read_bytes() == b"old"
    with serving(good(payload)) as server:
        fetch(server.url(), target, sha256_prefix=sha256(payload), reporter=listener)
    assert "fetching it again" in listener.text
    assert_whole(target, payload)


def test_a_malformed_hash_is_the_caller_s_mistake(target: Path) -> None:
    for wrong in ({"sha256_prefix": "xyz"}, {"sha256_prefix": ""}, {"md5": "abcdef"}):
        with pytest.raises(ValueError, match="hexadecimal"):
            fetch("http://127.0.0.1:1/", target, **wrong)


# ---------------------------------------------------------------------------------------------------------------------
# Waiting


def record_pauses(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    """Note this thread's sleeps instead of sleeping; other threads of the test process go on as they were."""
    here, sleep = threading.current_thread(), time.sleep

    def note(seconds: float) -> None:
        if threading.current_thread() is here:
            pauses.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(download_module.time, "sleep", note)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str, payload: bytes, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    record_pauses(monkeypatch, pauses)
    value = "7" if form == "seconds" else formatdate(time.time() + 7, usegmt=True)
    with serving(in_turn(status(429, Retry_After=value), good(payload))) as server:
        fetch(server.url(), target)
    assert [5 < pause <= 7 for pause in pauses] == [True]


def test_a_long_retry_after_is_capped(payload: bytes, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    record_pauses(monkeypatch, pauses)
    with serving(in_turn(status(503, Retry_After=999_999), good(payload))) as server:
        fetch(server.url(), target)
    assert pauses == [120.0]


def test_the_pause_doubles_with_jitter_up_to_a_minute(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    record_pauses(monkeypatch, pauses)
    with serving(status(500)) as server, pytest.raises(NetworkError):
        fetch(server.url(), target, retries=9, backoff=1.0)
    assert len(server.requests) == 10
    assert all(0.5 * 2**n <= pause <= min(1.5 * 2**n, 60) for n, pause in enumerate(pauses) if n < 6)
    assert max(pauses) == 60.0
    assert len(set(pauses)) > 3


def test_a_drip_does_not_hold_the_download(payload: bytes, target: Path) -> None:
    start = time.monotonic()
    with serving(drip_body(payload)) as server, pytest.raises(NetworkError, match="bytes in|sent nothing"):
        fetch(server.url(), target, retries=0, timeout=0.3, min_rate=100_000)
    assert time.monotonic() - start < 5
    assert part_of(target).stat().st_size >= 60_000


# ---------------------------------------------------------------------------------------------------------------------
# The disk


def test_a_full_disk_is_seen_before_anything_is_sent(
    payload: bytes, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "free_bytes", lambda folder: 150_000)
    with serving(good(payload)) as server:
        with pytest.raises(DataError, match=r"file.bin needs 200.0 kB.* only 150.0 kB free"):
            fetch(server.url(), target, expected_size=len(payload))
        assert not server.requests
        with pytest.raises(DataError, match=r"file.bin needs 200.0 kB"):
            fetch(server.url(), target)
        leave_part(target, payload[:60_000], server.url())
        fetch(server.url(), target)  # 140 kB are missing: that fits
    assert_whole(target, payload)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_keeps_what_has_arrived(small_disk: Path) -> None:
    data, target = bytes(range(256)) * 8192, small_disk / "file.bin"
    with serving(chunked(data)) as server:
        with pytest.raises(DataError, match="No space left on device") as caught:
            fetch(server.url(), target)
        assert len(server.requests) == 1
    assert "What has arrived is kept" in str(caught.value.hint)
    kept = part_of(target).stat().st_size
    assert kept > 500_000 and data.startswith(part_of(target).read_bytes())
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    state = target.with_name("file.bin.part.json")
    with serving(good(data)) as server:
        state.write_text(json.dumps({**json.loads(state.read_text()), "url": server.url()}))
        fetch(server.url(), target)
        assert server.sent_bytes == len(data) - kept
    assert_whole(target, data)


def test_a_folder_or_a_file_in_the_way(target: Path) -> None:
    target.mkdir(parents=True)
    with pytest.raises(DataError, match="is a folder"):
        fetch("http://127.0.0.1:1/", target)
    blocker = target.parent / "blocker"
    blocker.write_text("x")
    with pytest.raises(DataError):
        fetch("http://127.0.0.1:1/", blocker / "file.bin")


# ---------------------------------------------------------------------------------------------------------------------
# The surroundings: proxies and certificates


def test_a_proxy_of_the_environment_is_used(payload: bytes, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(good(payload)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url(""))
        fetch("http://data.invalid/file.bin", target)
        assert proxy.requests[0].path == "http://data.invalid/file.bin"
    assert_whole(target, payload)


def test_a_proxy_that_refuses_is_named(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(status(403)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url(""))
        with pytest.raises(NetworkError, match="proxy did not let it through"):
            fetch("https://data.invalid/file.bin", target)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_an_unknown_certificate_is_refused_and_a_known_one_taken(
    certificate: Path, payload: bytes, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(good(payload), certificate) as server:
        with pytest.raises(NetworkError, match="certificate is not trusted.*REQUESTS_CA_BUNDLE"):
            fetch(server.url(), target)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_suffix(".crt")))
        fetch(server.url(), target)
    assert_whole(target, payload)


def test_a_redirect_from_https_to_http_is_not_followed(
    certificate: Path, payload: bytes, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_suffix(".crt")))
    with serving(good(payload)) as plain, serving(redirect(plain.url()), certificate) as server:
        with pytest.raises(NetworkError, match="from https down to plain http"):
            fetch(server.url(), target)
        assert not plain.requests


def test_a_redirect_from_http_to_https_is_followed(
    certificate: Path, payload: bytes, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_suffix(".crt")))
    with serving(good(payload), certificate) as server, serving(redirect(server.url())) as plain:
        fetch(plain.url(), target)
    assert_whole(target, payload)


def test_a_port_that_speaks_no_http(target: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    try:
        with pytest.raises(NetworkError, match="did not answer"):
            fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/", target, retries=1, timeout=0.2)
    finally:
        listening.close()


@pytest.fixture
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


@pytest.mark.usefixtures("_no_names")
def test_a_name_that_cannot_be_resolved_is_tried_twice(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    listener = Listener()
    with pytest.raises(NetworkError, match="the name no-such-host.invalid cannot be resolved.*mistyped.*2 times"):
        fetch("http://no-such-host.invalid/file.bin", target, retries=5, reporter=listener)
    assert [line for line in listener.lines if "trying again" in line] == [listener.lines[0]]
    assert listener.lines[0].endswith("(try 2 of 2).")


@pytest.mark.usefixtures("_no_names")
def test_a_proxy_whose_name_cannot_be_resolved_is_named(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://no-such-proxy.invalid:3128")
    with pytest.raises(NetworkError, match="the proxy's name no-such-proxy.invalid cannot be resolved"):
        fetch("http://no-such-host.invalid/file.bin", target, retries=0)
