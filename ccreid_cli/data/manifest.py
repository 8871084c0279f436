"""A CSV or TSV manifest of a user's own images: one line per image with path, id, camera and split."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.names import UNKNOWN, name_of
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.data.records import SPLITS, Record

MANIFEST_ENDINGS = (".csv", ".tsv")
COLUMNS = ("path", "id", "camera", "split")
_EXAMPLE = "A manifest looks like: path,id,camera,split (first line), then images/a.jpg,17,2,train"


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    id: str
    camera: str
    split: str


def read_manifest(path: Path) -> dict[str, list[Record]]:
    """Read a manifest.

    The first line names the columns path, id, camera and split, in any order; more columns are ignored. Paths are
    absolute or relative to the manifest. Identities and cameras are names, kept as they are written but for the space
    around them; an empty field or -1 is none (see `core.names`). Queries and gallery images that have an identity need
    a camera, too, if any line has one.

    Args:
        path: The file; ``.tsv`` is split at tabs, ``.csv`` at commas or semicolons, whichever its header uses.

    Returns:
        Images by split.

    Raises:
        DataError: Names file and line of the first thing that is wrong.
    """
    rows = _read_rows(path)
    _check_rows(path, rows)
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for row in rows:
        records[row.split].append(Record(_relative_name(row.path, path.parent), row.id, row.camera))
    return records


def _read_rows(path: Path) -> list[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not text:
        raise DataError(f"{path} is empty.", _EXAMPLE)
    # Line by line with their ends: a name in quotes may hold a line break.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=_delimiter(path, text.partition("\n")[0]))
    positions = _columns(path, next(reader))
    rows = []
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        if len(fields) <= max(positions.values()):
            raise DataError(
                f"{path}, line {reader.line_num}: {len(fields)} fields, but {', '.join(COLUMNS)} are needed.", _EXAMPLE
            )
        values = {column: fields[position].strip() for column, position in positions.items()}
        rows.append(_row(path, reader.line_num, values))
    if not rows:
        raise DataError(f"{path} has a header but no images.", _EXAMPLE)
    return rows


def _row(path: Path, line: int, values: Mapping[str, str]) -> _Row:
    try:
        identity, camera = name_of(values["id"]), name_of(values["camera"])
    except ValueError as error:
        raise DataError(f"{path}, line {line}: {error}.", _EXAMPLE) from error
    return _Row(line, values["path"], identity, camera, values["split"].lower())


def _delimiter(path: Path, header: str) -> str:
    if path.suffix.lower() == ".tsv" or "\t" in header:
        return "\t"
    return ";" if header.count(";") > header.count(",") else ","


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    for column in COLUMNS:
        if names.count(column) != 1:
            what = "twice" if column in names else "not"
            guess = did_you_mean(column, [name for name in names if name and name not in COLUMNS])
            found = f"its first line is {', '.join(names)!r}"
            guess = f" For {column}, {guess}" if guess else ""
            raise DataError(f'{path}, line 1: the column "{column}" is {what} there; {found}.{guess}', _EXAMPLE)
    return {column: names.index(column) for column in COLUMNS}


def _check_rows(path: Path, rows: list[_Row]) -> None:
    seen: dict[tuple[str, str], int] = {}
    has_cameras = any(row.camera for row in rows)
    for row in rows:
        problem = _problem(row, has_cameras)
        first = seen.setdefault((row.split, os.path.normpath(row.path)), row.line)
        if problem is None and first != row.line:
            problem = f"{row.path} is in {row.split} already, on line {first}"
        if problem is not None:
            raise DataError(f"{path}, line {row.line}: {problem}.", _EXAMPLE)
    absent = [row for row in rows if not (path.parent / row.path).is_file()]
    if absent:
        raise DataError(
            f"{path}, line {absent[0].line}: {path.parent / absent[0].path} does not exist"
            f"{f' ({len(absent):,} of {len(rows):,} images do not)' if len(absent) > 1 else ''}.",
            "Paths are relative to the manifest's own folder.",
        )


def _problem(row: _Row, has_cameras: bool) -> str | None:
    if not row.path:
        return "the path is empty"
    if row.split not in SPLITS:
        guess = did_you_mean(row.split, SPLITS)
        return f'the split is "{row.split}", not train, query or gallery{f" ({guess})" if guess else ""}'
    if row.split != "train" and row.id != UNKNOWN and row.camera == UNKNOWN and has_cameras:
        return f"a {row.split} image needs a camera, as other lines have one"
    return None


def _relative_name(name: str, folder: Path) -> str:
    path = Path(name)
    return path.as_posix() if path.is_absolute() else Path(os.path.normpath(name)).as_posix()
