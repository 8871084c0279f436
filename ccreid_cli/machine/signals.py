"""Stop signals set a flag; the training loop checks it where it is safe to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])
"""SIGUSR1 is what SLURM sends before it takes a node away."""


class StopRequested(BaseException):
    """Raised at a safe point after a stop signal; the trainer saves and ends. No handler of errors may catch it."""


class StopFlag:
    """Remembers the first stop signal. A Ctrl-C after it ends the process at once.

    Other signals are ignored then, while the run is saved: a cluster repeats its notice, a launcher adds its own.
    """

    def __init__(self) -> None:
        self.signal_number = 0

    def __bool__(self) -> bool:
        return self.signal_number != 0

    def check(self) -> None:
        """Raise when a stop was asked for.

        Raises:
            StopRequested: A signal came.
        """
        if self:
            raise StopRequested

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Set the flag, or leave immediately on a Ctrl-C when it is already set."""
        if not self.signal_number:
            self.signal_number = as_exit_signal(number)
        elif number == signal.SIGINT:
            os._exit(128 + number)


def as_exit_signal(number: int) -> int:
    """Return the signal for the exit code: SIGINT stays, any other counts as SIGTERM (SIGUSR1 is a notice of one)."""
    return int(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Install the flag-only handlers for the block, then put the old ones back.

    Outside the main thread, where Python allows no handlers, the flag is never set.
    """
    flag = StopFlag()
    previous = {}
    try:
        for number in HANDLED:
            previous[number] = signal.signal(number, flag.handle)
    except ValueError:
        pass
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
