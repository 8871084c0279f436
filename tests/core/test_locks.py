"""One process at a time; the dead do not count."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.locks import FileLock, LockedError, LockOwner, read_owner
from ccreid_cli.core.reporter import SilentReporter

fcntl = pytest.importorskip("fcntl")

# Holds the lock until it is killed. The second argument is the error number of a file system without flock, or 0.
HOLDER = """
import fcntl, sys, time
from pathlib import Path
from ccreid_cli.core.locks import FileLock
def flock(*_):
    raise OSError(int(sys.argv[2]), "no flock")
if sys.argv[2] != "0":
    fcntl.flock = flock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


NO_SYSTEM_CALL = pytest.param(errno.ENOSYS, marks=pytest.mark.filterwarnings("ignore:flock not supported"))


@pytest.fixture(params=[0, NO_SYSTEM_CALL, errno.ENOLCK], ids=["flock", "ENOSYS", "ENOLCK"])
def refusal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The error with which the file system refuses flock, 0 where it has it."""
    number: int = request.param

    def flock(*_: object) -> None:
        raise OSError(number, "no flock")

    if number:
        monkeypatch.setattr(fcntl, "flock", flock)
    return number


def holder(path: Path, refusal: int) -> subprocess.Popen[str]:
    """Start a process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLDER, str(path), str(refusal)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_names_its_owner_and_goes_when_released(tmp_path: Path, refusal: int) -> None:
    path = tmp_path / "made" / "x.lock"
    with FileLock(path) as lock:
        assert lock.held
        owner = read_owner(path)
        assert owner is not None
        assert (owner.host, owner.pid) == (socket.gethostname(), os.getpid())
        assert abs(owner.since - time.time()) < 60
        assert not owner.is_dead
    assert not lock.held
    assert list(path.parent.iterdir()) == []
    lock.release()  # twice does no harm


def test_second_owner_is_refused_or_waits(tmp_path: Path, refusal: int) -> None:
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


def test_many_threads_never_hold_it_together(tmp_path: Path, refusal: int) -> None:
    inside, most, done = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(3):
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
    assert (most, done) == (1, 18)


def test_another_process_and_its_death(tmp_path: Path, refusal: int) -> None:
    path = tmp_path / "x.lock"
    process = holder(path, refusal)
    try:
        with pytest.raises(LockedError, match=f"process {process.pid} on"):
            FileLock(path).acquire(wait=False)
        process.send_signal(signal.SIGKILL)
        process.wait()
        owner = read_owner(path)  # left behind by the killed process
        assert owner is not None and owner.pid == process.pid and owner.is_dead
        with FileLock(path, poll_seconds=0.01):
            owner = read_owner(path)
            assert owner is not None and owner.pid == os.getpid()
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.communicate()


def test_owner_on_another_host_is_never_called_dead() -> None:
    assert not LockOwner("elsewhere", 1, 0.0).is_dead
    assert str(LockOwner("elsewhere", 12, 0.0)).startswith("process 12 on elsewhere since 19")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}', '{"host": "a", "pid": "x", "since": 1}'])
def test_unreadable_note_of_the_owner(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.lock"
    with FileLock(path):
        (tmp_path / "x.lock.owner").write_text(text)
        with pytest.raises(LockedError, match="another process"):
            FileLock(path).acquire(wait=False)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not lock"):
        FileLock(tmp_path / "file" / "x.lock").acquire()
