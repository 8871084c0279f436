"""Features with their names, the model they come from and how its images were prepared, as files.

Three forms, by the file's ending:

- ``.npz``: arrays ``features`` (N, D) float32 unit rows, ``names`` (N,), where known ``ids``, ``cams`` and ``split``
  (N,), and ``about``, the JSON text described below. ``ccreid score`` and ``ccreid cluster`` read it.
- ``.npy``: the matrix alone, to be memory-mapped; beside it ``.txt`` (one name per line) and ``.json`` (the rest).
- ``.parquet``: columns ``name``, ``feature`` (a list of D floats), where known ``id``, ``camera``, ``split``; the JSON
  text is the schema metadata ``ccreid``.

The JSON text says ``model`` (fingerprint), ``source`` (checkpoint), ``preprocess`` and ``root`` (folder of the names).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.core.names import names_in
from ccreid_cli.inference.feature_file import UNREADABLE, normalize_rows, read_features
from ccreid_cli.inference.image_list import ImageList

FORMAT = "ccreid-features"
_PARQUET_KEY = b"ccreid"


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """N features and what is known of them.

    Attributes:
        features: (N, D) float32 unit rows, in RAM or memory-mapped.
        images: The N images they come from.
        about: What made them: ``model``, ``source``, ``preprocess``; empty for a file that ccreid did not write.
    """

    features: NDArray[np.float32]
    images: ImageList
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.features)


def check_form(path: Path) -> None:
    """Refuse, before any work is done, a file that could not be written.

    Raises:
        UsageError: The ending is none of the three, or a package is missing.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(
            f"{path}: features are written as {', '.join(_WRITERS)}.", "Choose one with -o, as in -o f.npz."
        )
    if path.suffix.lower() == ".parquet":
        require("pyarrow", "parquet")


def check_image_names(path: Path, images: ImageList) -> None:
    """Refuse, before any work is done, names that the form of `path` cannot hold.

    Raises:
        DataError: The ending is ``.npy``, which has one line for each name, and a name holds a line break.
    """
    broken = next((name for name in images.names if "\n" in name or "\r" in name), None)
    if broken is not None and path.suffix.lower() == ".npy":
        raise DataError(
            f"{path}: the name of the image {broken} holds a line break.",
            "Write .npz or .parquet, or rename the image.",
        )


def files_of(path: Path) -> tuple[Path, ...]:
    """Return every file that `write_embeddings` makes for `path`."""
    if path.suffix.lower() == ".npy":
        return path, path.with_suffix(".txt"), path.with_suffix(".json")
    return (path,)


def write_embeddings(path: Path, content: EmbeddingFile) -> None:
    """Write features in the form that the ending names; each file appears whole or not at all.

    Raises:
        UsageError: As `check_form`.
        DataError: The file cannot be written.
    """
    check_form(path)
    about = {"format": FORMAT, "version": 1, **content.about, "root": str(content.images.root.absolute())}
    _WRITERS[path.suffix.lower()](path, content, about)


def _columns(images: ImageList) -> dict[str, NDArray[Any]]:
    """Return the arrays that are known of the images, besides their names."""
    known = {"ids": images.ids, "cams": images.cams, "split": images.splits}
    return {name: np.array(values, dtype=np.str_) for name, values in known.items() if values is not None}


def _write_npz(path: Path, content: EmbeddingFile, about: Mapping[str, Any]) -> None:
    arrays: dict[str, Any] = {"names": np.array(content.images.names, dtype=np.str_), **_columns(content.images)}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, features=content.features, **arrays, about=np.array(json.dumps(about)))


def _write_npy(path: Path, content: EmbeddingFile, about: Mapping[str, Any]) -> None:
    check_image_names(path, content.images)
    lines = "".join(name + "\n" for name in content.images.names)
    columns = {name: values.tolist() for name, values in _columns(content.images).items()}
    # All appear together: part of a set would make the next attempt ask for --force.
    with ExitStack() as stack:
        matrix, names, rest = (stack.enter_context(atomic_path(file)) for file in files_of(path))
        names.write_bytes(lines.encode("utf-8", "surrogateescape"))
        rest.write_text(json.dumps({**about, **columns}) + "\n", encoding="utf-8")
        with matrix.open("wb") as file:
            np.save(file, content.features)


