"""A CSV or TSV manifest of a user's own images: one line per image with path, id, camera and split."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.names import UNKNOWN, name_of
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.core.words import plural
from ccreid_cli.data.columns import EXAMPLE, Columns, find_columns
from ccreid_cli.data.records import SPLITS, Record
from ccreid_cli.data.table_file import Row, read_table

MANIFEST_ENDINGS = (".csv", ".tsv")
_OTHER_NAMES = {"training": "train", "database": "gallery", "queries": "query", "probe": "query"}
"""What other programs call the splits."""
_HELD_OUT = ("test", "val", "valid", "validation")
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "", "nan", "none")


@dataclass(frozen=True)
class _Row:
    """One image in one split; `split` is empty where it is in none."""

    line: int
    path: str
    id: str
    camera: str
    split: str
    is_in_both: bool = False
    tracklet: str = UNKNOWN
    time: float = math.nan
    checked: bool = False


def read_manifest(path: Path, chosen: Mapping[str, str], reporter: Reporter) -> dict[str, list[Record]]:
    """Read a manifest.

    The first line names the columns path, id, camera and split, in any order, and if need be tracklet, frame or time,
    and checked; more columns are ignored. Manifests of other programs are known by their columns, and `chosen` names
    any others (see `data.columns`). Paths are absolute or relative to the manifest. Identities and cameras are names,
    kept as they are written but for the space around them; an empty field or -1 is none (see `core.names`). Queries and
    gallery images that have an identity need a camera, too, if any line has one.

    Args:
        path: The file.
        chosen: What the user calls the columns, by field.
        reporter: Told which columns were taken, and which images are in no split.

    Returns:
        Images by split.

    Raises:
        DataError: Names file, line and column of the first thing that is wrong.
    """
    table = read_table(path)
    if not table:
        raise DataError(f"{path} is empty.", EXAMPLE)
    columns = find_columns(path, table[0].line, table[0].fields, chosen, reporter)
    if len(table) == 1:
        raise DataError(f"{path} has a header but no images.", EXAMPLE)
    rows = [row for line in table[1:] for row in _rows_of(path, line, columns)]
    _check_rows(path, rows, columns)
    _tell_of_left_out(path, rows, reporter)
    _tell_of_both(path, rows, reporter)
    _tell_of_times(path, rows, columns, reporter)
    records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for row in rows:
        if row.split:
            extra = (row.tracklet, row.time, row.checked)
            records[row.split].append(Record(_relative_name(row.path), row.id, _camera(row), *extra))
    return records


def _rows_of(path: Path, line: Row, columns: Columns) -> list[_Row]:
    """Return what one line says: an image may be query and gallery at once."""
    needed = max(columns.positions.values())
    if len(line.fields) <= needed:
        wanted = ", ".join(columns.headers.values())
        raise DataError(f"{path}, line {line.line}: {len(line.fields)} fields, but {wanted} are needed.", EXAMPLE)
    values = {field: line.fields[position].strip() for field, position in columns.positions.items()}
    try:
        identity, camera = name_of(values["id"]), name_of(values.get("camera", ""))
    except ValueError as error:
        raise DataError(f"{path}, line {line.line}: {error}.", EXAMPLE) from error
    if columns.unknown and identity.lower() == columns.unknown:
        identity = UNKNOWN
    splits = [values["split"].lower()] if columns.is_own else _splits(path, line.line, values, columns)
    extra = (name_of(values.get("tracklet", "")), _time(values), _checked(values))
    return [_Row(line.line, values["path"], identity, camera, split, len(splits) > 1, *extra) for split in splits]


def _time(values: Mapping[str, str]) -> float:
    """Return the number of the frame, else the time in seconds; NaN where there is none."""
    value = values.get("frame") or values.get("time", "")
    with contextlib.suppress(ValueError):
        return float(value)
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(value).timestamp()
    return math.nan


def _checked(values: Mapping[str, str]) -> bool:
    return values.get("checked", "").lower() not in _FALSE


def _splits(path: Path, line: int, values: Mapping[str, str], columns: Columns) -> list[str]:
    """Return the splits that an image of another program's manifest is in; an empty one where it is in none."""
    named = values.get("split", "").lower()
    split = _OTHER_NAMES.get(named, named)
    if split == "train" or not {"query", "gallery"} & set(values):
        return ["" if split in _HELD_OUT else split or ("" if "split" in values else "train")]
    marked = [field for field in ("query", "gallery") if _is_true(path, line, values, columns, field)]
    return marked or [split if split in SPLITS else ""]


