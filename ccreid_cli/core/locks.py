"""A lock between processes, kept in a file: two fetches of one dataset, or two trainings in one run folder.

filelock does the locking; here it is said who holds a lock, and what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import filelock

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter, SilentReporter

OWNER_SUFFIX = ".owner"
"""Added to a lock file's name for the note that says who holds it."""
SOFT_SUFFIX = ".soft"
"""Added to a lock file's name where the file system has no flock and the existence of a file is the lock."""
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


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
    """Return who last took the lock `path` and has not released it, or None when nobody has or it is not known."""
    try:
        values = json.loads(_beside(path, OWNER_SUFFIX).read_text())
        return LockOwner(host=str(values["host"]), pid=int(values["pid"]), since=float(values["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class FileLock:
    """A lock that one process at a time holds, across processes and, where the file system can, across machines.

    It is the system's own lock on `path` (flock), which dies with its owner, so that a killed process never blocks the
    next one. Where the file system has none, the existence of ``<path>.soft`` is the lock, and filelock removes one
    that a dead process of this machine left. ``<path>.owner`` names the owner. All go when the lock is released.

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
        self._lock: filelock.BaseFileLock = filelock.FileLock(path, thread_local=False)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock now."""
        return self._lock.is_locked

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
            in_use = f"{self.what} is in use by {read_owner(self.path) or 'another process'}"
            if not wait:
                hint = f"Wait for it to finish. If that process is gone for good, delete {self._lock.lock_file}."
                raise LockedError(f"{in_use}.", hint)
            if not said:
                self._reporter.message(f"{in_use}: waiting for it.")
                said = True
            time.sleep(self._poll_seconds)

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if not self.held:
            return
        # Removed while the lock is held: who waits for this file sees that it is no longer the one at `path`.
        for file in (_beside(self.path, OWNER_SUFFIX), self.path):
            with contextlib.suppress(OSError):
                file.unlink()
        self._lock.release()

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try(self) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        except OSError as error:
            if error.errno in _NO_FLOCK and not isinstance(self._lock, filelock.SoftFileLock):
                self._lock = filelock.SoftFileLock(_beside(self.path, SOFT_SUFFIX), thread_local=False)
                return self._try()
            raise DataError(
                f"could not lock {self.path}: {error.strerror or error}.", "The folder must be writable."
            ) from error
        owner = LockOwner(host=socket.gethostname(), pid=os.getpid(), since=time.time())
        with contextlib.suppress(OSError):  # only for messages: a full disk must not keep anybody from cleaning up
            _beside(self.path, OWNER_SUFFIX).write_text(json.dumps(asdict(owner)))
        return True


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
