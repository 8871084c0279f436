"""The arrays of a feature file, whichever form it has, as they are stored: nothing is checked or converted yet.

- ``.npz``: arrays ``features``, ``ids``, ``cams``, and what else `embedding_file` writes.
- ``.npy``: ``features`` alone. Beside it the ``.txt`` and ``.json`` that `embedding_file` writes; or a ``.csv`` with
  one line per row: columns ``id``, ``camera`` and, for names, ``path`` or ``name``.
- ``.parquet``: columns ``feature``, ``id``, ``camera``, ``name``.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import DataError
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.data.table_file import read_table
from ccreid_cli.inference.shard_index import (
    ShardIndex,
    is_feature_folder,
    other_number_of_rows,
    read_whole_index,
    shard_file,
)

FORMAT = "ccreid-features"
PARQUET_KEY = b"ccreid"
FEATURE_FORMS = (".npz", ".npy", ".parquet")
ALL = ("features", "ids", "cams", "names", "split", "about")
"""All arrays that `load_arrays` knows."""

UNREADABLE = (ValueError, KeyError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What NumPy, zipfile and pyarrow raise on a file of arrays that is damaged or something else.

NotImplementedError is zipfile's for compressions that it lacks, which a damaged byte can name.
"""
_COLUMNS = {
    "features": ("feature", "features"),
    "ids": ("id", "ids"),
    "cams": ("camera", "cams"),
    "names": ("name", "names", "path"),
    "split": ("split",),
}
"""What columns of a table are called, by the name of the array that they stand for."""
_ALSO_CALLED = {
    "features": ("feats", "feat", "feature", "embeddings", "embedding", "emb", "vectors", "descriptors", "x"),
    "ids": ("id", "pids", "pid", "person_ids", "person_id", "identities", "identity", "labels", "label", "vids"),
    "cams": ("cam", "camera", "cameras", "camids", "camid", "cam_ids", "cam_id", "camera_ids", "camera_id"),
}
"""What other programs call these arrays: a guess to offer, never to act on."""

_SPLIT_HINT = (
    "`ccreid extract FOLDER` takes any images; with --split (train where the folder has no splits), or of a manifest, "
    "it reads ids and cameras too."
)
_SHARD_HINT = "Extract the features again, with --force."
_NPZ_HINT = (
    "Write it with numpy.savez(path, features=..., ids=..., cams=...): features is a matrix with one row per image; "
    "ids and cams, needed for scores, are one name or number per row, -1 for none."
)


def holds_features(path: Path) -> bool:
    """Whether a path is that of a feature file, which need not exist, or a folder of features; else it is of images."""
    if path.suffix.lower() == ".parquet" and path.is_file():
        return not _is_list(path)
    return path.suffix.lower() in FEATURE_FORMS or is_feature_folder(path)


def _is_list(table: Path) -> bool:
    """Whether a table holds paths of images and no features."""
    pq = require("pyarrow.parquet", "parquet")
    try:
        return not {"feature", "features"} & set(pq.read_schema(table).names)
    except UNREADABLE:
        return False


@dataclass(frozen=True)
class StoredArrays:
    """What a feature file holds.

    Attributes:
        path: The file.
        arrays: Those of `ALL` that are there and were wanted.
        about: What ccreid wrote of them; empty for a file of another program.
        others: What is there besides, as the file calls it.
        hint: How such a file is written.
    """

    path: Path
    arrays: Mapping[str, NDArray[Any]]
    about: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    hint: str = ""

    def take(self, name: str) -> NDArray[Any]:
        """Return an array that must be there.

        Raises:
            DataError: It is not; what is there is named, and which of it may be meant.
        """
        if name in self.arrays:
            return self.arrays[name]
        known = [other for other in ("features", "ids", "cams") if other in self.arrays]
        found = ", ".join(f"`{other}`" for other in (*known, *self.others)) or "nothing at all"
        meant = _guess(name, self.others)
        text = f"{self.path} has no array `{name}`; it has {found}."
        raise DataError(text + (f" Is `{meant}` meant?" if meant else ""), _SPLIT_HINT if self.about else self.hint)


