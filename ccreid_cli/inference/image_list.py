"""Which images a command is about: a folder of any images, or the splits of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.data.image_files import endings_text, find_images, is_image
from ccreid_cli.data.own_folders import tell_of_left_out
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.records import SPLITS
from ccreid_cli.data.splits import Tracks


@dataclass(frozen=True, eq=False)
class ImageList:
    """N images, with what is known of them.

    Attributes:
        root: Folder that `names` are relative to.
        names: N POSIX paths.
        ids: N names of identities, `UNKNOWN` where there is none; None for a plain folder.
        cams: N names of cameras, likewise.
        splits: (N,) str, each image's split; None unless several splits are listed together.
        tracks: What else is known of the images, if anything.
    """

    root: Path
    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None
    cams: tuple[str, ...] | None = None
    splits: NDArray[np.str_] | None = None
    tracks: Tracks | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        """The N image files."""
        return [self.root / name for name in self.names]

    def select(self, kept: NDArray[np.int64]) -> ImageList:
        """Return the images at the positions `kept`."""

        def pick(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple([names[position] for position in kept])

        ids, cams = (None if names is None else pick(names) for names in (self.ids, self.cams))
        splits = None if self.splits is None else self.splits[kept]
        return ImageList(
            self.root, pick(self.names), ids, cams, splits, self.tracks.select(kept) if self.tracks else None
        )


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
        source: A dataset of the catalogue (which wins), a folder, or a manifest of own images.
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
        found = find_images(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror or error}.") from error
    tell_of_left_out(folder, found, reporter)
    if not found.names:
        raise DataError(f"no image was found in {folder}.", endings_text())
    return ImageList(folder, tuple(found.names))
