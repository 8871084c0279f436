"""The live view at the foot of a terminal: a bar per piece of work, and the newest values below."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from ccreid_cli.cli import output
from ccreid_cli.cli.pace import Pace, as_bytes, as_count, as_time
from ccreid_cli.core.reporter import Task

REFRESHES_PER_SECOND = 4


class LiveReporter:
    """Bars with rate and time left; those of inner blocks stand below those of outer ones."""

    def __init__(self) -> None:
        self._view: _View | None = None

    def message(self, text: str) -> None:
        """Say one line, above the bars."""
        output.say(text)

    def warning(self, text: str) -> None:
        """Say one line that should not be missed, above the bars."""
        output.warn(text)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "it") -> Iterator[Task]:
        """Show a bar while the block runs."""
        outermost = self._view is None
        view = self._view = self._view or _View()
        if outermost:
            view.start()
        task = _LiveTask(view, description, total, unit)
        view.running.append(task)
        try:
            yield task
        finally:
            view.running.remove(task)
            view.remove_task(task.number)
            if outermost:
                view.stop()
                self._view = None


class _LiveTask:
    def __init__(self, view: _View, description: str, total: int, unit: str) -> None:
        self.pace = Pace(total)
        self.unit = unit
        self.notes: dict[str, object] = {}
        self._view = view
        self.number: TaskID = view.add_task(description, total=total or None, count="", left="")

    def advance(self, amount: int = 1) -> None:
        self.pace.advance(amount)
        self._view.advance(self.number, amount)

    def note(self, **fields: object) -> None:
        self.notes = {**self.notes, **fields}  # the drawing thread may be reading the old one


class _View(Progress):
    """Rich's progress display with the run's time left and a line of values."""

    def __init__(self) -> None:
        self.running: list[_LiveTask] = []
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            TextColumn("{task.fields[count]}", markup=False, justify="right"),
            TextColumn("{task.fields[left]}", markup=False, justify="right"),
            console=output.talk(),
            transient=True,
            expand=True,
            refresh_per_second=REFRESHES_PER_SECOND,
            redirect_stdout=False,  # results must never end up on stderr
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Give the bars, then the values of all pieces of work and the GPU memory, as one text that may wrap."""
        running, rows = list(self.running), self.tasks
        fields_of = {row.id: row.fields for row in rows}
        for index, task in enumerate(running):
            inner = running[index + 1] if index + 1 < len(running) else None
            if task.number in fields_of:
                fields_of[task.number].update(count=as_count(task.pace, task.unit), left=_left(task, inner))
        yield self.make_tasks_table(rows)
        notes = {name: value for task in running for name, value in task.notes.items()}
        values = [f"{name.replace('_', ' ')} {value}" for name, value in notes.items()]
        if text := "   ".join([*values, *gpu_memory()]):
            yield Text("  " + text, style="dim")


def _left(task: _LiveTask, inner: _LiveTask | None) -> str:
    seconds = task.pace.seconds_left()
    if seconds is not None:
        return f"{as_time(seconds)} left"
    if inner is not None and (least := task.pace.least_seconds_left(inner.pace)) is not None:
        return f">{as_time(least)} left"
    return "–:– left" if task.pace.total else ""


def gpu_memory() -> list[str]:
    """Return what this process holds of its GPU's memory, as one text; nothing without a GPU in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    held = {number: torch.cuda.memory_reserved(number) for number in range(torch.cuda.device_count())}
    number = max(held, key=lambda key: held[key])
    total = torch.cuda.get_device_properties(number).total_memory
    return [f"GPU {as_bytes(held[number])} of {as_bytes(total)}"]
