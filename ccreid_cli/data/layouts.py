"""The ways datasets lie on disk: one folder per split and everything in the file name, or lists that name the files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NoReturn, Protocol

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.names import UNKNOWN, name_of
from ccreid_cli.data.file_names import identity_and_camera
from ccreid_cli.data.image_files import find_images, is_image
from ccreid_cli.data.records import SPLITS, Record

MARKET_PATTERN = r"(-?[0-9]+)_c([0-9]+)"


@dataclass
class Scan:
    """What reading a dataset's folder found, before anything is judged.

    Attributes:
        records: Images by split; `camera` is as the files number it.
        num_junk: Images by split without an identity (-1), which are left out.
        misnamed: Images whose name does not follow the dataset's pattern, relative to the root; left out.
        absent: Images that a list names but that are not on disk, relative to the root; left out.
        other: Images with endings that the dataset's own do not have, relative to the root; left out.
    """

    records: dict[str, list[Record]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    num_junk: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    misnamed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def add(self, split: str, record: Record) -> None:
        """Take one image in, or count it as junk."""
        if record.identity == UNKNOWN:
            self.num_junk[split] += 1
        else:
            self.records[split].append(record)

    def __iter__(self) -> Iterator[Record]:
        """Go through the images of all splits."""
        return chain(*self.records.values())

    def num_images(self, split: str) -> int:
        """Images of a split, junk left out."""
        return len(self.records[split])

    def num_ids(self, split: str) -> int:
        """Different identities of a split."""
        return len({record.identity for record in self.records[split]})


class Layout(Protocol):
    """One way a dataset lies on disk."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders and files that must be in the root, relative to it: what the layout is recognised by."""

    def is_unmistakable(self, root: Path) -> bool:
        """Say whether a folder that has these parts cannot well be anything else."""

    def read(self, root: Path) -> Scan:
        """Read the folder.

        Raises:
            DataError: A list is malformed.
        """


def is_recognised(layout: Layout, root: Path) -> bool:
    """Say whether all parts of `layout` are in `root`."""
    return all((root / part).exists() for part in layout.parts)


@dataclass(frozen=True)
class FolderLayout:
    """One folder per split; identity and camera are in the file name.

    Attributes:
        train: Folder of the training images.
        query: Folder of the queries.
        gallery: Folder of the gallery.
        pattern: Regular expression at the start of a file name; group 1 is the identity, group 2 the camera. Without a
            second group there are no cameras, and each image counts as its own.
        extensions: Lower-case endings of images.
        is_nested: Whether images lie in folders below these, such as one per identity.
    """

    train: str = "bounding_box_train"
    query: str = "query"
    gallery: str = "bounding_box_test"
    pattern: str = MARKET_PATTERN
    extensions: tuple[str, ...] = (".jpg",)
    is_nested: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The three folders."""
        return (self.train, self.query, self.gallery)

    def is_unmistakable(self, root: Path) -> bool:
        """Say whether the names give no camera and all follow the pattern; others are read as any own images are."""
        if re.compile(self.pattern).groups > 1:
            return False
        scan = self.read(root)
        names = [Path(record.name).name for record in scan]
        return bool(names) and not scan.misnamed and not any(map(identity_and_camera, names))

    def read(self, root: Path) -> Scan:
        """Read the three folders."""
        scan = Scan()
        pattern = re.compile(self.pattern, re.ASCII)
        for split, folder in zip(SPLITS, self.parts, strict=True):
            for name in self._images(root / folder):
                match = pattern.match(name.rpartition("/")[2])
                path = f"{folder}/{name}"
                if not name.lower().endswith(self.extensions):
                    scan.other.append(path)
                elif match is None:
                    scan.misnamed.append(path)
                else:
                    scan.add(split, Record(path, name_of(match[1]), match[2] if pattern.groups > 1 else path))
        return scan

    def _images(self, folder: Path) -> list[str]:
        """Return the names of all images of a split, sorted: no Thumbs.db, no hidden or ``._`` files."""
        if self.is_nested:
            return list(find_images(folder).names)
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_image(entry.name) and entry.is_file())


@dataclass(frozen=True)
class ListLayout:
    """Text files name the images of each split.

    Attributes:
        parts: Folders and files that must be in the root.
        reader: Reads the root.
    """

    parts: tuple[str, ...]
    reader: Callable[[Path], Scan]

    def is_unmistakable(self, root: Path) -> bool:
        """Say that it is: nothing else has such lists."""
        return True

    def read(self, root: Path) -> Scan:
        """Read the lists.

        Raises:
            DataError: A line is malformed; names file and line.
        """
        return self.reader(root)


class _Files:
    """Which files are below a folder, looked up folder by folder: far fewer system calls than one per image."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, set[str]] = {}

    def __contains__(self, name: str) -> bool:
        folder, _, file = name.rpartition("/")
        if folder not in self._names:
            path = self._root / folder
            self._names[folder] = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        return file in self._names[folder]


class ListReader:
    """Collects the lines of a dataset's lists into a scan."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scan = Scan()
        self._files = _Files(root)

    def add(self, split: str, record: Record) -> None:
        """Take one image in, or note that it is not on disk."""
        if record.name in self._files:
            self.scan.add(split, record)
        else:
            self.scan.absent.append(record.name)

    def lines(self, list_name: str) -> Iterator[tuple[int, str]]:
        """Return the lines that hold anything, with their numbers."""
        text = (self.root / list_name).read_text(encoding="utf-8", errors="replace")
        return ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip())

    def malformed(self, list_name: str, number: int, line: str, expected: str) -> NoReturn:
        """Refuse a line.

        Raises:
            DataError: Always.
        """
        raise DataError(
            f"{self.root / list_name}, line {number}: expected {expected}, found {line[:80]!r}.",
            "Take the list files as the dataset's authors gave them out.",
        )
