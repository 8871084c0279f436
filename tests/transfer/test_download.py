"""Downloads from servers that behave and, mostly, from those that do not: one case per kind of fault."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
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


def leave_part(target: Path, data: bytes, url: str, **changes: object) -> None:
    """Leave behind what a killed download leaves."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part_of(target).write_bytes(data)
    state = {"url": url, "etag": '"v1"', "last_modified": MODIFIED, "size": 200_000, **changes}
    target.with_name("file.bin.part.json").write_text(json.dumps(state))


def assert_whole(target: Path, data: bytes) -> None:
    """The file is right, and nothing else lies about."""
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


# ---------------------------------------------------------------------------------------------------------------------
# Servers that misbehave, but from which the file can be had in the end.


def with_head(body: bytes, **headers: object) -> Behaviour:
    def answer(request: Request) -> None:
        request.head(200, **headers)
        request.body(body)

    return answer


def not_http(request: Request) -> None:
    request.raw(b"SSH-2.0-OpenSSH_9.6\r\n")


def then(data: bytes, fault: Callable[[Request], object]) -> Behaviour:
    """The first 60,000 bytes, and then a fault."""

    def answer(request: Request) -> None:
        request.head(200, Content_Length=len(data), ETag='"v1"')
        request.body(data[:60_000])
        fault(request)

    return answer


def drip_head(request: Request) -> None:
    drip(request, b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 400)


def drip_chunk_length(request: Request) -> None:
    request.head(200, Transfer_Encoding="chunked", ETag='"v1"')
    drip(request, b"10;" + b"x" * 400)


def partial_answer(data: bytes, **changes: object) -> Behaviour:
    """206 with wrong header fields to a request for a range; right otherwise."""

    def answer(request: Request) -> None:
        start = request.range_start
        if start is None:
            return good(data)(request)
        head = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}", "ETag": '"v1"', **changes}
        request.head(206, **head)
        request.body(data[start:])

    return answer


def small_slices(data: bytes) -> Behaviour:
    """Never more than 30,000 bytes at once."""

    def answer(request: Request) -> None:
        start = request.range_start
        if start is None:
            return good(data, stop=30_000)(request)
        end = min(start + 30_000, len(data))
        request.head(206, Content_Range=f"bytes {start}-{end - 1}/{len(data)}", ETag='"v1"')
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


