"""Signs of life: a process that was killed while others wait for it without a time limit is noticed, and named."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

_LONGEST_INTERVAL = 5.0
_SHARE_OF_TIMEOUT = 0.7
"""Of the time-out, after which a silent process counts as gone: those that wait end before the time-out does."""


class Heartbeats:
    """Counts up in the store, from a thread of its own, and watches the counts of the others.

    Args:
        store: The store of the group; a connection of its own is made to it.
        rank: This process.
        world: How many there are.
        timeout: How long a process may be silent, in seconds.
    """

    def __init__(self, store: Store, rank: int, world: int, timeout: float) -> None:
        self._store, self._rank = store, rank
        self._beating: Store = store.clone()
        self._limit = _SHARE_OF_TIMEOUT * timeout
        self._interval = min(_LONGEST_INTERVAL, timeout / 10)
        self._heard = {other: (-1, time.monotonic()) for other in range(world) if other != rank}
        self._checked = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        self._beating.set_timeout(timedelta(seconds=max(1.0, self._interval)))
        while not self._stopped.is_set():
            try:
                self._beating.add(_key(self._rank), 1)
            except RuntimeError:
                return  # the process that serves the store is gone: whoever waits for it finds out
            self._stopped.wait(self._interval)

    def silent(self) -> int | None:
        """Return a process that has not been heard of for too long, or None. Call it again and again while waiting.

        Raises:
            RuntimeError: The store does not answer.
        """
        now = time.monotonic()
        if now - self._checked < self._interval:
            return None
        if now - self._checked > self._limit:  # not waiting so far: whoever was silent then has a fresh start
            self._heard = {other: (count, now) for other, (count, _) in self._heard.items()}
        self._checked = now
        for other, (count, _) in self._heard.items():
            found = self._store.add(_key(other), 0)
            if found != count:
                self._heard[other] = (found, now)
        return next((other for other, (_, since) in self._heard.items() if now - since > self._limit), None)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(timeout=2 * self._interval)


def _key(rank: int) -> str:
    return f"alive-{rank}"
