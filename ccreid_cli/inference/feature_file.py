"""Features as ``ccreid cluster`` and ``ccreid score`` read them, and labels as they write them.

Labels go out as the array ``labels`` (N,) of an ``.npz``, or alone as an ``.npy``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.core.names import names_in
from ccreid_cli.inference.stored_arrays import StoredArrays, load_arrays

_ROWS_NAMED = 5
_ROWS_AT_ONCE = 4096
_ROWS_HINT = "Leave these rows out (counted from 0), or extract their features again."
_LABEL_FORMS = (".npz", ".npy")


@dataclass(frozen=True)
class FeatureArrays:
    """What a feature file holds.

    Attributes:
        features: (N, D) float32, as in the file: not normalised.
        ids: N names of identities, or None where the file has none and none are needed.
        cams: N names of cameras, or None likewise.
        about: What ccreid wrote of the model and the file; empty for a file of another program.
    """

    features: NDArray[np.float32]
    ids: tuple[str, ...] | None
    cams: tuple[str, ...] | None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)


def read_features(path: Path, *, need_ids: bool) -> FeatureArrays:
    """Read features and check them, so that nothing later meets a broken row.

    Args:
        path: A file of any form that `stored_arrays` reads, with features and, if there are any, ids and cameras.
        need_ids: Whether ids and cameras must be there.

    Raises:
        DataError: The file is missing, empty, damaged or something else; an array is missing, empty, of the wrong
            shape or type, or of another length; rows are zero, hold NaN, infinity or what is too large for
            float32, or are too small for it; ids or cameras are no names. File and array are named.
    """
    return checked_features(load_arrays(path, ("features", "ids", "cams")), need_ids=need_ids)


def checked_features(stored: StoredArrays, *, need_ids: bool) -> FeatureArrays:
    """Check the arrays of a file; arguments and errors as for `read_features`."""
    features = _check_features(stored.path, stored.take("features"))
    ids, cams = (
        names_of_rows(stored, name, len(features)) if need_ids or name in stored.arrays else None
        for name in ("ids", "cams")
    )
    return FeatureArrays(features, ids, cams, stored.about)


def names_of_rows(stored: StoredArrays, name: str, num_rows: int) -> tuple[str, ...]:
    """Return the names that `ids` or `cams` of a file hold, one per row.

    Raises:
        DataError: The array is missing, of another length, or holds what is no name.
    """
    array = stored.take(name)
    if array.shape != (num_rows,):
        raise DataError(
            f"{stored.path}: array `{name}` has shape {array.shape}, but `features` has {num_rows} rows.",
            f"`{name}` must hold one name or number per row of `features`.",
        )
    try:
        return names_in(array)
    except ValueError as error:
        raise DataError(
            f"{stored.path}: array `{name}`: {error}.", f"Save `{name}` as text or as whole numbers; -1 is none."
        ) from error


def normalize_rows(features: NDArray[np.float32], *, in_place: bool = False) -> NDArray[np.float32]:
    """Return (N, D) rows scaled to length 1; rows of any finite size other than zero are safe.

    Args:
        features: (N, D) rows without a zero row, as `read_features` gives them.
        in_place: Whether they may be overwritten, where they can be: a copy may be too large.
    """
    rows = features if in_place and features.flags.writeable else features.copy()
    for block in _blocks(rows):
        # Dividing by the largest entry first keeps the squares from running over or under.
        block /= np.abs(block).max(axis=1, keepdims=True)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return rows


def _blocks(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Go through rows, some at a time: what is computed of them is small beside them."""
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        yield rows[first : first + _ROWS_AT_ONCE]


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
    unusable = np.concatenate([~np.isfinite(block).all(axis=1) for block in _blocks(rows)])
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
