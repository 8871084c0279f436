"""The index of a folder of features: whose its shards are, of which images, and whether all are there.

The folder holds ``index.json`` and the shards ``000000.npz``, ``000001.npz`` and so on, each of them a feature file.
The index is written before the first shard, and again with the number of rows of each when the last one is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_write_text
from ccreid_cli.core.locks import FileLock, LockedError

if TYPE_CHECKING:
    from ccreid_cli.machine.distributed import Group

INDEX = "index.json"
_FORMAT = "ccreid-feature-shards"
_WORDS = {
    "model": "another model",
    "preprocess": "images prepared otherwise",
    "root": "images of another folder",
    "images": "another list of images",
    "shard_size": "shards of another size",
    "batch_size": "another batch size, which may round otherwise",
    "device": "another kind of device, which rounds otherwise",
}
"""What differs, in words, by the entry of the index; of others nothing is asked."""


@dataclass(frozen=True)
class ShardIndex:
    """What the shards of a folder are made from: the same in every attempt to make them.

    Attributes:
        made_from: ``model``, ``source``, ``preprocess`` (see `Embedder.about`), ``root``, ``images`` (a digest of the
            list), ``shard_size``, ``batch_size`` and ``device``, as plain JSON values.
        num_shards: How many there are to be.
        rows: Features in each shard; None while some are missing.
    """

    made_from: Mapping[str, Any]
    num_shards: int
    rows: tuple[int, ...] | None = None

    def differences(self, other: ShardIndex) -> list[str]:
        """Return in words what the shards of `other` are made from and these are not."""
        differ = [name for name in _WORDS if self.made_from.get(name) != other.made_from.get(name)]
        return [_WORDS[name] for name in differ] or (
            ["another list of images"] if self.num_shards != other.num_shards else []
        )

    def write(self, folder: Path) -> None:
        """Write the index of a folder, whole or not at all.

        Raises:
            DataError: It cannot be written.
        """
        atomic_write_text(
            folder / INDEX, json.dumps({"format": _FORMAT, "version": 1, **asdict(self)}, indent=1) + "\n"
        )

    def finished(self, rows: list[int]) -> ShardIndex:
        """Return the index of a folder in which all shards are."""
        return replace(self, rows=tuple(rows))


def shard_file(folder: Path, number: int) -> Path:
    """Return where a shard of a folder lies."""
    return folder / f"{number:06d}.npz"


def other_number_of_rows(file: Path, folder: Path, count: int) -> DataError:
    """Return the error for a shard that has not the `count` rows which the index of its folder counts."""
    return DataError(
        f"{file} has not the {count:,} rows that {folder} counts.", "Extract the features again, with --force."
    )


def is_feature_folder(folder: Path) -> bool:
    """Whether a folder holds features, finished or not, and no images."""
    try:
        return read_index(folder) is not None
    except DataError:
        return True


def read_index(folder: Path) -> ShardIndex | None:
    """Return the index of a folder; None where it has none, or a file of another program.

    Raises:
        DataError: It is damaged.
    """
    file = folder / INDEX
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            return None
        found = ShardIndex(
            dict(values["made_from"]),
            int(values["num_shards"]),
            None if values["rows"] is None else tuple(map(int, values["rows"])),
        )
        if values.get("version") != 1:
            raise ValueError("it is of another version of ccreid")
        if found.num_shards < 1 or len(found.rows or range(found.num_shards)) != found.num_shards:
            raise ValueError("the number of its shards and their rows do not fit together")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{file} is damaged: {what}.", "Extract the features again, with --force.") from error


def read_whole_index(folder: Path) -> ShardIndex:
    """Return the index of a folder in which all shards are.

    Raises:
        DataError: The folder holds no features, or not all of them.
    """
    index = read_index(folder)
    if index is None:
        raise DataError(
            f"{folder} is a folder without features.",
            "`ccreid extract` makes feature files (.npz, .npy, .parquet) and, with -o FOLDER/, folders of them.",
        )
    absent = sum(not shard_file(folder, number).is_file() for number in range(index.num_shards))
    if index.rows is None or absent:
        raise DataError(
            f"{folder} is not finished: {absent or 'some'} of its {index.num_shards:,} shards are missing.",
            "Repeat the `ccreid extract` that makes it: it goes on where it was.",
        )
    return index


def recorded_precision(folder: Path) -> str | None:
    """Return the number format in which the shards of a folder are computed; None where there are none."""
    with suppress(DataError):
        if index := read_index(folder):
            return str(index.made_from["preprocess"]["precision"])
    return None


@contextmanager
def kept_shards(
    folder: Path | None, index: ShardIndex, group: Group, *, is_result: bool = False, replace: bool = True
) -> Iterator[Path | None]:
    """Make a folder ready for the shards of `index`, and keep other commands out of it.

    Args:
        folder: The folder; None for none.
        index: Of the shards.
        group: The processes that fill it together.
        is_result: Whether the folder is what is wanted; else it is kept until the result is made.
        replace: Whether other features in it are removed.

    Yields:
        The folder, or None where the work must do without.

    Raises:
        UsageError: It holds others, and `replace` is not set.
        LockedError: Another command is at work in it. (One process whose result is elsewhere does without.)
    """
    if folder is None:
        yield None
        return
    lock = FileLock(folder / ".lock", what=str(folder))
    try:
        group.on_main(lambda: _begin(folder, index, lock, replace))
    except LockedError:
        if group.world > 1 or is_result:
            raise
        yield None
        return
    try:
        yield folder
    finally:
        lock.release()


def _begin(folder: Path, index: ShardIndex, lock: FileLock, replace: bool) -> None:
    there = None
    try:
        there = read_index(folder)
    except DataError:
        if not replace:
            raise
    differences = there.differences(index) if there else []
    if differences and not replace:
        raise UsageError(
            f"{folder} holds features of {', '.join(differences)}.",
            "Choose another folder, or add --force to replace them.",
        )
    lock.acquire(wait=False)
    for left in folder.glob(".*.tmp"):  # of processes that were killed
        left.unlink(missing_ok=True)
    if differences or there is None:
        remove_shards(folder)
        index.write(folder)


def check_feature_folder(folder: Path) -> None:
    """Refuse, before any work is done, a folder that features should not go to.

    Raises:
        UsageError: It is a file, holds something else, or cannot be written.
    """
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not above.is_dir():
        raise UsageError(f"{above} is a file, so no features can be put in {folder}.", "Choose another folder.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{above} cannot be written, so {folder} cannot be filled.", "Choose another folder.")
    if (
        folder.is_dir()
        and not is_feature_folder(folder)
        and any(not file.name.startswith(".") for file in folder.iterdir())
    ):
        raise UsageError(f"{folder} is a folder with other files in it.", "Choose a new folder, or name a file.")


def remove_shards(folder: Path) -> None:
    """Remove the features of a folder, and the folder where nothing else is in it."""
    with suppress(OSError):
        for file in (folder / INDEX, *folder.glob("[0-9]" * 6 + "*.npz")):
            file.unlink(missing_ok=True)
        folder.rmdir()
