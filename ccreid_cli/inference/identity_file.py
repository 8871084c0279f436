"""Who is who, line by line, as `ccreid identify` writes it: CSV, which ``-d`` reads again, or JSON.

The CSV has the columns ``path,id,camera,split,confidence``, and ``checked`` where a person has looked. The id is empty
where an image is in no identity. A path is relative to the file's own folder where the image lies below it, else
absolute.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_write_text
from ccreid_cli.core.names import UNKNOWN

COLUMNS = ("path", "id", "camera", "split", "confidence")
CHECKED = "checked"
_DIGITS = 4


@dataclass(frozen=True)
class IdentityRow:
    """One image.

    Attributes:
        path: Its file, as the table has it.
        id: Name of its identity; `UNKNOWN` for none.
        camera: Name of its camera, likewise.
        split: ``train``, ``query`` or ``gallery``.
        confidence: Similarity to its own identity minus that to the next one; None where it is in none. Of an unsure
            image: its similarity to the nearest known identity minus the threshold.
        checked: Whether a person has confirmed the identity, or that there is none.
        nearest: The known identity that an unsure image may be of; `UNKNOWN` of all others.
    """

    path: str
    id: str
    camera: str
    split: str
    confidence: float | None = None
    checked: bool = False
    nearest: str = UNKNOWN

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; no identity and no camera are null."""
        known = {"path": self.path, "id": self.id or None, "camera": self.camera or None, "split": self.split}
        found = {**known, "confidence": None if self.confidence is None else round(self.confidence, _DIGITS)}
        if self.nearest:
            found["unsure"] = self.nearest
        return found | ({CHECKED: True} if self.checked else {})


def check_identity_form(path: Path) -> None:
    """Refuse, before any work is done, a file that identities are not written to.

    Raises:
        UsageError: The ending is neither ``.csv`` nor ``.json``.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise UsageError(f"{path}: identities are written as .csv or .json.", "Choose one, as in -o identities.csv.")


def check_paths(names: Iterable[str]) -> None:
    """Refuse, before any work is done, names of images that a CSV could not give back.

    Raises:
        DataError: A name holds bytes that are no UTF-8 text, or a line break, or begins or ends with a space.
    """
    for name in names:
        readable = name.isascii() or name == name.encode("utf-8", "replace").decode()
        if not readable or "\n" in name or "\r" in name or "\0" in name or name != name.strip():
            raise DataError(
                f"the name of the image {name} holds a line break, a space at its end or bytes that are no UTF-8 text.",
                "A CSV cannot hold it: rename the image.",
            )


def path_from(folder: Path, image: Path) -> str:
    """Return how a table in `folder` names an image: relative where it lies below the folder, else absolute."""
    base, file = (Path(os.path.normpath(path.absolute())) for path in (folder, image))
    return (file.relative_to(base) if file.is_relative_to(base) else file).as_posix()


def identities_as_csv(rows: Sequence[IdentityRow]) -> str:
    """Return the lines of the CSV, with the column ``checked`` where any row is."""
    with_checked = any(row.checked for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, CHECKED] if with_checked else COLUMNS)
    for row in rows:
        confidence = "" if row.confidence is None else f"{row.confidence:.{_DIGITS}f}"
        fields = [row.path, row.id, row.camera, row.split, confidence]
        writer.writerow([*fields, "1" if row.checked else ""] if with_checked else fields)
    return text.getvalue()


def write_identities(path: Path, rows: Sequence[IdentityRow]) -> None:
    """Write identities in the form that the ending names, whole or not at all.

    Raises:
        UsageError: As `check_identity_form`.
        DataError: The file cannot be written.
    """
    check_identity_form(path)
    if path.suffix.lower() == ".csv":
        atomic_write_text(path, identities_as_csv(rows))
    else:
        atomic_write_text(path, json.dumps({"images": [row.as_json() for row in rows]}, indent=1) + "\n")
