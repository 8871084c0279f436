"""Features with their names, the model they come from and how its images were prepared, as files.

Three forms, by the file's ending:

- ``.npz``: arrays ``features`` (N, D) float32 unit rows, ``names`` (N,), where known the texts ``ids``, ``cams`` and
  ``split`` (N,), and ``about``, the JSON text described below. ``ccreid score`` and ``ccreid cluster`` read it.
- ``.npy``: the matrix alone, to be memory-mapped; beside it ``.txt`` (one name per line) and ``.json`` (the rest).
- ``.parquet``: columns ``name``, ``feature`` (a list of D floats), where known ``id``, ``camera``, ``split``; the JSON
  text is the schema metadata ``ccreid``.

The JSON text says ``model`` (fingerprint), ``source`` (checkpoint), ``preprocess`` and ``root`` (folder of the names).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.inference.feature_file import checked_features, names_of_rows, normalize_rows
from ccreid_cli.inference.feature_rows import Rows, ShardedRows, texts_of
from ccreid_cli.inference.image_list import ImageList
from ccreid_cli.inference.stored_arrays import FORMAT, PARQUET_KEY, StoredArrays, load_arrays

VERSION = 2
"""Of the files: since version 2, ids and cameras are names; in version 1 each file numbered its own."""


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """N features and what is known of them.

    Attributes:
        features: (N, D) float32 unit rows, in RAM, memory-mapped or in shards on disk.
        images: The N images they come from.
        about: What made them: ``model``, ``source``, ``preprocess``; empty for a file that ccreid did not write.
    """

    features: Rows
    images: ImageList
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The features as one array: of shards, they are read into RAM."""
        return np.asarray(self.features)


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
    about = {"format": FORMAT, "version": VERSION, **content.about, "root": str(content.images.root.absolute())}
    _WRITERS[path.suffix.lower()](path, content, about)


def _columns(images: ImageList) -> dict[str, list[str]]:
    """Return what is known of the images, besides their names."""
    known = {"ids": images.ids, "cams": images.cams, "split": images.splits}
    return {name: list(map(str, values)) for name, values in known.items() if values is not None}


def _write_npz(path: Path, content: EmbeddingFile, about: Mapping[str, Any]) -> None:
    columns = {"names": content.images.names, **_columns(content.images)}
    arrays: dict[str, Any] = {name: np.array(list(values), dtype=np.str_) for name, values in columns.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, features=content.matrix, **arrays, about=np.array(json.dumps(about)))


def _write_npy(path: Path, content: EmbeddingFile, about: Mapping[str, Any]) -> None:
    check_image_names(path, content.images)
    lines = "".join(name + "\n" for name in content.images.names)
    columns = _columns(content.images)
    # All appear together: part of a set would make the next attempt ask for --force.
    with ExitStack() as stack:
        matrix, names, rest = (stack.enter_context(atomic_path(file)) for file in files_of(path))
        names.write_bytes(lines.encode("utf-8", "surrogateescape"))
        rest.write_text(json.dumps({**about, **columns}) + "\n", encoding="utf-8")
        with matrix.open("wb") as file:
            np.save(file, content.matrix)


def _write_parquet(path: Path, content: EmbeddingFile, about: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = content.matrix.shape[1]
    columns = _columns(content.images)
    data = {"name": pa.array([name.encode("utf-8", "replace").decode() for name in content.images.names])}
    for old, new in {"ids": "id", "cams": "camera", "split": "split"}.items():
        try:
            data |= {new: pa.array(columns[old], pa.string())} if old in columns else {}
        except UnicodeEncodeError as error:
            raise DataError(f"{path}: an {new} is no Unicode text: {error.object!r}.", "Write .npz or .npy.") from error
    data["feature"] = pa.FixedSizeListArray.from_arrays(pa.array(content.matrix.reshape(-1)), dim)
    table = pa.table(data).replace_schema_metadata({PARQUET_KEY: json.dumps(about).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=8192)


_WRITERS: dict[str, Callable[[Path, EmbeddingFile, Mapping[str, Any]], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}


def read_embeddings(path: Path) -> EmbeddingFile:
    """Read features of any of the three forms, or a folder of shards; an ``.npy`` and shards stay on disk.

    Files that ccreid did not write are taken too, as far as `feature_file.read_features` takes them; their rows
    are normalised, and called by number where nothing names them.

    Raises:
        UsageError: Reading the file needs a package that is missing.
        DataError: The file is missing, damaged, or its parts do not fit together.
    """
    if path.is_dir():
        texts, stored = texts_of(path), load_arrays(path, ("split",))
        columns = texts["names"], texts.get("ids"), texts.get("cams"), _splits_of(stored)
        return EmbeddingFile(ShardedRows(path), *_images_of(stored, columns))
    stored = load_arrays(path, in_place=True)
    features, names = stored.arrays.get("features"), stored.arrays.get("names")
    if not stored.about or names is None or features is None or features.dtype != np.float32:
        return _of_others(stored)
    if features.ndim != 2 or any(len(array) != len(features) for array in stored.arrays.values() if array.ndim):
        raise DataError(f"{path}: features, names, ids and cameras differ in number.", "Make it again.")
    return EmbeddingFile(features, *_images_of(stored, _columns_of(stored, len(features))))


def _images_of(stored: StoredArrays, columns: _Columns) -> tuple[ImageList, Mapping[str, Any]]:
    """Return the images of the rows of a file that ccreid wrote, and what else it says of them."""
    about = dict(stored.about)
    root = Path(about.pop("root", "."))
    return ImageList(root, *columns), about


def _of_others(stored: StoredArrays) -> EmbeddingFile:
    arrays = checked_features(stored, need_ids=False)
    names, ids, cams, splits = _columns_of(stored, len(arrays))
    return EmbeddingFile(
        normalize_rows(arrays.features, in_place=True), ImageList(Path(), names, ids, cams, splits), {}
    )


_Columns = tuple[Sequence[str], Sequence[str] | None, Sequence[str] | None, NDArray[np.str_] | None]
"""Names, identities, cameras and splits of rows."""


def _columns_of(stored: StoredArrays, num_rows: int) -> _Columns:
    names = stored.arrays.get("names", np.array([f"row {row}" for row in range(num_rows)]))
    ids, cams = (names_of_rows(stored, name, num_rows) if name in stored.arrays else None for name in ("ids", "cams"))
    return tuple(map(str, names.tolist())), ids, cams, _splits_of(stored)


def _splits_of(stored: StoredArrays) -> NDArray[np.str_] | None:
    return stored.arrays["split"].astype(np.str_) if "split" in stored.arrays else None