def load_arrays(path: Path, wanted: Collection[str] = ALL, *, in_place: bool = False) -> StoredArrays:
    """Read the arrays of a feature file, without ever unpickling anything.

    Args:
        path: An ``.npz``, ``.npy`` or ``.parquet`` file, or a folder of features.
        wanted: The arrays to read if they are there.
        in_place: Whether the matrix of an ``.npy`` is mapped into memory, not read.

    Raises:
        UsageError: Reading the file needs a package that is missing.
        DataError: The file, or what lies beside it, is missing, empty, damaged or something else.
    """
    if path.is_dir():
        return _load_shards(path, read_whole_index(path), wanted)
    if not path.exists():
        raise DataError(f"{path} does not exist.", "`ccreid extract` makes feature files: .npz, .npy or .parquet.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is an empty file.", _NPZ_HINT)
    if path.suffix.lower() == ".parquet":
        require("pyarrow", "parquet")
    try:
        if path.suffix.lower() == ".parquet":
            return _load_parquet(path, wanted)
        loaded = np.load(
            path, mmap_mode="r" if in_place and path.suffix.lower() == ".npy" else None, allow_pickle=False
        )
        if isinstance(loaded, np.ndarray):
            return _with_neighbours(path, loaded, wanted)
        with loaded:
            return _load_npz(path, loaded, wanted)
    except UNREADABLE as error:
        # NumPy takes whatever it does not know for a pickle, and advises to trust it.
        reason = "it is something else, or a pickle" if "pickle" in str(error) else str(error)
        kind = "Parquet" if path.suffix.lower() == ".parquet" else "NumPy"
        raise DataError(f"{path} is no readable {kind} file: {reason}.", _NPZ_HINT) from error


def _load_shards(folder: Path, index: ShardIndex, wanted: Collection[str]) -> StoredArrays:
    """Read the arrays of all shards of a folder, one after another."""
    assert index.rows is not None
    stops = np.cumsum(index.rows)
    arrays: dict[str, NDArray[Any]] = {}
    parts: list[StoredArrays] = []
    for number, (rows, stop) in enumerate(zip(index.rows, stops.tolist(), strict=True)):
        part = load_arrays(shard_file(folder, number), wanted)
        columns = {name: array for name, array in part.arrays.items() if array.ndim}
        if any(len(array) != rows for array in columns.values()):
            raise other_number_of_rows(part.path, folder, rows)
        if "features" in wanted:
            own = part.take("features")
            joined = arrays.setdefault("features", np.empty((stops[-1], own.shape[1]), own.dtype))
            if own.shape[1] != joined.shape[1]:
                raise DataError(f"{part.path} holds features of another length.", _SHARD_HINT)
            joined[stop - rows : stop] = own
            del columns["features"]
        parts.append(replace(part, arrays=columns))
    for name in {name for part in parts for name in part.arrays}:
        there = [part.arrays.get(name, np.full(rows, "")) for part, rows in zip(parts, index.rows, strict=True)]
        arrays[name] = np.concatenate(there)
    about = {name: value for name, value in parts[0].about.items() if name not in ("state", "broken", "num_images")}
    return StoredArrays(folder, arrays, about, (), _SHARD_HINT)


def _load_npz(path: Path, loaded: Any, wanted: Collection[str]) -> StoredArrays:
    by_ccreid = "about" in loaded.files and "names" in loaded.files
    readable = [name for name in loaded.files if name in wanted and (by_ccreid or name in ("features", "ids", "cams"))]
    arrays = {name: _read_array(path, loaded, name) for name in readable}
    about = json.loads(str(_read_array(path, loaded, "about"))) if by_ccreid else {}
    others = tuple(name for name in loaded.files if name not in ("features", "ids", "cams"))
    return StoredArrays(path, arrays, _own(about), others, _NPZ_HINT)


def _read_array(path: Path, loaded: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    try:
        return loaded[name]
    except ValueError as error:
        raise DataError(
            f"{path}: array `{name}` cannot be read: {error}.", f"Save `{name}` as a plain array of numbers or text."
        ) from error


def _own(about: Any) -> Mapping[str, Any]:
    return about if isinstance(about, dict) and about.get("format") == FORMAT else {}


def _with_neighbours(path: Path, features: NDArray[Any], wanted: Collection[str]) -> StoredArrays:
    """Put an ``.npy`` together with what lies beside it."""
    arrays: dict[str, NDArray[Any]] = {"features": features}
    names_file, about_file, table = (path.with_suffix(suffix) for suffix in (".txt", ".json", ".csv"))
    about: dict[str, Any] = {}
    if names_file.is_file() and about_file.is_file():
        about = dict(_own(json.loads(about_file.read_text(encoding="utf-8"))))
    if about:
        names = names_file.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]
        columns = {"names": names} | {name: about.pop(name, None) for name in ("ids", "cams", "split")}
        arrays |= {name: _objects(values) for name, values in columns.items() if values is not None}
    others: tuple[str, ...] = ()
    if table.is_file() and not {"ids", "cams"} <= arrays.keys():
        columns, others = _read_columns(table, len(features) if features.ndim else 0, path)
        if "names" in arrays and "names" in columns:
            _check_order(path, table, arrays["names"].tolist(), columns["names"])
        arrays = {name: _objects(values) for name, values in columns.items()} | arrays
    hint = f"Put {table.name} beside it, with the columns id and camera and one line per row, or write an .npz."
    kept = {name: array for name, array in arrays.items() if name in wanted}
    return StoredArrays(path, kept, about, others, hint)


