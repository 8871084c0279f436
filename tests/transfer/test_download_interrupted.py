"""Downloads whose process is killed, whose line is cut anywhere, or that are not alone."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bad_server import BadServer, Request, good, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from ccreid_cli.transfer.archive import test_archive as check_archive
from ccreid_cli.transfer.download import download

CLIENT = """
import sys
from pathlib import Path
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.transfer.download import download

class Loud(SilentReporter):
    def message(self, text):
        print(text, flush=True)

url, target, digest = sys.argv[1:]
download([url], Path(target), sha256_prefix=digest or None, reporter=Loud(), backoff=0.05)
"""


def start_client(url: str, target: Path, digest: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CLIENT, url, str(target), digest]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


def kill_when_sent(client: subprocess.Popen[str], server: BadServer, sent_bytes: int) -> None:
    """kill -9 as soon as the server has sent that many bytes in all."""
    end = time.monotonic() + 30
    while server.sent_bytes < sent_bytes and client.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    client.kill()
    client.wait()


@pytest.mark.parametrize("with_hash", [True, False], ids=["hash", "no hash"])
def test_ten_kills_at_random_moments(with_hash: bool, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3_000_000)
    digest, target, kills = hashlib.sha256(data).hexdigest(), tmp_path / "file.zip", 10
    if not with_hash:
        digest, kills = "", 4
    part = tmp_path / "file.zip.part"
    with serving(good(data, pause=0.0005, block=8192)) as server:
        moments = [random.SystemRandom().randrange(250_000) for _ in range(kills)]
        for moment in moments:
            length = part.stat().st_size if part.exists() else 0
            client = start_client(server.url(), target, digest)
            kill_when_sent(client, server, server.sent_bytes + moment)
            assert not target.exists(), f"killed at {moments}"
            kept = part.read_bytes() if part.exists() else b""
            assert data.startswith(kept) and len(kept) >= length
        client = start_client(server.url(), target, digest)
        assert client.wait(60) == 0
        assert server.range_starts[-1] == (len(kept) or None)
        # what was sent twice was on the wire when the process died
        assert server.sent_bytes < len(data) + len(moments) * 1_000_000
    assert target.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


def test_two_processes_fetch_one_file_once(tmp_path: Path) -> None:
    data, target, second_waits = random.Random(2).randbytes(1_000_000), tmp_path / "file.zip", threading.Event()

    def behaviour(request: Request) -> None:
        request.head(200, Content_Length=len(data))
        request.body(data[:500_000])
        second_waits.wait(30)
        request.body(data[500_000:])

    with serving(behaviour) as server:
        first = start_client(server.url(), target)
        while not server.requests and first.poll() is None:
            time.sleep(0.005)
        second = start_client(server.url(), target)
        assert second.stdout is not None
        said = second.stdout.readline()
        second_waits.set()
        assert (first.wait(60), second.wait(60)) == (0, 0)
        assert (len(server.requests), server.sent_bytes) == (1, len(data))
    assert "waiting" in said and "the download of file.zip" in said
    assert target.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


@settings(max_examples=25, deadline=None)
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


@settings(max_examples=25, deadline=None)
@given(
    kept=st.integers(0, 2000), flipped=st.none() | st.integers(0, 1999), validator=st.sampled_from(['"v1"', '"v0"', ""])
)
def test_whatever_part_is_there_the_hash_is_met(
    kept: int, flipped: int | None, validator: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = b"P" + random.Random(3).randbytes(1999)
    part = bytearray(data[:kept])
    if flipped is not None and flipped < kept:
        part[flipped] ^= 0xFF
    target = tmp_path_factory.mktemp("part") / "file.bin"
    with serving(good(data)) as server:
        target.with_name("file.bin.part").write_bytes(part)
        state = {"url": server.url(), "etag": validator, "last_modified": "", "size": 2000}
        target.with_name("file.bin.part.json").write_text(json.dumps(state))
        download([server.url()], target, sha256_prefix=hashlib.sha256(data).hexdigest(), backoff=0.001)
        if validator == '"v1"' and part == data[:kept]:
            assert server.sent_bytes == 2000 - kept
    assert target.read_bytes() == data


@pytest.mark.shared
def test_a_real_dataset_survives_ten_kills(shared: Path, tmp_path: Path) -> None:
    archive = shared / "data" / "market-mini.zip"
    if not archive.exists():
        pytest.skip("market-mini.zip is not there")
    data, target = archive.read_bytes(), tmp_path / "market-mini.zip"
    with serving(good(data, pause=0.0005, block=32768)) as server:
        for _ in range(10):
            moment = server.sent_bytes + random.SystemRandom().randrange(1_000_000)
            kill_when_sent(start_client(server.url(), target), server, moment)
        download([server.url()], target, check=check_archive)
    assert target.read_bytes() == data
