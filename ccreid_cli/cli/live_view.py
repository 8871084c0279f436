"""The live view at the foot of a terminal: a bar per piece of work, and the newest values below.

Rich draws and measures. The texts beside the bars are ours: rich's own columns name no unit, stand still between two
epochs, and say nothing of the time left during the first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Task as Row
from rich.table import Column
from rich.text import Text
from tqdm import tqdm

from ccreid_cli.cli import output
from ccreid_cli.core.reporter import Task
from ccreid_cli.core.words import printable

REFRESHES_PER_SECOND = 4


class LiveReporter:
    """Bars with rate and time left; those of inner blocks stand below those of outer ones."""

    def __init__(self) -> None:
        self._view: LiveView | None = None

    def message(self, text: str) -> None:
        """Say one line, above the bars."""
        output.say(text)

    def warning(self, text: str) -> None:
        """Say one line that should not be missed, above the bars."""
        output.warn(text)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Task]:
        """Show a bar while the block runs."""
        outermost = self._view is None
        view = self._view = self._view or LiveView()
        if outermost:
            view.start()
        task = view.open_task(description, total, unit, done)
        try:
            yield task
        finally:
            view.remove_task(task.number)
            if outermost:
                view.stop()
                self._view = None


class LiveTask:
    """One bar of a view.

    Args:
        view: Where it is.
        number: What the view calls it.
    """

    def __init__(self, view: LiveView, number: TaskID) -> None:
        self.number = number
        self._view = view
        self._notes: dict[str, object] = {}

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""
        self._view.update(self.number, advance=amount, advanced=self._view.get_time())

    def note(self, **fields: object) -> None:
        """Show named values below the bars."""
        self._notes = {**self._notes, **fields}  # the drawing thread may be reading the old one
        self._view.update(self.number, notes=self._notes)


class _Words(ProgressColumn):
    """A column of text that a function makes from a row."""

    def __init__(self, text_of: Callable[[Row], str]) -> None:
        self._text_of = text_of
        super().__init__(table_column=Column(justify="right", no_wrap=True))

    def render(self, task: Row) -> Text:
        return Text(self._text_of(task))


class LiveView(Progress):
    """Rich's progress display with the run's time left and a line of values.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            _Words(amount_and_rate),
            _Words(lambda row: time_left(row, self.tasks)),
            console=output.talk(),
            transient=True,
            expand=True,
            refresh_per_second=REFRESHES_PER_SECOND,
            speed_estimate_period=float("inf"),  # an epoch may take longer than any period
            get_time=clock,
            redirect_stdout=False,  # results must never end up on stderr
        )

    def open_task(self, description: str, total: int, unit: str, done: int) -> LiveTask:
        """Add a bar; the arguments are those of `Reporter.task`."""
        fields: dict[str, Any] = {"unit": unit, "notes": {}, "advanced": self.get_time()}
        number = self.add_task(printable(description), total=total or None, completed=done, **fields)
        self.advance(number, 0)  # rich measures from the first call on
        return LiveTask(self, number)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Give the bars, then the values of all pieces of work and the GPU memory, as one text that may wrap."""
        rows = self.tasks
        yield self.make_tasks_table(rows)
        notes = {name: value for row in rows for name, value in row.fields["notes"].items()}
        values = [f"{name.replace('_', ' ')} {value}" for name, value in notes.items()]
        if text := "   ".join([*values, *gpu_memory()]):
            yield Text("  " + printable(text), style="dim")


def amount_and_rate(row: Row) -> str:
    """Return how far a piece of work is and how fast it goes: ``3,000/12,936 1,500.0 img/s``."""
    unit, rate = row.fields["unit"], row.speed or 0.0
    if unit == "B":
        of = "" if row.total is None else f"/{decimal(int(row.total))}"
        return f"{decimal(int(row.completed))}{of} {decimal(int(rate))}/s"
    of = "" if row.total is None else f"/{row.total:,}"
    speed = f" {rate:,.1f} {unit}/s" if rate >= 1 else f" {1 / rate:,.1f} s/{unit}" if rate else ""
    return f"{row.completed:,}{of}{speed}"


def time_left(row: Row, rows: list[Row]) -> str:
    """Return the time that the rest of a piece of work takes: ``1:02:03 left``.

    Args:
        row: The piece of work.
        rows: All that run, outer before inner. As long as no unit is done, the piece within tells how long at least.
    """
    if row.total is None:
        return ""
    inner = next((later for later in rows if later.id > row.id), None)
    if row.time_remaining is not None:
        least, seconds = "", row.time_remaining - (row.get_time() - row.fields["advanced"])
    elif inner and inner.speed and inner.total:
        before = (inner.start_time or 0.0) - (row.start_time or 0.0)
        least, seconds = ">", (row.remaining or 0) * (before + inner.total / inner.speed) - (row.elapsed or 0.0)
    else:
        return "–:– left"
    return f"{least}{tqdm.format_interval(max(seconds, 0.0))} left"


def gpu_memory() -> list[str]:
    """Return what this process holds of its GPU's memory, as one text; nothing without a GPU in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    held = {number: torch.cuda.memory_reserved(number) for number in range(torch.cuda.device_count())}
    number = max(held, key=lambda key: held[key])
    total = torch.cuda.get_device_properties(number).total_memory
    return [f"GPU {decimal(held[number])} of {decimal(total)}"]