def _objects(values: Iterable[Any]) -> NDArray[Any]:
    return np.array(list(values), dtype=object)


def _read_columns(table: Path, num_rows: int, matrix: Path) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Read the known columns of a table that describes the rows of a matrix; also the names of all others.

    Raises:
        DataError: It cannot be read, lacks fields, or has another number of lines than the matrix has rows.
    """
    rows = read_table(table)
    header = [name.strip() for name in rows[0].fields] if rows else []
    places = _places(header)
    others = tuple(name for name in header if header.index(name) not in places.values())
    if not places.keys() & {"ids", "cams"}:
        return {}, others
    rows = rows[1:]
    if len(rows) != num_rows:
        raise DataError(
            f"{table} has {len(rows):,} lines below its header, but {matrix} has {num_rows:,} rows.",
            f"It must describe each row of {matrix.name} in a line, in order; rename it if it is about something else.",
        )
    for row in rows:
        if len(row.fields) <= max(places.values()):
            raise DataError(f"{table}, line {row.line}: {len(row.fields)} fields, but the header has {len(header)}.")
    return {name: [row.fields[place].strip() for row in rows] for name, place in places.items()}, others


def _places(header: list[str]) -> dict[str, int]:
    """Return where each known column is."""
    lower = [name.lower() for name in header]
    found = {
        array: [name for name in names if name in lower] for array, names in _COLUMNS.items() if array != "features"
    }
    return {array: lower.index(names[0]) for array, names in found.items() if names}


def _check_order(path: Path, table: Path, names: list[str], listed: list[str]) -> None:
    for row, (name, other) in enumerate(zip(names, listed, strict=False)):
        if name != other:
            raise DataError(
                f"{table} is not in the order of {path}: it has {other!r} for row {row}, which is {name!r}.",
                "Write its lines in the order of the rows, or rename it if it is about something else.",
            )


def _load_parquet(path: Path, wanted: Collection[str]) -> StoredArrays:
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    about = json.loads((schema.metadata or {}).get(PARQUET_KEY, b"{}"))
    called = {array: next((name for name in names if name in schema.names), "") for array, names in _COLUMNS.items()}
    read = {array: name for array, name in called.items() if name and array in wanted}
    table = pq.read_table(path, columns=list(read.values()))
    arrays = {
        array: _matrix(path, name, table[name]) if array == "features" else _parquet_names(table[name])
        for array, name in read.items()
    }
    others = tuple(name for name in schema.names if name not in called.values())
    hint = "A table of features has the columns feature (a list of numbers), id and camera."
    return StoredArrays(path, arrays, _own(about), others, hint)


def _matrix(path: Path, name: str, column: Any) -> NDArray[Any]:
    """Return a column of lists as a matrix.

    Raises:
        DataError: Its values are no lists of numbers, all of one length.
    """
    import pyarrow as pa

    lists = column.combine_chunks()
    is_list = any(
        check(lists.type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
    values = lists.flatten() if is_list else None
    width = len(values) // max(1, len(lists)) if values is not None else 0
    lengths = set(lists.value_lengths().to_pylist()) if is_list else set()
    if values is None or lengths - {width} or values.null_count:
        raise DataError(f"{path}: column `{name}` must hold a list of numbers per row, all of one length.")
    rows: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(len(lists), width)
    return rows


def _parquet_names(column: Any) -> NDArray[Any]:
    """Return a column of names or numbers; where it is empty there is none."""
    import pyarrow as pa

    values = column.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):  # kept in their type: it says how exact they are
        numbers: NDArray[Any] = values.fill_null(-1).to_numpy(zero_copy_only=False)
        return numbers
    return _objects(values.to_pylist())


def _guess(name: str, others: Collection[str]) -> str:
    """Return which of the arrays that are there may be the one that is missing, or nothing."""
    by_lower = {other.lower(): other for other in others}
    for alias in _ALSO_CALLED.get(name, ()):
        if alias in by_lower:
            return by_lower[alias]
    candidates = [other for other in others if other not in ALL]
    return did_you_mean(name, candidates).removeprefix('did you mean "').removesuffix('"?')
