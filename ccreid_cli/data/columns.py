"""Where a user's own images have their fields: what the columns of a manifest are called.

`ccreid` has its own names for the fields; manifests of other programs are known by their first line; and ``--columns
id=identity,camera=site`` names any others. For a folder, ``--columns id=names`` or ``id=folders`` says where the
identities are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.data.own_labels import Form

FIELDS = ("path", "id", "camera", "split", "query", "gallery", "tracklet", "frame", "time", "checked")
EXAMPLE = "A manifest looks like: path,id,camera,split (first line), then images/a.jpg,17,2,train"
_OWN = ("path", "id", "camera", "split")
_MORE = ("tracklet", "frame", "time", "checked")
"""Fields that a manifest may have beside them, under these names."""
_USE = "Example: --columns id=identity,camera=site; fields: " + ", ".join(FIELDS)
_BOXES = {"bbox", "bbox_x", "x_1", "xmin", "segmentation"}


@dataclass(frozen=True)
class _Program:
    """A program whose manifests are known by their columns.

    Attributes:
        title: What people call it.
        needs: Columns that tell its manifests, in lower case.
        columns: Its columns by field; those that a manifest lacks are left out.
        unknown: How it writes that an identity is not known.
    """

    title: str
    needs: frozenset[str]
    columns: Mapping[str, tuple[str, ...]]
    unknown: str = ""


_PROGRAMS = (
    _Program(
        "open-metric-learning",
        frozenset(("label", "path", "is_query", "is_gallery")),
        {"path": ("path",), "id": ("label",), "camera": ("camera", "cam", "camera_id"), "split": ("split",)}
        | {"query": ("is_query",), "gallery": ("is_gallery",)},
    ),
    _Program(
        "WildlifeDatasets",
        frozenset(("identity", "path")),
        {"path": ("path",), "id": ("identity",), "camera": ("camera",), "split": ("split", "original_split")},
        unknown="unknown",
    ),
)


@dataclass(frozen=True)
class Columns:
    """The columns of one manifest.

    Attributes:
        positions: Places of the columns by field; at least path and id.
        headers: What these columns are called, by field.
        unknown: What also says that there is no identity; empty for nothing.
        is_own: Whether the manifest is of ccreid's own form, in which every field is there.
    """

    positions: Mapping[str, int]
    headers: Mapping[str, str]
    unknown: str = ""
    is_own: bool = True


def parse_columns(text: str | None) -> dict[str, str]:
    """Parse what ``--columns`` is given: ``id=identity,camera=site`` -> {"id": "identity", "camera": "site"}.

    Raises:
        UsageError: It is not of that form, or names a field that there is not.
    """
    columns: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, sign, column = (piece.strip() for piece in part.partition("="))
        if name not in FIELDS or not sign or not column:
            guess = did_you_mean(name, FIELDS)
            raise UsageError(f'--columns: "{part.strip()}" is not FIELD=COLUMN.{f" {guess}" if guess else ""}', _USE)
        if name in columns:
            raise UsageError(f'--columns: "{name}" is given twice.', _USE)
        columns[name] = column
    return columns


def form_of(columns: Mapping[str, str]) -> Form | None:
    """Return where the user says that the identities of a folder are; None where nothing is said.

    Raises:
        UsageError: It is neither in names nor in folders.
    """
    if not columns:
        return None
    if set(columns) != {"id"} or columns["id"] not in (Form.NAMES.value, Form.FOLDERS.value):
        raise UsageError("--columns: a folder takes id=names or id=folders only.", "Columns are those of a manifest.")
    return Form(columns["id"])


def find_columns(
    path: Path, line: int, header: Sequence[str], chosen: Mapping[str, str], reporter: Reporter
) -> Columns:
    """Find the columns of a manifest by its first line.

    Args:
        path: The manifest, for messages.
        line: Number of that line.
        header: Its fields.
        chosen: What the user calls the columns, by field.
        reporter: Told which columns were taken where they are not ccreid's own.

    Raises:
        DataError: A column that is needed is not there, or twice.
    """
    names = [name.strip().lower() for name in header]
    found = _chosen(names, chosen) if chosen else None
    if not chosen and not set(_OWN) <= set(names):
        found = next((_columns_of(program, names) for program in _PROGRAMS if program.needs <= set(names)), None)
    columns = found or Columns({}, {name: name for name in _OWN})
    more = {name: name for name in _MORE if names.count(name) == 1 and name not in columns.headers}
    columns = replace(columns, headers={**columns.headers, **more})
    for field, column in columns.headers.items():
        if names.count(column) != 1:
            raise _absent(path, line, field, column, names)
    if not columns.is_own:
        _say(path, columns, names, reporter)
    positions = {field: names.index(column) for field, column in columns.headers.items()}
    return Columns(positions, columns.headers, columns.unknown, columns.is_own)


def _chosen(names: Sequence[str], chosen: Mapping[str, str]) -> Columns:
    headers = {field: chosen[field].lower() for field in FIELDS if field in chosen}
    headers |= {field: field for field in _OWN if field not in chosen and (field in names or field in ("path", "id"))}
    return Columns({}, headers, is_own=False)


def _columns_of(program: _Program, names: Sequence[str]) -> Columns:
    headers = {
        field: next(column for column in columns if column in names)
        for field, columns in program.columns.items()
        if any(column in names for column in columns)
    }
    return Columns({}, headers, program.unknown, is_own=False)


def _absent(path: Path, line: int, field: str, column: str, names: Sequence[str]) -> DataError:
    what = "twice" if column in names else "not"
    others = [name for name in names if name and name not in _OWN]
    guess = did_you_mean(column, others)
    found = f"its first line is {', '.join(names)!r}.{f' For {column}, {guess}' if guess else ''}"
    return DataError(
        f'{path}, line {line}: the column "{column}" is {what} there; {found}',
        f"{EXAMPLE}. Other names of columns: --columns {field}=COLUMN",
    )


def _say(path: Path, columns: Columns, names: Sequence[str], reporter: Reporter) -> None:
    taken = ", ".join(f"{field}={column}" for field, column in columns.headers.items())
    reporter.message(f"{path}: columns are taken as {taken}.")
    if "split" not in columns.headers and not {"query", "gallery"} & set(columns.headers):
        reporter.message(f"{path}: no column says which images are queries and gallery, so all are for training.")
    boxes = [name for name in names if name in _BOXES]
    if boxes:
        reporter.warning(f"{path}: images are taken whole; the boxes in its column {boxes[0]} are not cut out.")