def _write_parquet(path: Path, content: EmbeddingFile, about: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = content.features.shape[1]
    columns = _columns(content.images)
    data = {"name": pa.array([name.encode("utf-8", "replace").decode() for name in content.images.names])}
    data |= {new: pa.array(columns[old]) for old, new in _PARQUET_COLUMNS.items() if old in columns}
    data["feature"] = pa.FixedSizeListArray.from_arrays(pa.array(content.features.reshape(-1)), dim)
    table = pa.table(data).replace_schema_metadata({_PARQUET_KEY: json.dumps(about).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=8192)


_PARQUET_COLUMNS = {"ids": "id", "cams": "camera", "split": "split"}
_WRITERS: dict[str, Callable[[Path, EmbeddingFile, Mapping[str, Any]], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}


def read_embeddings(path: Path) -> EmbeddingFile:
    """Read features of any of the three forms; an ``.npy`` matrix is memory-mapped, not copied.

    Files that ccreid did not write are taken too, as far as `feature_file.read_features` takes them; their rows
    are normalised and their images are called by number.

    Raises:
        UsageError: Reading the file needs a package that is missing.
        DataError: The file is missing, damaged, or its parts do not fit together.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist.", "`ccreid extract` makes feature files.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            check_form(path)
            found = _read_parquet(path)
        else:
            found = _read_npy(path) if suffix == ".npy" else _read_npz(path)
    except UNREADABLE as error:
        raise DataError(
            f"{path} is no readable feature file: {error}.", "Make it again with `ccreid extract`."
        ) from error
    found = found or _read_foreign(path)
    lengths = {len(found.features), len(found.images), *map(len, _columns(found.images).values())}
    if len(lengths) > 1 or found.features.ndim != 2:
        raise DataError(f"{path}: features, names, ids and cameras differ in number.", "Make it again.")
    return found


def _assemble(
    features: NDArray[Any], names: Any, columns: Mapping[str, Any], about: dict[str, Any]
) -> EmbeddingFile | None:
    """Put the parts of a file together; None where they are not ccreid's."""
    if about.get("format") != FORMAT or features.dtype != np.float32:
        return None
    ids, cams = (None if columns.get(key) is None else names_in(np.asarray(columns[key])) for key in ("ids", "cams"))
    splits = None if columns.get("split") is None else np.asarray(columns["split"], dtype=np.str_)
    images = ImageList(Path(about.pop("root", ".")), tuple(map(str, names)), ids, cams, splits)
    return EmbeddingFile(features, images, about)


def _read_npz(path: Path) -> EmbeddingFile | None:
    with np.load(path, allow_pickle=False) as loaded:
        if "about" not in loaded or "features" not in loaded or "names" not in loaded:
            return None
        columns = {name: loaded[name] for name in ("ids", "cams", "split") if name in loaded}
        about = json.loads(str(loaded["about"]))
        return _assemble(np.ascontiguousarray(loaded["features"]), loaded["names"].tolist(), columns, about)


def _read_npy(path: Path) -> EmbeddingFile | None:
    names_file, about_file = path.with_suffix(".txt"), path.with_suffix(".json")
    if not (names_file.is_file() and about_file.is_file()):
        return None
    features = np.load(path, mmap_mode="r", allow_pickle=False)
    names = names_file.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]
    about = json.loads(about_file.read_text(encoding="utf-8"))
    return _assemble(features, names, {key: about.pop(key, None) for key in ("ids", "cams", "split")}, about)


def _read_parquet(path: Path) -> EmbeddingFile | None:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    about = json.loads((table.schema.metadata or {}).get(_PARQUET_KEY, b"{}"))
    lists = table["feature"].combine_chunks()
    features = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    columns = {old: table[new].to_numpy() for old, new in _PARQUET_COLUMNS.items() if new in table.column_names}
    found = _assemble(features, table["name"].to_pylist(), columns, about)
    if found is None:
        raise ValueError("it was not written by ccreid")
    return found


def _read_foreign(path: Path) -> EmbeddingFile:
    arrays = read_features(path, need_ids=False)
    names = tuple(f"row {row}" for row in range(len(arrays)))
    images = ImageList(Path(), names, arrays.ids, arrays.cams)
    return EmbeddingFile(normalize_rows(arrays.features), images, {})
