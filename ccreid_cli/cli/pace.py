"""How fast a piece of work goes, and how long the rest of it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

HEAD_START_SECONDS = 0.05
"""What is counted this soon after the start was done earlier (a resumed run or download) and says nothing on speed."""


class Pace:
    """Counts units of work against the clock.

    Args:
        total: How many units there are; 0 when that is not known.
        clock: Gives seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self._clock = clock
        self._head_start = 0
        self.started = self.advanced = clock()

    def advance(self, amount: int) -> bool:
        """Count `amount` units as done; tell whether they were done before the start."""
        self.done += amount
        self.advanced = self._clock()
        if early := self.advanced - self.started < HEAD_START_SECONDS:
            self._head_start += amount
        return early

    def rate(self) -> float:
        """Return units per second; 0 before there is something to go by."""
        own = self.done - self._head_start
        return own / (self.advanced - self.started) if own else 0.0

    def seconds_left(self) -> float | None:
        """Return the seconds that the rest takes at this rate; None when that cannot be told."""
        rate = self.rate()
        if not rate or not self.total:
            return None
        return max((self.total - self.done) / rate - (self._clock() - self.advanced), 0.0)

    def least_seconds_left(self, part: Pace) -> float | None:
        """Return what is left at least, going by one part of the first unit; None when that cannot be told.

        Args:
            part: A piece of the unit under way, such as the steps of the first epoch.
        """
        rate = part.rate()
        if not rate or not part.total:
            return None
        unit = part.started - self.advanced + part.total / rate
        return max((self.total - self.done) * unit - (self._clock() - self.advanced), 0.0)


def as_time(seconds: float) -> str:
    """Return ``1:02:03``, or ``02:03`` below an hour."""
    hours, rest = divmod(round(seconds), 3600)
    clock = f"{rest // 60:02}:{rest % 60:02}"
    return f"{hours}:{clock}" if hours else clock


def as_count(pace: Pace, unit: str) -> str:
    """Return how far the work is and how fast it goes; bytes in decimal units."""
    rate = pace.rate()
    if unit == "B":
        of = f"/{as_bytes(pace.total)}" if pace.total else ""
        return f"{as_bytes(pace.done)}{of} {as_bytes(rate)}/s"
    of = f"/{pace.total:,}" if pace.total else ""
    speed = f" {rate:,.1f} {unit}/s" if rate >= 1 else f" {1 / rate:,.1f} s/{unit}" if rate else ""
    return f"{pace.done:,}{of}{speed}"


def as_bytes(number: float) -> str:
    """Return a number of bytes in words: ``1.5 GB``."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
