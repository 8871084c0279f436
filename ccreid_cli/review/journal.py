"""Every action as one line of a file beside the CSV, on disk before it counts as done.

The first line holds the identities before any action, so that the journal alone gives the present state. Other lines
are an action with its number (the revision it leads to), or a note that the CSV was written, with its digest.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_write_text
from ccreid_cli.review.decisions import Decisions
from ccreid_cli.review.table import IdentityTable, digest_of

SUFFIX = ".journal.jsonl"
FORMAT = "ccreid review 1"


class StaleRevision(UsageError):
    """The window that sent an action did not know of another window's."""


class Journal:
    """The decisions on one CSV, and the file that keeps them.

    Args:
        table: The CSV as it is on disk.

    Attributes:
        path: The file of actions.
        decisions: The state after all actions.
        revision: How many actions there were, undo and redo counted.
        written_revision: The revision that the CSV shows; -1 for none.

    Raises:
        DataError: The file belongs to other identities, is damaged, or cannot be written.
    """

    def __init__(self, table: IdentityTable) -> None:
        self.path = table.path.with_name(table.path.name + SUFFIX)
        self._table = table
        self.revision = 0
        if not self.path.exists():
            atomic_write_text(self.path, json.dumps(_base(table)) + "\n")
        lines = _whole_lines(self.path)
        self.decisions, known = self._replay(lines)
        self._written = digest_of(table.names, table.checked)
        if self._written not in known:
            raise DataError(
                f"{table.path} was changed by something else after {self.path} was begun.",
                f"To review it as it is now, move {self.path.name} away; to go on, bring the former CSV back.",
            )
        self.written_revision = self.revision if self._written == digest_of(*self.decisions.rows()) else -1
        self._file: FileIO = self.path.open("r+b", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)

    def _replay(self, lines: list[dict[str, Any]]) -> tuple[Decisions, set[str]]:
        base = lines[0] if lines else {}
        if base.get("format") != FORMAT or base.get("images") != digest_of(self._table.images):
            raise DataError(
                f"{self.path} belongs to another list of images than {self._table.path}.",
                f"Move {self.path.name} away to begin anew.",
            )
        decisions = Decisions(base["ids"], [bool(flag) for flag in base["checked"]])
        known = {digest_of(base["ids"], [bool(flag) for flag in base["checked"]])}
        for number, line in enumerate(lines[1:], start=2):
            if "written" in line:
                known.add(line["written"])
                continue
            try:
                decisions.apply(line["action"])
                self.revision = int(line["revision"])
            except (UsageError, KeyError, TypeError, ValueError) as error:
                raise DataError(f"{self.path}, line {number}, is no action that fits: {error}.") from error
        return decisions, known

    @property
    def table_path(self) -> Path:
        """The CSV."""
        return self._table.path

    def act(self, action: Mapping[str, Any], revision: int) -> tuple[int, ...]:
        """Do an action and put it on disk; both or neither.

        Args:
            action: As `Decisions.apply`.
            revision: What the window that sends it has seen.

        Returns:
            The identities that changed.

        Raises:
            StaleRevision: There was an action that the window has not seen.
            RefusedAction: The action does not fit.
            DataError: It cannot be written; nothing was changed.
        """
        if revision != self.revision:
            raise StaleRevision(
                "another window changed something first; the page now shows it.", "Look again, and repeat the action."
            )
        changed = self.decisions.apply(action)
        try:
            self._append({"revision": self.revision + 1, "action": dict(action)})
        except DataError:
            self._undo_unrecorded(action)
            raise
        self.revision += 1
        return changed

    def _undo_unrecorded(self, action: Mapping[str, Any]) -> None:
        opposite = {"undo": "redo", "redo": "undo"}.get(str(action.get("do")))
        if opposite:
            self.decisions.apply({"do": opposite})
        else:
            self.decisions.take_back()

    def write_table(self) -> bool:
        """Write the CSV where it does not yet say what was decided; tell whether it was written.

        Raises:
            DataError: It cannot be written; the journal still has everything.
        """
        names, checked = self.decisions.rows()
        digest = digest_of(names, checked)
        if digest == self._written:
            self.written_revision = self.revision
            return False
        self._append({"written": digest, "revision": self.revision})
        self._table.write(names, checked)
        self._written, self.written_revision = digest, self.revision
        return True

    def _append(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            self._file.seek(self._end)
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise DataError(
                f"could not write {self.path}: {error.strerror or error}.", "Nothing was changed. Free some space."
            ) from error
        self._end += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _base(table: IdentityTable) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "images": digest_of(table.images),
        "ids": table.names,
        "checked": [int(flag) for flag in table.checked],
    }


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a journal, and cut off a last one that a crash left torn.

    Raises:
        DataError: Another line is damaged.
    """
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    lines = []
    for number, text in enumerate(data[:end].splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}, line {number}, is damaged: {error}.", "Put a whole copy in its place.") from error
        if not isinstance(line, dict):
            raise DataError(f"{path}, line {number}, is no action.", "Put a whole copy in its place.")
        lines.append(line)
    return lines
