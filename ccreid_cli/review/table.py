"""The CSV of identities: read it, and write it again with what was decided, keeping every other column."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.core.names import name_of
from ccreid_cli.data.table_file import read_table

_EXAMPLE = "The first line names the columns, at least path and id, as `ccreid identify -o identities.csv` writes them."
_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no")


@dataclass(frozen=True)
class IdentityTable:
    """One image per line.

    Attributes:
        path: The file; image paths are relative to its folder.
        header: Names of the columns, ``checked`` among them.
        rows: N lines, as many fields as the header.
        names: N names of identities, empty for none.
        checked: N flags of images that a person has answered for.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    names: list[str]
    checked: list[bool]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def images(self) -> list[str]:
        """The N paths as they are written."""
        column = self.header.index("path")
        return [row[column] for row in self.rows]

    @property
    def files(self) -> list[Path]:
        """The N image files."""
        return [self.path.parent / name for name in self.images]

    def column(self, name: str) -> list[str]:
        """Return the N values of a column; empty texts where there is none."""
        if name not in self.header:
            return [""] * len(self.rows)
        position = self.header.index(name)
        return [row[position] for row in self.rows]

    def write(self, names: Sequence[str], checked: Sequence[bool]) -> None:
        """Write the file again with these identities and flags, whole or not at all.

        Raises:
            DataError: It cannot be written.
        """
        id_column, checked_column = self.header.index("id"), self.header.index("checked")
        with (
            atomic_path(self.path) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            writer = csv.writer(
                file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", lineterminator="\n"
            )
            writer.writerow(self.header)
            for row, name, flag in zip(self.rows, names, checked, strict=True):
                fields = list(row)
                fields[id_column], fields[checked_column] = name, str(int(flag))
                writer.writerow(fields)


def read_identities(path: Path) -> IdentityTable:
    """Read a CSV (or TSV) with the columns path and id; ``checked`` is added where it is missing.

    Raises:
        DataError: Names file and line of what is wrong.
    """
    table = read_table(path)
    header = [field.strip() for field in table[0].fields] if table else []
    for column in ("path", "id"):
        if header.count(column) != 1:
            raise DataError(
                f'{path} has {"no" if column not in header else "more than one"} column "{column}".', _EXAMPLE
            )
    if len(table) == 1:
        raise DataError(f"{path} has a header but no images.", _EXAMPLE)
    if "checked" not in header:
        header.append("checked")
    rows = [[*line.fields, *[""] * (len(header) - len(line.fields))][: len(header)] for line in table[1:]]
    names, checked = [], []
    for line, row in zip(table[1:], rows, strict=True):
        values = dict(zip(header, map(str.strip, row), strict=True))
        if not values["path"]:
            raise DataError(f"{path}, line {line.line}: the path is empty.", _EXAMPLE)
        if values["checked"].lower() not in (*_TRUE, *_FALSE):
            raise DataError(f'{path}, line {line.line}: checked is "{values["checked"]}", neither 1 nor 0.')
        names.append(name_of(values["id"]))
        checked.append(values["checked"].lower() in _TRUE)
    return IdentityTable(path, header, rows, names, checked)


def digest_of(*columns: Sequence[object]) -> str:
    """Return the SHA-256 of columns of a table, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()