SURVIVED: dict[str, Callable[[bytes], Behaviour]] = {
    "cut more often than there are retries": lambda data: good(data, stop=9_000),
    "cut, no ranges the next time": lambda data: in_turn(
        good(data, stop=150_000), with_head(data, Content_Length=len(data))
    ),
    "connection reset": lambda data: in_turn(then(data, Request.reset), good(data)),
    "closes without an answer": lambda data: in_turn(lambda request: None, good(data)),
    "speaks something else first": lambda data: in_turn(not_http, good(data)),
    "stalls": lambda data: in_turn(then(data, lambda request: time.sleep(20)), good(data)),
    "drips the body": lambda data: in_turn(then(data, lambda request: drip(request, data[60_000:60_400])), good(data)),
    "drips the head": lambda data: in_turn(drip_head, good(data)),
    "drips the length of a chunk": lambda data: in_turn(drip_chunk_length, good(data)),
    "chunked, cut": lambda data: in_turn(chunked(data, 99_000), chunked(data)),
    "only small slices": small_slices,
    "500, then busy": lambda data: in_turn(status(500), status(503, Retry_After="soon"), good(data)),
    "wrong bytes the first time": lambda data: in_turn(good(bytes(len(data))), good(data)),
    "relative redirects": lambda data: in_turn(*[redirect(f"/{number}") for number in range(9)], good(data)),
    "calls itself a web page": lambda data: with_head(data, Content_Length=len(data), Content_Type="text/html"),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_the_file_arrives_in_the_end(name: str, payload: bytes, target: Path) -> None:
    with serving(SURVIVED[name](payload)) as server:
        patience = 0.3 if "drips" in name or "stalls" in name else 5.0
        start = time.monotonic()
        fetch(server.url(), target, sha256_prefix=sha256(payload)[:8], timeout=patience)
        assert time.monotonic() - start < 15, "a slow server held it up"
    assert_whole(target, payload)


# ---------------------------------------------------------------------------------------------------------------------
# Servers from which the file cannot be had: a clear error, and what was on disk is not spoilt.


def endless(request: Request) -> None:
    request.head(302, Location="/again", Transfer_Encoding="chunked")
    while True:
        request.raw(b"10000\r\n" + bytes(0x10000) + b"\r\n")


FATAL: dict[str, tuple[Callable[[bytes], Behaviour], str]] = {
    "not there": (lambda data: status(404), "404 Not Found"),
    "always busy": (lambda data: status(503), r"503 Service Unavailable \(3 times\)"),
    "unknown status": (lambda data: status(799), "answered 799"),
    "206 to a request for all": (lambda data: lambda request: request.head(206), "206 Partial Content"),
    "redirects for ever": (lambda data: redirect(lambda number: f"/{number}"), "redirects more than 10 times"),
    "redirect with an endless body": (lambda data: endless, "redirects more than 10 times"),
    "redirect to a file": (lambda data: redirect("file:///etc/passwd"), 'redirects to "file:///etc/passwd"'),
    "redirect to nonsense": (lambda data: redirect("http://[::1"), "is not a valid address"),
    "redirect to a closed port": (lambda data: redirect("http://127.0.0.1:1/"), "could not be reached"),
    "web page": (lambda data: with_head(HTML, Content_Length=len(HTML)), "sent a web page"),
    "web page by its type": (
        lambda data: with_head(b"<svg>" * 20, Content_Length=100, Content_Type="text/html"),
        "sent a web page",
    ),
    "empty": (lambda data: with_head(b"", Content_Length=0), "empty file"),
    "encoded": (lambda data: with_head(data, Content_Length=len(data), Content_Encoding="gzip"), "Content-Encoding"),
    "no length": (with_head, "does not say how long the file is"),
    "longer in words than in deeds": (
        lambda data: with_head(data, Content_Length=len(data) + 5),
        r"connection was cut \(\d times\)",
    ),
    "never answers": (lambda data: lambda request: time.sleep(2), r"did not answer.*\(3 times\)"),
}


@pytest.mark.parametrize("name", FATAL)
def test_a_clear_error_and_nothing_spoilt(name: str, payload: bytes, target: Path) -> None:
    make, reason = FATAL[name]
    with serving(make(payload)) as server:
        with pytest.raises(NetworkError, match=reason) as caught:
            fetch(server.url(), target, timeout=0.1 if "never" in name else 5.0)
        assert len(server.requests) < 40
    assert server.url() in caught.value.message and "file.bin" in caught.value.message
    assert "--archive FILE" in str(caught.value.hint)
    assert not target.exists()
    with serving(good(payload)) as server:  # whatever part is left, a server that behaves gets the file whole
        fetch(server.url(), target)
    assert_whole(target, payload)


@pytest.mark.parametrize(
    "behaviour",
    [status(404), status(503), redirect("file:///x"), with_head(HTML, Content_Length=len(HTML)), not_http],
    ids=["404", "503", "redirect", "web page", "not HTTP"],
)
def test_an_answer_without_the_file_costs_no_byte_that_has_arrived(
    behaviour: Behaviour, payload: bytes, target: Path
) -> None:
    with serving(behaviour) as server:
        leave_part(target, payload[:150_000], server.url())
        with pytest.raises(NetworkError) as caught:
            fetch(server.url(), target)
        assert "What has arrived is kept" in str(caught.value.hint)
        assert part_of(target).read_bytes() == payload[:150_000]
        server.behaviour, server.sent_bytes = good(payload), 0
        fetch(server.url(), target)
        assert server.sent_bytes == 50_000
    assert_whole(target, payload)


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


@pytest.mark.parametrize("etag, condition", [('"v1"', '"v1"'), ('W/"weak"', MODIFIED)], ids=["strong tag", "date"])
def test_only_the_missing_bytes_are_sent(
    etag: str, condition: str, payload: bytes, target: Path, listener: Listener
) -> None:
    with serving(good(payload, etag=etag)) as server:
        leave_part(target, payload[:150_000], server.url(), etag=etag)
        fetch(server.url(), target, reporter=listener)
        assert (server.range_starts, server.sent_bytes) == ([150_000], 50_000)
        assert server.requests[0].headers["if-range"] == condition
        assert server.requests[0].headers["accept-encoding"] == "identity"
    assert listener.tasks == [["downloading file.bin", 200_000, "B", 200_000]] and listener.done == [150_000]
    assert_whole(target, payload)


NOT_THE_REST: dict[str, Callable[[bytes], Behaviour]] = {
    "no ranges": lambda data: with_head(data, Content_Length=len(data)),
    "changed": lambda data: good(data, etag='"v2"'),
    "changed, ignores If-Range": lambda data: partial_answer(data, ETag='"v2"'),
    "another start": lambda data: partial_answer(data, Content_Range=f"bytes 5-{len(data) - 1}/{len(data)}"),
    "another total": lambda data: partial_answer(data, Content_Range=f"bytes 100000-{len(data)}/{len(data) + 1}"),
    "no readable range": lambda data: partial_answer(data, Content_Range="bytes all of it"),
    "another length": lambda data: partial_answer(data, Content_Length=7),
    "an encoding": lambda data: partial_answer(data, Content_Encoding="gzip"),
    "more than the range": longer_than_its_range,
    "416": lambda data: in_turn(status(416, Content_Range="bytes */5"), good(data)),
}


@pytest.mark.parametrize("name", NOT_THE_REST)
def test_what_is_not_the_rest_of_the_file_is_not_appended(name: str, payload: bytes, target: Path) -> None:
    with serving(NOT_THE_REST[name](payload)) as server:
        leave_part(target, bytes(100_000), server.url())  # no hash: a wrong beginning would stay
        fetch(server.url(), target)
    assert_whole(target, payload)


def test_without_validator_it_starts_over_unless_a_hash_decides(payload: bytes, target: Path) -> None:
    for wanted, starts in (({}, [None]), ({"sha256_prefix": sha256(payload)}, [150_000])):
        with serving(good(payload, etag="")) as server:
            leave_part(target, payload[:150_000], server.url(), etag="", last_modified="")
            fetch(server.url(), target, **wanted)
            assert server.range_starts == starts
        assert_whole(target, payload)
        target.unlink()


def test_a_complete_part_needs_no_network(payload: bytes, target: Path) -> None:
    leave_part(target, payload, "http://127.0.0.1:1/file.bin")
    fetch("http://127.0.0.1:1/file.bin", target, md5=hashlib.md5(payload).hexdigest())
    assert_whole(target, payload)


def test_a_damaged_part_is_found_out_by_the_hash(payload: bytes, target: Path, listener: Listener) -> None:
    with serving(good(payload)) as server:
        leave_part(target, bytes(100_000), server.url())
        fetch(server.url(), target, sha256_prefix=sha256(payload)[:8], reporter=listener)
        assert server.range_starts == [100_000, None]
    assert "has the sha256" in listener.text
    assert_whole(target, payload)


@pytest.mark.parametrize("state", ["", "{", "[]", '{"url": "u", "more": 1}', "\xff"])
def test_a_part_without_a_readable_description_is_not_used(state: str, payload: bytes, target: Path) -> None:
    with serving(good(payload)) as server:
        leave_part(target, bytes(100_000), server.url())
        target.with_name("file.bin.part.json").write_bytes(state.encode("latin-1"))
        fetch(server.url(), target)
        assert server.range_starts == [None]
    assert_whole(target, payload)


# ---------------------------------------------------------------------------------------------------------------------
# Several sources, and addresses


def test_the_next_source_takes_over(payload: bytes, target: Path) -> None:
    with serving(status(404)) as dead, serving(good(bytes(10))) as wrong, serving(good(payload)) as right:
        fetch([dead.url(), wrong.url(), right.url()], target, expected_size=len(payload))
        assert [len(server.requests) for server in (dead, wrong, right)] == [1, 1, 1]
    assert_whole(target, payload)


@pytest.mark.parametrize("wanted, start", [("", None), ("hash", 80_000)], ids=["no hash", "hash"])
def test_the_next_source_goes_on_only_where_a_hash_decides(
    wanted: str, start: int | None, payload: bytes, target: Path
) -> None:
    prefix = sha256(payload)[:8] if wanted else None
    first_only = in_turn(good(payload, stop=80_000), status(404))
    with serving(first_only) as first, serving(good(payload, etag='"other"')) as second:
        fetch([first.url(), second.url()], target, sha256_prefix=prefix)
        assert second.range_starts == [start]
    assert_whole(target, payload)


def test_the_source_of_the_part_goes_first(payload: bytes, target: Path) -> None:
    with serving(good(payload)) as first, serving(good(payload)) as second:
        leave_part(target, payload[:100_000], second.url())
        fetch([first.url(), second.url()], target)
        assert (len(first.requests), second.sent_bytes) == (0, 100_000)


def test_passwords_are_sent_but_neither_shown_nor_stored(payload: bytes, target: Path, listener: Listener) -> None:
    with serving(status(404)) as first, serving(good(payload, stop=10)) as second:
        login = second.url().replace("http://", "http://me:secret@")
        with pytest.raises(NetworkError) as caught:
            fetch([first.url(), login], target, reporter=listener)
        assert second.requests[0].headers["authorization"].startswith("Basic ")
    assert f"{first.url()} answered 404 Not Found" in caught.value.message
    assert f"{second.url()} the connection was cut" in caught.value.message
    shown = f"{caught.value.message}{caught.value.hint}{listener.text}"
    assert "secret" not in shown + target.with_name("file.bin.part.json").read_text()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/local/file", "http:///x", "http://[bad", ""])
def test_only_http_and_https(url: str, target: Path) -> None:
    with pytest.raises(UsageError, match="cannot download from"):
        fetch(["http://127.0.0.1:1/", url], target)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://exa mple/x", "http://%/"])
def test_hosts_that_are_not_there(url: str, target: Path) -> None:
    with pytest.raises(NetworkError, match="could not be reached|not a usable address"):
        fetch(url, target, retries=0)


@pytest.mark.parametrize("whose", ["server", "proxy"])
def test_a_name_that_cannot_be_resolved_is_tried_twice(
    whose: str, target: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, url = f"no-such-{whose}.invalid", "http://no-such-server.invalid/file.bin"
    monkeypatch.setenv("http_proxy", f"http://{name}:3128") if whose == "proxy" else monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(NetworkError, match=rf"the {whose}'s name {name} cannot be resolved.*2 times"):
        fetch(url, target, retries=5, reporter=listener)
    assert "(try 2 of 2)" in listener.lines[0]


# ---------------------------------------------------------------------------------------------------------------------
# Checks of the whole file


def test_what_fails_its_checks_is_tried_twice_and_leaves_nothing(payload: bytes, target: Path) -> None:
    def check(path: Path) -> None:
        assert path.read_bytes() == payload
        raise DataError("it holds no images.")

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sha256_prefix": "0badc0de"}, "the published one is 0badc0de"),
        ({"md5": "0" * 32}, "has the md5 .*, the published one is 0000"),
        ({"check": check}, "does not pass its check: it holds no images"),
    ]
    for options, reason in wrong:
        with serving(good(payload)) as server:
            with pytest.raises(NetworkError, match=reason):
                fetch(server.url(), target, **options)
            assert server.range_starts == [None, None]
        assert list(target.parent.iterdir()) == []


def test_a_wrong_size_is_refused_before_anything_is_stored(payload: bytes, target: Path) -> None:
    with serving(good(payload)) as server, pytest.raises(NetworkError, match="of 200,000 bytes instead of 199,999"):
        fetch(server.url(), target, expected_size=199_999)
    with serving(chunked(bytes(30_000_000))) as server:
        with pytest.raises(NetworkError, match="more than the 1,000 bytes"):
            fetch(server.url(), target, expected_size=1000, retries=0)
        assert server.sent_bytes < 30_000_000  # it was left as soon as it was too long
    assert list(target.parent.iterdir()) == []


def test_a_body_of_no_stated_length_is_taken_where_a_hash_tells(payload: bytes, target: Path) -> None:
    with serving(with_head(payload)) as server:
        fetch(server.url(), target, md5=hashlib.md5(payload).hexdigest())
    assert_whole(target, payload)


def test_a_gzip_file_that_the_server_calls_encoded_is_kept_as_it_is(payload: bytes, tmp_path: Path) -> None:
    with serving(with_head(payload, Content_Length=len(payload), Content_Encoding="x-gzip")) as server:
        assert fetch(server.url(), tmp_path / "set.tar.gz").read_bytes() == payload


def test_a_file_that_is_there_is_replaced_only_by_a_right_one(payload: bytes, target: Path, listener: Listener) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    with serving(status(404)) as server, pytest.raises(NetworkError):
        fetch(server.url(), target, sha256_prefix=sha256(payload))
    assert target.read_bytes() == b"old"
    with serving(good(payload)) as server:
        fetch(server.url(), target, sha256_prefix=sha256(payload), reporter=listener)
        fetch("http://127.0.0.1:1/", target, sha256_prefix=sha256(payload).upper())  # right: not fetched again
    assert "fetching it again" in listener.text
    assert_whole(target, payload)


# ---------------------------------------------------------------------------------------------------------------------
# Waiting


def pauses_of(listener: Listener) -> list[str]:
    return [line.split("trying again in ")[1].split(" s ")[0] for line in listener.lines if "trying again" in line]


@pytest.mark.parametrize("asked, seconds", [("7", (7, 7)), ("date", (5, 7)), ("999999", (120, 120))])
def test_retry_after_is_honoured_up_to_two_minutes(
    asked: str, seconds: tuple[int, int], payload: bytes, target: Path, listener: Listener, no_sleep: None
) -> None:
    value = formatdate(time.time() + 7, usegmt=True) if asked == "date" else asked
    with serving(in_turn(status(429, Retry_After=value), good(payload))) as server:
        fetch(server.url(), target, reporter=listener)
    (pause,) = pauses_of(listener)
    assert seconds[0] <= int(pause) <= seconds[1]


def test_the_pause_doubles_with_jitter_up_to_a_minute(target: Path, listener: Listener, no_sleep: None) -> None:
    with serving(status(500)) as server, pytest.raises(NetworkError):
        fetch(server.url(), target, retries=9, backoff=1.0, reporter=listener)
    pauses = [int(pause) for pause in pauses_of(listener)]
    assert len(server.requests) == 10
    assert all(0.5 * 2**n - 0.5 <= pause <= min(1.5 * 2**n, 60) + 0.5 for n, pause in enumerate(pauses[:6]))
    assert max(pauses) == 60


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "time", type("Clock", (), {"sleep": staticmethod(lambda seconds: None)}))


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
def small_disk(tmp_path: Path) -> Iterator[Path]:
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
        assert "What has arrived is kept" in str(caught.value.hint)
        kept = part_of(target).stat().st_size
        assert kept > 500_000 and data.startswith(part_of(target).read_bytes())
        subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
        server.behaviour, server.sent_bytes = good(data), 0
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
        monkeypatch.setenv("https_proxy", proxy.url(""))
        proxy.behaviour = status(403)
        target.unlink()
        with pytest.raises(NetworkError, match="proxy did not let it through"):
            fetch("https://data.invalid/file.bin", target)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "both.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_certificates_are_checked_and_no_redirect_leads_to_plain_http(
    certificate: Path, payload: bytes, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(good(payload)) as plain, serving(good(payload), certificate) as server:
        with pytest.raises(NetworkError, match="certificate is not trusted.*REQUESTS_CA_BUNDLE"):
            fetch(server.url(), target)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_suffix(".crt")))
        server.behaviour = redirect(plain.url())
        with pytest.raises(NetworkError, match="from https down to plain http"):
            fetch(server.url(), target)
        assert not plain.requests
        server.behaviour, plain.behaviour = good(payload), redirect(server.url())
        fetch(plain.url(), target)
    assert_whole(target, payload)