def _is_true(path: Path, line: int, values: Mapping[str, str], columns: Columns, field: str) -> bool:
    value = values.get(field, "").lower()
    if value not in (*_TRUE, *_FALSE):
        column = columns.headers[field]
        raise DataError(f'{path}, line {line}: "{value}" in the column "{column}" is neither true nor false.')
    return value in _TRUE


def _camera(row: _Row) -> str:
    """Return the camera; an image that is query and gallery without one is its own, so that it never matches itself."""
    return f"of {_relative_name(row.path)}" if row.is_in_both and row.camera == UNKNOWN else row.camera


def _check_rows(path: Path, rows: Sequence[_Row], columns: Columns) -> None:
    seen: dict[tuple[str, str], int] = {}
    has_cameras = any(row.camera for row in rows)
    for row in rows:
        problem = _problem(row, has_cameras, columns)
        first = seen.setdefault((row.split, os.path.normpath(row.path)), row.line)
        if problem is None and row.split and first != row.line:
            problem = f"{_short(row.path)} is in {row.split} already, on line {first}"
        if problem is not None:
            raise DataError(f"{path}, line {row.line}: {problem}.", EXAMPLE)
    used = [row for row in rows if row.split]
    absent = [row for row in used if not (path.parent / row.path).is_file()]
    if absent:
        raise DataError(
            f"{path}, line {absent[0].line}: {path.parent / _short(absent[0].path)} does not exist"
            f"{f' ({len(absent):,} of {len(used):,} images do not)' if len(absent) > 1 else ''}.",
            "Paths are relative to the manifest's own folder.",
        )


def _problem(row: _Row, has_cameras: bool, columns: Columns) -> str | None:
    if not row.path:
        return "the path is empty"
    if row.split not in SPLITS and (row.split or columns.is_own):
        guess = did_you_mean(row.split, SPLITS)
        return f'the split is "{row.split}", not train, query or gallery{f" ({guess})" if guess else ""}'
    if row.split in ("query", "gallery") and row.id != UNKNOWN and row.camera == UNKNOWN and has_cameras:
        return f"a {row.split} image needs a camera, as other lines have one"
    return None


def _tell_of_left_out(path: Path, rows: Sequence[_Row], reporter: Reporter) -> None:
    left_out = [row for row in rows if not row.split]
    if left_out:
        kind = plural(len(left_out), "image is", "images are")
        reporter.warning(
            f"{path}: {kind} left out, the first {_short(left_out[0].path)} on line {left_out[0].line}: "
            "neither for training nor marked as query or gallery."
        )


def _tell_of_both(path: Path, rows: Sequence[_Row], reporter: Reporter) -> None:
    both = [row for row in rows if row.is_in_both and row.split == "query"]
    if both:
        how = "queries and gallery at once; none is matched with itself"
        reporter.message(f"{path}: {plural(len(both), 'image is', 'images are')} {how}.")


def _tell_of_times(path: Path, rows: Sequence[_Row], columns: Columns, reporter: Reporter) -> None:
    named = [columns.headers[field] for field in ("frame", "time") if field in columns.headers]
    without = sum(math.isnan(row.time) for row in rows)
    if named and without:
        reporter.warning(
            f"{path}: {plural(without, 'image has', 'images have')} neither a number nor a date in the column "
            f"{' or '.join(named)}; nothing is known of what was beside them."
        )


def _relative_name(name: str) -> str:
    path = Path(name)
    return path.as_posix() if path.is_absolute() else Path(os.path.normpath(name)).as_posix()


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
