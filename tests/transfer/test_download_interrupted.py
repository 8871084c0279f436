"""Downloads whose process is killed, whose line is cut anywhere, or that are not alone."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from bad_server import BadServer, Request, good, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from terminal_download import download_in_terminal

from ccreid_cli.transfer.download import download

# Its processes start by a fork of one that has imported everything, so that a test can afford many.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["__main__", "ccreid_cli.transfer.download"])


def start_client(url: str, target: Path, digest: str | None = None) -> BaseProcess:
    options = {"sha256_prefix": digest, "backoff": 0.05}
    client = PROCESSES.Process(target=download_in_terminal, args=([url], target), kwargs=options)
    client.start()
    return client


def kill_when_sent(client: BaseProcess, server: BadServer, sent_bytes: int) -> None:
    """kill -9 as soon as the server has sent that many bytes in all."""
    end = time.monotonic() + 30
    while server.sent_bytes < sent_bytes and client.is_alive() and time.monotonic() < end:
        time.sleep(0.001)
    client.kill()
    client.join()


@pytest.mark.parametrize("with_hash", [True, False], ids=["hash", "no hash"])
def test_killed_at_random_moments(with_hash: bool, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(2_000_000)
    digest, target, part = hashlib.sha256(data).hexdigest(), tmp_path / "file.zip", tmp_path / "file.zip.part"
    with serving(good(data, pause=0.0005, block=8192)) as server:
        moments = [random.SystemRandom().randrange(300_000) for _ in range(5)]
        for moment in moments:
            length = part.stat().st_size if part.exists() else 0
            client = start_client(server.url(), target, digest if with_hash else None)
            kill_when_sent(client, server, server.sent_bytes + moment)
            assert not target.exists(), f"killed at {moments}"
            kept = part.read_bytes() if part.exists() else b""
            assert data.startswith(kept) and len(kept) >= length
        client = start_client(server.url(), target, digest if with_hash else None)
        client.join(60)
        assert client.exitcode == 0
        assert server.range_starts[-1] == (len(kept) or None)
    assert target.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


def test_two_processes_fetch_one_file_once(tmp_path: Path) -> None:
    data, target, go_on = random.Random(2).randbytes(1_000_000), tmp_path / "file.zip", threading.Event()

    def behaviour(request: Request) -> None:
        request.head(200, Content_Length=len(data))
        request.body(data[:500_000])
        go_on.wait(30)
        request.body(data[500_000:])

    with serving(behaviour) as server:
        clients = [start_client(server.url(), target) for _ in range(2)]
        time.sleep(0.5)  # the second one asks the server now, or it waits for the first
        go_on.set()
        for client in clients:
            client.join(60)
        assert [client.exitcode for client in clients] == [0, 0]
        assert (len(server.requests), server.sent_bytes) == (1, len(data))
    assert target.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


@pytest.mark.parametrize("moment", ["head", "body"])
def test_ctrl_c_stops_it_at_once_and_keeps_what_has_arrived(moment: str, tmp_path: Path) -> None:
    target, asked = tmp_path / "file.zip", threading.Event()

    def behaviour(request: Request) -> None:
        if moment == "body":
            request.head(200, Content_Length=100_000, ETag='"v1"')
            request.body(bytes(60_000))
        asked.set()
        time.sleep(25)

    with serving(behaviour) as server:
        client = start_client(server.url(), target)
        assert asked.wait(30) and client.pid is not None
        time.sleep(0.2)
        os.kill(client.pid, signal.SIGINT)
        client.join(10)
        assert client.exitcode == 1
    part = tmp_path / "file.zip.part"
    assert part.exists() == (moment == "body") and (moment == "head" or part.stat().st_size == 60_000)


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(0, 40_000), max_size=6), size=st.integers(1, 40_000))
def test_wherever_it_is_cut_each_byte_is_sent_once(
    cuts: list[int], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = b"P" + random.Random(size).randbytes(size - 1)
    target = tmp_path_factory.mktemp("cut") / "file.bin"

    def behaviour(request: Request) -> None:
        position = request.range_start or 0
        later = [cut for cut in sorted(cuts) if cut >= position]
        stop = later[0] - position if later and request.number < len(cuts) else None
        good(data, stop=stop)(request)

    with serving(behaviour) as server:
        download([server.url()], target, retries=10, timeout=5.0, backoff=0.001)
        assert server.sent_bytes == size
    assert target.read_bytes() == data
