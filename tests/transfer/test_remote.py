"""Remote files, in fsspec's memory and from a server of this machine."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from ccreid_cli.core.errors import NetworkError, UsageError
from ccreid_cli.transfer import remote

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def _files() -> Iterator[None]:
    memory = fsspec.filesystem("memory")
    for name in ("b.txt", "a/c.txt"):
        memory.pipe(f"/remote/{name}", name.encode())
    yield
    memory.rm("/remote", recursive=True)


def test_files_in_memory_are_read_and_listed() -> None:
    assert remote.read_remote("memory://remote/b.txt") == b"b.txt"
    assert remote.list_remote("memory://remote/") == ["memory:///remote/a/c.txt", "memory:///remote/b.txt"]
    assert remote.picture_at("memory://remote/b.txt") == b"b.txt" and remote.picture_at("b.txt") == "b.txt"
    with remote.open_file("memory://remote/a/c.txt") as file:
        assert file.read(1) == b"a"
    with pytest.raises(FileNotFoundError, match="no such file: 'memory://remote/none'"):
        remote.read_remote("memory://remote/none")


def test_addresses_are_told_from_paths() -> None:
    assert [remote.is_remote(place) for place in ("s3://a/b", "a://", "a/b", "/a:/b", "://a", "C:\\a")] == [
        *(True, True), *(False,) * 4,
    ]  # fmt: skip


def test_a_network_that_fails_is_no_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_SECONDS_BETWEEN_TRIES", 0)
    tries = []

    def failing(address: str) -> None:
        tries.append(address)
        raise TimeoutError("no answer")

    words = "x cannot be read: no answer"
    with mock.patch.object(remote, "open_remote", failing), pytest.raises(NetworkError, match=words):
        remote.read_remote("memory://x")
    assert len(tries) == 3
    with pytest.raises(UsageError, match="cannot be opened"):
        remote.read_remote("nonsense://x")


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="fsspec reads http by aiohttp")
def test_a_server_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"hello")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert remote.read_remote(f"{address}/a.txt") == b"hello"
        with pytest.raises(FileNotFoundError):
            remote.read_remote(f"{address}/none.txt")
        server.shutdown()
