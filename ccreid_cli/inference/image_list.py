"""Which images a command is about: a folder of any images, or the splits of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import digest_of
from ccreid_cli.core.names import name_of
from ccreid_cli.core.packed_texts import PackedTexts
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import few, plural
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.data.columns import parse_columns
from ccreid_cli.data.image_files import endings_text, find_images, is_image
from ccreid_cli.data.own_folders import tell_of_left_out
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.records import SPLITS
from ccreid_cli.data.splits import Tracks
from ccreid_cli.transfer.remote import is_remote, list_remote, read_remote


@dataclass(frozen=True, eq=False)
class ImageList:
    """N images, with what is known of them.

    Attributes:
        root: Folder that `names` are relative to.
        names: N POSIX paths, or addresses that fsspec reads.
        ids: N names of identities, `UNKNOWN` where there is none; None for a plain folder.
        cams: N names of cameras, likewise.
        splits: (N,) str, each image's split; None unless several splits are listed together.
        tracks: What else is known of the images, if anything.
    """

    root: Path
    names: Sequence[str]
    ids: Sequence[str] | None = None
    cams: Sequence[str] | None = None
    splits: NDArray[np.str_] | None = None
    tracks: Tracks | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        """The N image files."""
        return [self.root / name for name in self.names]

    def files(self, start: int, stop: int) -> list[str]:
        """Return the image files from one position to another."""
        return [name if is_remote(name) else str(self.root / name) for name in self.names[start:stop]]

    def digest(self) -> str:
        """Return a SHA-256 over all that is listed."""
        splits = None if self.splits is None else self.splits.tolist()
        columns = (self.names, self.ids, self.cams, splits)
        return digest_of(b"" if column is None else PackedTexts.of(column).as_bytes() for column in columns)

    def select(self, kept: NDArray[np.int64]) -> ImageList:
        """Return the images at the positions `kept`."""

        def pick(names: Sequence[str]) -> Sequence[str]:
            if isinstance(names, PackedTexts):
                return names.pick(kept)
            return tuple([names[position] for position in kept])

        if len(kept) == len(self):
            return self
        ids, cams = (None if names is None else pick(names) for names in (self.ids, self.cams))
        splits = None if self.splits is None else self.splits[kept]
        return ImageList(
            self.root, pick(self.names), ids, cams, splits, self.tracks.select(kept) if self.tracks else None
        )


def is_list_file(source: str) -> bool:
    """Whether a source is a list of images: by its name."""
    return source.lower().endswith((".txt", ".parquet"))


def list_source(
    source: str,
    split: str | None,
    data_dir: Path,
    reporter: Reporter,
    *,
    columns: str | None = None,
    pattern: str | None = None,
) -> ImageList:
    """List what a command line names.

    Args:
        source: A dataset of the catalogue (which wins), a folder, a list (``.txt``, ``.parquet``), a manifest of own
            images, or the address of a folder or list.
        split: ``train``, ``query`` or ``gallery``; None for all images of a folder, or all splits of a dataset.
        data_dir: The data directory.
        reporter: Told what was taken for what.
        columns: As ``--columns``.
        pattern: As ``--pattern``; makes a folder one with labels.

    Raises:
        UsageError: There is no such split or dataset.
        DataError: There is nothing there.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f'--split "{split}" is not known.', f"Use one of {', '.join(SPLITS)}, or leave it out.")
    if is_list_file(source):
        if split or pattern:
            raise UsageError("a list of images has no splits and no --pattern.", "Leave them out.")
        return list_file(source, columns, reporter)
    if is_remote(source):
        return list_remote_folder(source)
    folder = Path(source).expanduser()
    if source not in CATALOG and split is None and not (columns or pattern) and folder.is_dir():
        return list_folder(folder, reporter)
    return list_labelled(source, data_dir, reporter, split=split, columns=columns, pattern=pattern)


def list_labelled(
    source: str,
    data_dir: Path,
    reporter: Reporter,
    *,
    split: str | None = None,
    columns: str | None = None,
    pattern: str | None = None,
) -> ImageList:
    """List the images of a dataset, folder or manifest with their identities, as ``-d`` reads it.

    Args:
        source: A dataset of the catalogue, a folder, or a manifest of own images.
        data_dir: The data directory.
        reporter: Told what was taken for what.
        split: As for `list_source`; None for all.
        columns: As ``--columns``.
        pattern: As ``--pattern``.

    Raises:
        UsageError: There is no such dataset.
        DataError: There is nothing there.
    """
    dataset = load_dataset(source, data_dir, reporter, columns=columns, pattern=pattern, keep_unknown=True)
    chosen = [split] if split else [name for name in SPLITS if len(dataset.splits[name])]
    parts = [dataset.splits[name] for name in chosen]
    if not any(map(len, parts)):
        raise DataError(f"{dataset.name} has no {split or ''} images.".replace("  ", " "))
    return ImageList(
        dataset.root,
        tuple(chain.from_iterable(part.names for part in parts)),
        tuple(chain.from_iterable(part.identities for part in parts)),
        tuple(chain.from_iterable(part.cameras for part in parts)),
        np.repeat(chosen, [len(part) for part in parts]) if split is None else None,
        Tracks.join([(len(part), part.tracks) for part in parts]),
    )


