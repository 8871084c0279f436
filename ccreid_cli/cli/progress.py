"""Reporters: a live view on a terminal, plain lines in a pipe, JSON lines for programs, nothing at all."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ccreid_cli.cli import output
from ccreid_cli.cli.json_lines import JsonStream, write_event
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.reporter import Reporter, SilentReporter, Task
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.core.words import printable
from ccreid_cli.machine.ranks import is_main_process

STYLES = ("auto", "rich", "plain", "json", "none")


def make_reporter(style: str = "auto") -> Reporter:
    """Return the reporter for a style: ``auto`` is rich on a terminal, plain elsewhere; only the first process speaks.

    Raises:
        UsageError: The style is not known.
    """
    if style not in STYLES:
        guess = did_you_mean(style, STYLES) or f"Use one of: {', '.join(STYLES)}."
        raise UsageError(f'--progress "{style}" is not known.', guess)
    if style == "none" or not is_main_process():
        return SilentReporter()
    if style == "auto":
        style = "rich" if _moves_its_cursor() else "plain"
    if style == "rich":
        from ccreid_cli.cli.live_view import LiveReporter

        return LiveReporter()
    return JsonReporter() if style == "json" else PlainReporter()


def _moves_its_cursor() -> bool:
    """Whether stderr is a terminal that bars can be redrawn on; a notebook's cell that runs a command is none."""
    return sys.stderr.isatty() and not output.talk().is_dumb_terminal and "JPY_PARENT_PID" not in os.environ


class PlainReporter:
    """Plain lines by tqdm, a few per bar, for pipes and log files; live bars in a notebook."""

    SECONDS_BETWEEN_LINES = 10.0

    def message(self, text: str) -> None:
        """Say one line."""
        output.say(text)

    def warning(self, text: str) -> None:
        """Say one line that should not be missed."""
        output.warn(text)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Task]:
        """Show a line every ten seconds while the block runs; short blocks show nothing."""
        from tqdm.auto import tqdm

        style: dict[str, Any] = {} if _in_notebook() else self._as_lines()
        style |= {"unit": unit, "unit_scale": unit == "B", "leave": False, "miniters": 1}
        bar = tqdm(desc=printable(description), total=total or None, initial=done, **style)
        try:
            yield _TqdmTask(bar)
        finally:
            bar.close()

    def _as_lines(self) -> dict[str, Any]:
        return {
            "mininterval": self.SECONDS_BETWEEN_LINES,
            "maxinterval": self.SECONDS_BETWEEN_LINES,
            "delay": self.SECONDS_BETWEEN_LINES,
            "position": 0,  # nested bars would otherwise move the cursor
            "ascii": True,
            "file": _LineStream(),
            "bar_format": "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%) {rate_fmt}, {remaining} left{postfix}",
        }


def _in_notebook() -> bool:
    """Whether this very process is a notebook's kernel."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


class _LineStream:
    """Turns tqdm's rewritten line into lines of their own."""

    def write(self, text: str) -> None:
        line = printable(text.strip("\r\n "))
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


class _TqdmTask:
    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._notes: dict[str, object] = {}

    def advance(self, amount: int = 1) -> None:
        self._bar.update(amount)

    def note(self, **fields: object) -> None:
        self._notes.update(fields)
        self._bar.set_postfix(self._notes, refresh=False)


class JsonReporter:
    """One JSON object per line on stderr, for programs that watch a run."""

    def message(self, text: str) -> None:
        """Write an object with event "message"."""
        self.write("message", text=text)

    def warning(self, text: str) -> None:
        """Write an object with event "warning"."""
        self.write("warning", text=text)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Task]:
        """Write objects with event "begin", "progress" (at most one a second) and "end"."""
        self.write("begin", task=description, done=done, total=total, unit=unit)
        task = _JsonTask(self, description, total, done)
        try:
            yield task
        finally:
            self.write("end", **task.state())

    def write(self, event: str, **fields: object) -> None:
        """Write one object, with the time in seconds since 1970."""
        write_event(sys.stderr.stream if isinstance(sys.stderr, JsonStream) else sys.stderr, event, **fields)


class _JsonTask:
    def __init__(self, reporter: JsonReporter, description: str, total: int, done: int) -> None:
        self._reporter, self._description = reporter, description
        self._total, self._done, self._done_before = total, done, done
        self._notes: dict[str, object] = {}
        self._started = time.monotonic()
        self._written = 0.0

    def state(self) -> dict[str, object]:
        """Return how far the work is; the seconds left are null until there is something to go by."""
        left = None
        if self._total and (counted := self._done - self._done_before):
            left = round((time.monotonic() - self._started) / counted * (self._total - self._done), 1)
        task = {"task": self._description, "done": self._done, "total": self._total}
        return {**task, "seconds_left": left, "notes": self._notes}

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._written >= 1:
            self._written = now
            self._reporter.write("progress", **self.state())

    def note(self, **fields: object) -> None:
        self._notes.update(fields)
