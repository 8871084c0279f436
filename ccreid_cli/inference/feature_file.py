"""Features and labels in NumPy files, as ``ccreid cluster`` and ``ccreid score`` read and write them.

An ``.npz`` holds ``features`` (N, D) and, for scoring, ``ids`` (N,) and ``cams`` (N,).
Labels go out as the array ``labels`` (N,) of an ``.npz``, or alone as an ``.npy``.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.core.names import names_in

_WRITE_HINT = "Write it with numpy.savez(path, features=...{more}); features is a matrix with one row per image."
_ROWS_NAMED = 5
_ROWS_HINT = "Leave these rows out (counted from 0), or extract their features again."
_LABEL_FORMS = (".npz", ".npy")
UNREADABLE = (ValueError, KeyError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What NumPy and zipfile raise on a file of arrays that is damaged or something else.

NotImplementedError is zipfile's for compressions that it lacks, which a damaged byte can name.
"""
_KNOWN = ("features", "ids", "cams")


@dataclass(frozen=True)
class FeatureArrays:
    """What a feature file holds.

    Attributes:
        features: (N, D) float32, as in the file: not normalised.
        ids: N names of identities, or None where the file has none and none are needed.
        cams: N names of cameras, or None likewise.
    """

    features: NDArray[np.float32]
    ids: tuple[str, ...] | None
    cams: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.features)


def read_features(path: Path, *, need_ids: bool) -> FeatureArrays:
    """Read features and check them, so that nothing later meets a broken row.

    Args:
        path: An ``.npz`` with `features` and, if there are any, `ids` and `cams`; or, where no ids are needed, an
            ``.npy`` of features alone.
        need_ids: Whether ids and cameras must be there.

    Raises:
        DataError: The file is missing, empty, damaged or no NumPy file; an array is missing, empty, of the wrong
            shape or type, or of another length; rows are zero, hold NaN, infinity or what is too large for
            float32, or are too small for it; ids or cameras are no names. File and array are named.
    """
    arrays = _load(path, need_ids)
    features = _check_features(path, _take(path, arrays, "features", need_ids))
    labels: dict[str, tuple[str, ...] | None] = {}
    for name in ("ids", "cams"):
        present = need_ids or name in arrays
        labels[name] = _check_labels(path, name, _take(path, arrays, name, need_ids), features) if present else None
    return FeatureArrays(features, labels["ids"], labels["cams"])


def normalize_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N, D) rows scaled to length 1; rows of any finite size other than zero are safe.

    Args:
        features: (N, D) rows without a zero row, as `read_features` gives them.
    """
    # Dividing by the largest entry first keeps the squares from running over or under.
    scaled = features / np.abs(features).max(axis=1, keepdims=True)
    unit: NDArray[np.float32] = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return unit


def check_labels_form(path: Path) -> None:
    """Refuse, before any work is done, a file that labels are not written to.

    Raises:
        UsageError: The ending is none that `write_labels` knows.
    """
    if path.suffix.lower() not in _LABEL_FORMS:
        raise UsageError(f"{path}: labels are written as {' or '.join(_LABEL_FORMS)}.", "Choose one, as in -o l.npz.")


def write_labels(path: Path, labels: NDArray[np.int64]) -> None:
    """Write pseudo-labels in the form that the ending names, whole or not at all; parent folders are made.

    Args:
        path: The file to write, under exactly this name.
        labels: (N,) cluster of each row, -1 for outliers.

    Raises:
        UsageError: As `check_labels_form`.
        DataError: The file cannot be written.
    """
    check_labels_form(path)
    rows = np.asarray(labels, dtype=np.int64)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if path.suffix.lower() == ".npy":
            np.save(file, rows)
        else:
            np.savez_compressed(file, labels=rows)


def _write_hint(need_ids: bool) -> str:
    return _WRITE_HINT.format(more=", ids=..., cams=..." if need_ids else "")


def _load(path: Path, need_ids: bool) -> Mapping[str, NDArray[Any]]:
    """Read all known arrays of a file, without ever unpickling anything."""
    try:
        if path.is_dir() or not path.exists():
            what = "is a folder, not a feature file" if path.is_dir() else "does not exist"
            raise DataError(f"{path} {what}.", "Give the path of an .npz file with an array `features`.")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is an empty file.", _write_hint(need_ids))
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"features": loaded}
        with loaded:
            return {name: _read_array(path, loaded, name) for name in loaded.files if name in _KNOWN}
    except UNREADABLE as error:
        # NumPy takes whatever it does not know for a pickle, and advises to trust it.
        reason = "it is something else, or a pickle" if "pickle" in str(error) else str(error)
        raise DataError(f"{path} is no readable NumPy file: {reason}.", _write_hint(need_ids)) from error


def _read_array(path: Path, loaded: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    try:
        return loaded[name]
    except ValueError as error:
        raise DataError(
            f"{path}: array `{name}` cannot be read: {error}.", f"Save `{name}` as a plain array of numbers."
        ) from error


def _take(path: Path, arrays: Mapping[str, NDArray[Any]], name: str, need_ids: bool) -> NDArray[Any]:
    if name not in arrays:
        found = ", ".join(f"`{other}`" for other in arrays) or "none of the expected arrays"
        raise DataError(f"{path} has no array `{name}`; it has {found}.", _write_hint(need_ids))
    return arrays[name]


def _check_features(path: Path, features: NDArray[Any]) -> NDArray[np.float32]:
    """Return the features as float32 after checking type, shape and every row."""
    if features.dtype.kind not in "fiu":
        raise DataError(f"{path}: array `features` has type {features.dtype}.", "Save it as float32 or float16.")
    if features.ndim != 2 or 0 in features.shape:
        raise DataError(
            f"{path}: array `features` has shape {features.shape}.", "It must be N x D: one row of D numbers per image."
        )
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(features, dtype=np.float32)
    unusable = np.asarray(~np.isfinite(rows).all(axis=1))
    if unusable.any():
        too_large = unusable & np.isfinite(features).all(axis=1)
        _refuse_rows(path, unusable & ~too_large, "that are NaN or infinite")
        _refuse_rows(path, too_large, "with values too large for float32", "Scale the rows down: their length is free.")
    zero = np.asarray(~rows.any(axis=1))
    if zero.any():
        too_small = zero & features.any(axis=1)
        _refuse_rows(path, zero & ~too_small, "that are all zero")
        _refuse_rows(path, too_small, "with values too small for float32", "Scale the rows up: their length is free.")
    return rows


def _refuse_rows(path: Path, bad: NDArray[np.bool_], what: str, hint: str = _ROWS_HINT) -> None:
    numbers = np.flatnonzero(bad)
    if len(numbers):
        first = ", ".join(map(str, numbers[:_ROWS_NAMED])) + (", ..." if len(numbers) > _ROWS_NAMED else "")
        raise DataError(
            f"{path}: array `features` has {len(numbers)} of {len(bad)} rows {what}: {first}.",
            hint,
        )


def _check_labels(path: Path, name: str, labels: NDArray[Any], features: NDArray[Any]) -> tuple[str, ...]:
    """Return the names of ids or cameras after checking type, shape and length."""
    if labels.shape != (len(features),):
        raise DataError(
            f"{path}: array `{name}` has shape {labels.shape}, but `features` has {len(features)} rows.",
            f"`{name}` must hold one number per row of `features`.",
        )
    try:
        return names_in(labels)
    except ValueError as error:
        raise DataError(
            f"{path}: array `{name}`: {error}.", f"Save `{name}` as text or as whole numbers; -1 is none."
        ) from error
