"""How the engine tells a person what it is doing, without knowing whether that is a terminal, a pipe or nobody.

`cli.progress` holds the implementations; the engine and the data layer only see this interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Task(Protocol):
    """One bar of progress."""

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""

    def note(self, **fields: object) -> None:
        """Show named values beside the bar (loss, clusters, mAP)."""


class Reporter(Protocol):
    """Where messages and progress go."""

    def message(self, text: str) -> None:
        """Say one line."""

    def warning(self, text: str) -> None:
        """Say one line that the user should not miss."""

    def task(self, description: str, total: int, unit: str = "it", done: int = 0) -> AbstractContextManager[Task]:
        """Open a bar; it closes with the context.

        Args:
            description: What the work is called.
            total: How many units there are; 0 when that is not known.
            unit: What one unit is called; "B" shows sizes.
            done: How many of them were done before, as in a resumed run: they say nothing on speed.
        """


class _SilentTask:
    def advance(self, amount: int = 1) -> None:
        pass

    def note(self, **fields: object) -> None:
        pass


class SilentReporter:
    """Says nothing: for tests, other ranks and the Python interface."""

    def message(self, text: str) -> None:
        """Drop the line."""

    def warning(self, text: str) -> None:
        """Drop the line."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Task]:
        """Give a bar that shows nothing."""
        yield _SilentTask()


def track(reporter: Reporter, items: Iterable[T], description: str, total: int, unit: str = "it") -> Iterator[T]:
    """Yield `items` one by one, moving a bar of `reporter` along.

    Args:
        reporter: Where the bar is shown.
        items: What to go through.
        description: The bar's name.
        total: How many items there are.
        unit: What one item is called.

    Yields:
        The items, unchanged.
    """
    with reporter.task(description, total, unit) as task:
        for item in items:
            yield item
            task.advance()
