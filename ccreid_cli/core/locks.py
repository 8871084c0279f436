"""A lock between processes, kept in a file: two fetches of one dataset, or two trainings in one run folder."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter, SilentReporter

# Windows has no flock: the exclusive file below does.
fcntl = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None

_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_UNREADABLE_GRACE_SECONDS = 10.0  # a lock file without an owner this old was left by a crash, not by a slow writer


class LockedError(DataError):
    """Another process holds the lock (exit code 3)."""


@dataclass(frozen=True)
class LockOwner:
    """Who holds a lock.

    Attributes:
        host: Name of the machine.
        pid: Process id on that machine.
        since: When it took the lock, in seconds since 1970.
    """

    host: str
    pid: int
    since: float

    @property
    def is_dead(self) -> bool:
        """Whether the owner is a process of this machine that no longer runs (False when that cannot be known)."""
        if self.host != socket.gethostname() or os.name == "nt":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {when}"


def read_owner(path: Path) -> LockOwner | None:
    """Return who wrote the lock file `path`, or None when there is none or it says nothing readable."""
    try:
        values = json.loads(path.read_text())
        return LockOwner(host=str(values["host"]), pid=int(values["pid"]), since=float(values["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class FileLock:
    """A lock that one process at a time holds, across processes and, where the file system can, across machines.

    It is the system's own lock on `path` (flock), which dies with its owner, so that a killed process never blocks the
    next one. Where the file system has none, the existence of the file is the lock, and a file left by a dead process
    of this machine is taken over. Either way the file names its owner as JSON, and goes when the lock is released.

    Args:
        path: The lock file. Its folder is made.
        what: What the lock protects, in words for messages.
        reporter: Told once when there is a wait.
        poll_seconds: How often a waiting process looks again.
    """

    def __init__(
        self, path: Path, *, what: str = "", reporter: Reporter | None = None, poll_seconds: float = 0.2
    ) -> None:
        self.path = path
        self.what = what or str(path)
        self._reporter = reporter or SilentReporter()
        self._poll_seconds = poll_seconds
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock now."""
        return self._descriptor is not None

    def acquire(self, wait: bool = True) -> None:
        """Take the lock.

        Args:
            wait: Wait for another owner to finish; otherwise fail at once.

        Raises:
            LockedError: Another process holds it and `wait` is False.
            DataError: The lock file cannot be written.
        """
        said = False
        while not self._try():
            owner = read_owner(self.path)
            if not wait:
                raise LockedError(f"{self.what} is in use by {owner or 'another process'}.", self._hint())
            if not said:
                self._reporter.message(f"{self.what} is in use by {owner or 'another process'}: waiting for it.")
                said = True
            time.sleep(self._poll_seconds)

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._descriptor is None:
            return
        # Removed before it is unlocked: who was waiting on this file notices that it is no longer the one at `path`.
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _hint(self) -> str:
        return f"Wait for it to finish. If that process is gone for good, delete {self.path}."

    def _try(self) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._attempt()
        except OSError as error:
            raise DataError(
                f"could not lock {self.path}: {error.strerror or error}.", "The folder must be writable."
            ) from error

    def _attempt(self) -> bool:
        while True:
            opened = self._open()
            if opened is None:
                continue
            descriptor, is_new = opened
            locked = self._flock(descriptor)
            if locked and not self._is_still_at_path(descriptor):  # its owner removed it while it was being locked
                os.close(descriptor)
                continue
            if locked or (locked is None and is_new):
                self._own(descriptor)
                return True
            os.close(descriptor)
            if locked is False or not self._removed_stale_file():
                return False

    def _open(self) -> tuple[int, bool] | None:
        """Open the file and say whether this made it; None when it went in between."""
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            pass
        try:
            return os.open(self.path, os.O_RDWR), False
        except FileNotFoundError:
            return None

    def _flock(self, descriptor: int) -> bool | None:
        """Say whether the system's lock was got; None where there is none."""
        if fcntl is None:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_FLOCK:
                return None
            os.close(descriptor)
            raise
        return True

    def _is_still_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _removed_stale_file(self) -> bool:
        """Where the file's existence is the lock: remove one whose owner is dead, and say whether to try again."""
        owner = read_owner(self.path)
        try:
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return True
        if not (owner.is_dead if owner else age > _UNREADABLE_GRACE_SECONDS):
            return False
        # Moved aside first: of two processes that find the same stale file, only one gets to remove it.
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}.stale")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            if read_owner(aside) != owner:  # a new owner took it in between: give it back
                with contextlib.suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink()
        return True

    def _own(self, descriptor: int) -> None:
        owner = LockOwner(host=socket.gethostname(), pid=os.getpid(), since=time.time())
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(owner)).encode(), 0)
        except OSError:
            os.close(descriptor)  # or the lock would stay taken by a process that does not know it has it
            raise
        self._descriptor = descriptor