def list_sources(
    sources: Sequence[str],
    split: str | None,
    data_dir: Path,
    reporter: Reporter,
    *,
    columns: str | None = None,
    pattern: str | None = None,
) -> ImageList:
    """List what a command line names: image files, or one folder, dataset or manifest.

    Args:
        sources: Image files, any number of them, or one source of another kind.
        split: As for `list_source`, likewise the other arguments.
        data_dir: The data directory.
        reporter: Told what was taken for what.
        columns: As ``--columns``.
        pattern: As ``--pattern``.

    Raises:
        UsageError: Sources of several kinds are named, or there is no such split or dataset.
        DataError: There is nothing there.
    """
    if len(sources) == 1 and not (is_image(sources[0]) and Path(sources[0]).is_file()):
        return list_source(sources[0], split, data_dir, reporter, columns=columns, pattern=pattern)
    for source in sources:
        if not is_image(Path(source).name):
            raise UsageError(f"{source} is no image file.", f"Name one folder or dataset, or images. {endings_text()}")
        if not Path(source).is_file():
            raise DataError(f"{source} does not exist.")
    return ImageList(Path(), tuple(dict.fromkeys(sources)))


def list_folder(folder: Path, reporter: Reporter) -> ImageList:
    """List the images in a folder and all folders below it, by name (see `data.image_files`).

    Raises:
        DataError: There is none, or the folder cannot be read.
    """
    try:
        found = find_images(folder, names=PackedTexts())
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror or error}.") from error
    tell_of_left_out(folder, found, reporter)
    if not found.names:
        raise DataError(f"no image was found in {folder}.", endings_text())
    return ImageList(folder, found.names)


def list_file(file: str, columns: str | None, reporter: Reporter) -> ImageList:
    """List what a text file (one path or address a line) or a Parquet table of paths names.

    Args:
        file: A ``.txt`` or ``.parquet`` file, or its address. Paths in it are absolute or relative to its folder.
        columns: What a table calls its columns, as ``--columns``; by default ``path`` and, if there are any, ``id`` and
            ``camera``.
        reporter: Told how many images are listed.

    Raises:
        UsageError: A package that reading it needs is missing.
        DataError: It cannot be read, names no image, or lacks a column.
    """
    if columns and not file.lower().endswith(".parquet"):
        raise UsageError(f"--columns: {file} has no columns, but one path a line.", "Leave it out.")
    content = BytesIO(read_remote(file)) if is_remote(file) else None
    base = file.rpartition("/")[0] + "/" if content else ""
    try:
        if file.lower().endswith(".parquet"):
            listed = _of_table(file, content, parse_columns(columns), base)
        else:
            with content or Path(file).open("rb") as lines:
                stripped = (line.rstrip(b"\r\n").decode("utf-8", "surrogateescape") for line in lines)
                listed = {"path": PackedTexts.of(_placed(base, line) for line in stripped if line)}
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
    if not listed["path"]:
        raise DataError(f"{file} names no image.", "One path a line, or a table with a column path.")
    reporter.message(f"{file}: {plural(len(listed['path']), 'image')}")
    return ImageList(
        Path(file).parent if content is None else Path(), listed["path"], listed.get("id"), listed.get("camera")
    )


def _placed(base: str, name: str) -> str:
    return name if not base or is_remote(name) else base + name


def _of_table(file: str, content: BinaryIO | None, chosen: Mapping[str, str], base: str) -> dict[str, PackedTexts]:
    """Read the columns of a table of paths, some thousands of rows at a time."""
    require("pyarrow", "parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    called = {field: chosen.get(field, field) for field in ("path", "id", "camera")}
    try:
        table = pq.ParquetFile(content or file)
        there = table.schema_arrow.names
        for field, column in called.items():
            if column not in there and (field == "path" or field in chosen):
                raise DataError(
                    f"{file} has no column {column}; it has {few(there, 10)}.", "Name it: --columns path=COLUMN."
                )
        listed = {field: PackedTexts() for field, column in called.items() if column in there}
        for batch in table.iter_batches(columns=[called[field] for field in listed]):
            for field, texts in listed.items():
                values = batch.column(called[field]).to_pylist()
                for value in values:
                    texts.append(_placed(base, str(value)) if field == "path" else name_of(value))
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{file} is no readable Parquet table of paths: {error}.") from error
    return listed


def list_remote_folder(address: str) -> ImageList:
    """List the images in a remote folder and all folders below it, by name.

    Raises:
        NetworkError: It cannot be listed.
        DataError: There are none.
    """
    names = PackedTexts.of(name for name in list_remote(address) if is_image(name.rpartition("/")[2]))
    if not names:
        raise DataError(f"no image was found in {address}.", endings_text())
    return ImageList(Path(), names)
