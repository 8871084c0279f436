"""One process at a time; the dead do not count."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ccreid_cli.core import locks
from ccreid_cli.core.errors import DataError
from ccreid_cli.core.locks import FileLock, LockedError, LockOwner, read_owner
from ccreid_cli.core.reporter import SilentReporter

HOLDER = """
import sys, time
from pathlib import Path
from ccreid_cli.core.locks import FileLock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def flock_refused(*_: object) -> None:
    raise OSError(locks.errno.ENOTSUP, "not supported")


@pytest.fixture(params=["flock", "exclusive file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "flock":
        monkeypatch.setattr(locks, "fcntl", SimpleNamespace(flock=flock_refused, LOCK_EX=2, LOCK_NB=4))
    elif locks.fcntl is None:
        pytest.skip("no flock here")
    return str(request.param)


def holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until it is killed."""
    root = Path(locks.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_names_its_owner_and_goes_when_released(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "made" / "x.lock"
    with FileLock(path) as lock:
        assert lock.held
        owner = read_owner(path)
        assert owner is not None
        assert (owner.host, owner.pid) == (socket.gethostname(), os.getpid())
        assert abs(owner.since - time.time()) < 60
    assert not lock.held
    assert list(path.parent.iterdir()) == []
    lock.release()  # twice does no harm


def test_second_owner_is_refused_or_waits(tmp_path: Path, kind: str) -> None:
    path, listener = tmp_path / "x.lock", Listener()
    first = FileLock(path)
    first.acquire()
    with pytest.raises(LockedError, match=f"the run is in use by process {os.getpid()}") as caught:
        FileLock(path, what="the run").acquire(wait=False)
    assert isinstance(caught.value, DataError) and str(path) in (caught.value.hint or "")
    threading.Timer(0.3, first.release).start()
    start = time.monotonic()
    with FileLock(path, what="the run", reporter=listener, poll_seconds=0.02):
        assert time.monotonic() - start > 0.2
    assert len(listener.messages) == 1 and "waiting" in listener.messages[0]


def test_many_threads_never_hold_it_together(tmp_path: Path, kind: str) -> None:
    inside, most, done = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(5):
            with FileLock(tmp_path / "x.lock", poll_seconds=0.001):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with guard:
                    inside -= 1
                    done += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 30)


def test_another_process_and_its_death(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    process = holder(path)
    try:
        with pytest.raises(LockedError, match=f"process {process.pid} on"):
            FileLock(path).acquire(wait=False)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.exists()  # left behind by the killed process
        lock = FileLock(path)
        lock.acquire(wait=False)
        lock.release()
    finally:
        process.kill()
        process.wait()


def test_stale_file_of_a_dead_process_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "x.lock"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": dead.pid, "since": 0.0}))
    with FileLock(path, poll_seconds=0.01):
        owner = read_owner(path)
        assert owner is not None and owner.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_file_of_another_host_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    path = tmp_path / "x.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": 0.0}))
    with pytest.raises(LockedError, match="process 1 on elsewhere"):
        FileLock(path).acquire(wait=False)
    assert not LockOwner("elsewhere", 1, 0.0).is_dead
    assert not LockOwner(socket.gethostname(), os.getpid(), 0.0).is_dead


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}', '{"host": "a", "pid": "x", "since": 1}'])
def test_unreadable_file_counts_while_it_is_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    path = tmp_path / "x.lock"
    path.write_text(text)
    assert read_owner(path) is None
    with pytest.raises(LockedError, match="another process"):
        FileLock(path).acquire(wait=False)
    os.utime(path, (0, 0))
    with FileLock(path, poll_seconds=0.01):
        assert read_owner(path) is not None


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not lock"):
        FileLock(tmp_path / "file" / "x.lock").acquire()
