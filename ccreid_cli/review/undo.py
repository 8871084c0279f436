"""Tables of plain entries, changed by whole actions that can be taken back and done again."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ccreid_cli.core.errors import UsageError


class RefusedAction(UsageError):
    """An action does not fit the images as they are now; nothing was changed."""


@dataclass(frozen=True)
class Change:
    """One entry of one table of the state, before and after; None is no entry."""

    table: str
    key: Hashable
    before: Any
    after: Any


class UndoableTables:
    """Named tables, key -> value, and the actions that changed them.

    Args:
        tables: What they hold before any action.
    """

    def __init__(self, tables: Mapping[str, dict[Any, Any]]) -> None:
        self._tables = dict(tables)
        self._done: list[list[Change]] = []
        self._undone: list[list[Change]] = []
        self._delta: list[Change] = []

    @property
    def can_undo(self) -> bool:
        """Whether there is an action to take back."""
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        """Whether the last action taken back can be done again."""
        return bool(self._undone)

    def snapshot(self) -> dict[str, dict[Any, Any]]:
        """Return a copy of all tables: equal for equal states."""
        return {name: dict(table) for name, table in self._tables.items()}

    @contextmanager
    def _action(self) -> Iterator[None]:
        """Make one action of the changes within; where an error ends it, none of them is made.

        Raises:
            RefusedAction: Nothing was changed.
        """
        self._delta = []
        try:
            yield
        except BaseException:
            self._revert(self._delta)
            raise
        if not self._delta:
            raise RefusedAction("that changes nothing.")
        self._done.append(self._delta)
        self._undone = []

    def take_back(self) -> None:
        """Forget the last action that was applied, as if it had never come; for one that could not be recorded."""
        self._revert(self._done.pop())

    def _go_back(self) -> list[Change]:
        if not self._done:
            raise RefusedAction("there is nothing to undo.")
        delta = self._done.pop()
        self._revert(delta)
        self._undone.append(delta)
        return delta

    def _go_on(self) -> list[Change]:
        if not self._undone:
            raise RefusedAction("there is nothing to redo.")
        delta = self._undone.pop()
        for change in delta:
            self._write(change.table, change.key, change.after)
        self._done.append(delta)
        return delta

    def _revert(self, delta: Sequence[Change]) -> None:
        for change in reversed(delta):
            self._write(change.table, change.key, change.before)

    def _set(self, table: str, key: Hashable, value: Any) -> None:
        before = self._tables[table].get(key)
        if before != value:
            self._delta.append(Change(table, key, before, value))
            self._write(table, key, value)

    def _write(self, table: str, key: Any, value: Any) -> None:
        """Change one entry; None takes it away."""
        entries = self._tables[table]
        if value is None:
            entries.pop(key, None)
        else:
            entries[key] = value
