"""The ways datasets lie on disk: one folder per split and everything in the file name, or lists that name the files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
        names = [Path(record.name).name for found in scan.records.values() for record in found]
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
            return find_images(folder).names
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


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _digits(text: str) -> str:
    """Return a field that must be a whole number, as it is written.

    Raises:
        ValueError: It is something else.
    """
    if not _is_number(text.removeprefix("-")):
        raise ValueError(f"{text} is no whole number")
    return text


def _read_msmt17(root: Path, train_folder: str, test_folder: str) -> Scan:
    """Read MSMT17's lists: ``0000/0000_000_01_0303morning_0008_0.jpg 0``, camera in the third field; train + val."""
    reader = ListReader(root)
    sources = (
        ("train", "list_train.txt", train_folder),
        ("train", "list_val.txt", train_folder),
        ("query", "list_query.txt", test_folder),
        ("gallery", "list_gallery.txt", test_folder),
    )
    for split, list_name, folder in sources:
        for number, line in reader.lines(list_name):
            try:
                name, person_id = line.rsplit(maxsplit=1)
                camera = name.rpartition("/")[2].split("_")[2]
                record = Record(f"{folder}/{name}", name_of(_digits(person_id)), _digits(camera))
            except (ValueError, IndexError):
                reader.malformed(list_name, number, line, '"0000/0000_000_01_0303morning_0008_0.jpg 0"')
            reader.add(split, record)
    return reader.scan


def msmt17_lists(train_folder: str, test_folder: str) -> ListLayout:
    """MSMT17 as its authors release it: two image folders and four lists."""
    lists = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
    return ListLayout((train_folder, test_folder, *lists), lambda root: _read_msmt17(root, train_folder, test_folder))


def _read_vehicle_id(root: Path, test_list: str) -> Scan:
    """Read VehicleID's lists (``image vehicle``); one test image per vehicle, the first by name, is the gallery.

    There are no cameras: each image's own number stands in, so that evaluation removes nothing.
    """
    reader = ListReader(root)
    test: list[Record] = []
    for list_name in ("train_test_split/train_list.txt", test_list):
        for number, line in reader.lines(list_name):
            try:
                image, person_id = line.split()
                record = Record(f"image/{image}.jpg", name_of(_digits(person_id)), _digits(image))
            except ValueError:
                reader.malformed(list_name, number, line, '"IMAGE VEHICLE", two numbers')
            if list_name == test_list:
                test.append(record)
            else:
                reader.add("train", record)
    seen: set[str] = set()
    for record in sorted(test):
        reader.add("query" if record.identity in seen else "gallery", record)
        seen.add(record.identity)
    return reader.scan


def vehicle_id_lists(test_list: str) -> ListLayout:
    """VehicleID (V1.0) with one of its test lists."""
    path = f"train_test_split/{test_list}"
    return ListLayout(("image", "train_test_split/train_list.txt", path), lambda root: _read_vehicle_id(root, path))


def _read_veri_wild(root: Path, query_list: str, gallery_list: str) -> Scan:
    """Read VERI-Wild's lists (``vehicle/image``); cameras are in vehicle_info.txt (``vehicle/image;camera;...``)."""
    reader = ListReader(root)
    info_name = "train_test_split/vehicle_info.txt"
    cameras: dict[str, str] = {}
    for number, line in reader.lines(info_name):
        fields = line.split(";")
        if len(fields) > 1 and _is_number(fields[1].strip()):
            cameras[fields[0].strip()] = fields[1].strip()
        elif number > 1:  # the first line is the header
            reader.malformed(info_name, number, line, '"VEHICLE/IMAGE;CAMERA;..."')
    for split, list_name in (
        ("train", "train_test_split/train_list.txt"),
        ("query", query_list),
        ("gallery", gallery_list),
    ):
        for number, line in reader.lines(list_name):
            image = line.removesuffix(".jpg")
            vehicle = image.partition("/")[0]
            if image not in cameras or not _is_number(vehicle):
                reader.malformed(list_name, number, line, "VEHICLE/IMAGE as listed in vehicle_info.txt")
            reader.add(split, Record(f"images/{image}.jpg", vehicle, cameras[image]))
    return reader.scan


def veri_wild_lists(test_name: str) -> ListLayout:
    """VERI-Wild with one of its test sets (``test_3000``, ``test_5000``, ``test_10000``)."""
    query, gallery = f"train_test_split/{test_name}_query.txt", f"train_test_split/{test_name}.txt"
    parts = ("images", "train_test_split/train_list.txt", "train_test_split/vehicle_info.txt", query, gallery)
    return ListLayout(parts, lambda root: _read_veri_wild(root, query, gallery))
