"""Some rows of a feature file or a folder of them: what one of several processes or a search needs, not the rest."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.packed_texts import Texts
from ccreid_cli.inference.feature_file import checked_features, names_of_rows, normalize_rows
from ccreid_cli.inference.shard_index import other_number_of_rows, read_whole_index, shard_file
from ccreid_cli.inference.stored_arrays import UNREADABLE, StoredArrays, load_arrays

_SHARDS_OPEN = 64


class ShardedRows:
    """The rows of a finished folder of features, which stay on disk: those that are asked for are read.

    Args:
        folder: The folder.

    Attributes:
        shape: N and D.

    Raises:
        DataError: The folder is not finished, or a shard is damaged or differs from what the index says.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._counts = folder, read_whole_index(folder).rows or ()
        self._ends = np.cumsum(self._counts)
        self._shard = lru_cache(_SHARDS_OPEN)(self._open)
        filled = int(np.argmax(np.array(self._counts) > 0))
        self._width = self._read(filled).shape[1]
        self.shape = (int(self._ends[-1]), self._width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return consecutive rows, or rows by number."""
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._between(start, stop)
            key = np.arange(start, stop, step)
        found = np.empty((len(key), self._width), dtype=np.float32)
        places = np.searchsorted(self._ends, key, side="right")
        for number in np.unique(places).tolist():
            here = places == number
            found[here] = self._shard(number)[key[here] - (self._ends[number] - self._counts[number])]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all rows, for NumPy."""
        return self[:].astype(dtype or np.float32, copy=False)

    def _between(self, start: int, stop: int) -> NDArray[np.float32]:
        found = np.empty((max(0, stop - start), self._width), dtype=np.float32)
        for number, (end, count) in enumerate(zip(self._ends.tolist(), self._counts, strict=True)):
            first, last = max(start, end - count), min(stop, end)
            if first < last:
                found[first - start : last - start] = self._shard(number)[first - end + count : last - end + count]
        return found

    def _open(self, number: int) -> NDArray[np.float32]:
        rows = self._read(number)
        if rows.shape != (self._counts[number], self._width):
            raise DataError(
                f"{shard_file(self._folder, number)} has not the {self._counts[number]:,} rows of length {self._width} "
                f"that the index of {self._folder} says.",
                "Extract the features again, with --force.",
            )
        return rows

    def _read(self, number: int) -> NDArray[np.float32]:
        file = shard_file(self._folder, number)
        mapped = _mapped(file)
        return load_arrays(file, ("features",)).take("features") if mapped is None else mapped


class ShardedTexts(Texts):
    """The names, identities or cameras of the rows of a finished folder of features: those that are asked for are read.

    Args:
        folder: The folder.
        array: What its shards call them: ``names``, ``ids`` or ``cams``. Rows of a shard without it have empty ones.
        counts: Rows of each shard.
    """

    def __init__(self, folder: Path, array: str, counts: Sequence[int]) -> None:
        self._folder, self._array, self._counts = folder, array, counts
        self._ends = np.cumsum(counts)
        self._shard = lru_cache(_SHARDS_OPEN)(self._read)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _at(self, place: int) -> str:
        number = int(np.searchsorted(self._ends, place, side="right"))
        return self._shard(number)[place - int(self._ends[number]) + self._counts[number]]

    def __iter__(self) -> Iterator[str]:
        for number in range(len(self._counts)):
            yield from self._read(number)

    def _read(self, number: int) -> tuple[str, ...]:
        file, count = shard_file(self._folder, number), self._counts[number]
        stored = load_arrays(file, (self._array,))
        if self._array not in stored.arrays:
            return ("",) * count
        if self._array != "names":
            return names_of_rows(stored, self._array, count)
        names = stored.arrays["names"]
        if len(names) != count:
            raise other_number_of_rows(file, self._folder, count)
        return tuple(map(str, names.tolist()))


def texts_of(folder: Path) -> dict[str, ShardedTexts]:
    """Return the ``names`` of the rows of a finished folder, and the ``ids`` and ``cams`` if any shard has them.

    Raises:
        DataError: The folder is not finished, or a shard cannot be read.
    """
    counts = read_whole_index(folder).rows or ()
    there = {"names"}
    for number, count in enumerate(counts):
        file = shard_file(folder, number)
        try:
            with zipfile.ZipFile(file) as archive, archive.open("names.npy") as names:
                there.update(Path(name).stem for name in archive.namelist())
                shape = _read_head(names)[0]
        except UNREADABLE as error:
            raise DataError(f"{file} is damaged: {error}.", "Extract the features again, with --force.") from error
        if shape != (count,):
            raise other_number_of_rows(file, folder, count)
    return {array: ShardedTexts(folder, array, counts) for array in ("names", "ids", "cams") if array in there}


Rows = NDArray[np.float32] | ShardedRows
"""Features (N, D): an array, or what reads its rows from disk."""


def _mapped(path: Path) -> NDArray[np.float32] | None:
    """Map the features of an archive into memory; None where they are not stored one after another, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entry = archive.getinfo("features.npy")
            file.seek(entry.header_offset)
            name, extra = struct.unpack("<26x2H", file.read(30))
            file.seek(name + extra, 1)
            shape, is_fortran, dtype = _read_head(file)
            if entry.compress_type != zipfile.ZIP_STORED or is_fortran or dtype != np.float32 or len(shape) != 2:
                return None
            return np.memmap(file, dtype, "r", file.tell(), shape)
    except (*UNREADABLE, struct.error):
        return None


def count_rows(path: Path) -> int:
    """Return how many features a file has, N; where the file's head does not tell, all of it is read.

    Raises:
        UsageError: Reading the file needs a package that is missing.
        DataError: The file is missing, damaged or something else, or has no features.
    """
    if path.is_dir():
        return sum(read_whole_index(path).rows or ())
    if path.suffix.lower() == ".npz" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive, archive.open("features.npy") as file:
                shape = _read_head(file)[0]
            if len(shape) == 2 and all(shape):
                return int(shape[0])
        except UNREADABLE:
            pass  # what is wrong, or how else it is to be read, `load_arrays` knows
    stored = load_arrays(path, ("features",), in_place=True)
    features = stored.take("features")
    if features.ndim != 2 or 0 in features.shape:
        checked_features(stored, need_ids=False)  # says what is wrong
    return len(features)


def read_unit_rows(path: Path, start: int, stop: int) -> NDArray[np.float32]:
    """Read the rows [start, stop) of the features of a file, check them and scale them to length 1.

    Of an ``.npy``, an ``.npz`` and a folder of shards nothing else is kept in memory; a ``.parquet`` is read whole
    first.

    Returns:
        (stop - start, D) float32.

    Raises:
        UsageError: Reading the file needs a package that is missing.
        DataError: As for `feature_file.read_features`.
    """
    found: NDArray[Any] | None = None
    if path.is_dir():
        found = ShardedRows(path)[start:stop]
    elif path.suffix.lower() == ".npz":
        found = _slice_of_npz(path, start, stop)
    if found is None:
        found = load_arrays(path, ("features",), in_place=True).take("features")[start:stop]
    if stop <= start:
        return np.empty((0, *found.shape[1:]), dtype=np.float32)
    try:
        rows = checked_features(StoredArrays(path, {"features": found}), need_ids=False).features
    except DataError as error:
        raise DataError(
            f"{error.message} (counted from row {start:,})" if start else error.message, error.hint
        ) from error
    return normalize_rows(rows, in_place=True)


def _slice_of_npz(path: Path, start: int, stop: int) -> NDArray[Any] | None:
    """Read some rows of a matrix in an archive; None where they are not stored one after another."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("features.npy") as file:
            shape, is_fortran, dtype = _read_head(file)
            if is_fortran or dtype.hasobject or len(shape) != 2:
                return None
            row_bytes = shape[1] * dtype.itemsize
            file.seek(start * row_bytes, 1)
            rows = np.empty((stop - start, shape[1]), dtype=dtype)
            return rows if _read_into(file, rows.reshape(-1).view(np.uint8)) else None
    except UNREADABLE:
        return None


def _read_head(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type of the array that a file in NumPy's format begins with."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _read_into(file: IO[bytes], target: NDArray[np.uint8]) -> bool:
    """Fill `target`; whether there was enough to read."""
    done = 0
    while done < len(target):
        part = file.read(min(1 << 22, len(target) - done))
        if not part:
            return False
        target[done : done + len(part)] = np.frombuffer(part, dtype=np.uint8)
        done += len(part)
    return True
