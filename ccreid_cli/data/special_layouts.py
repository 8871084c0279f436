"""Layouts of single datasets: the lists of MSMT17, VehicleID and VERI-Wild, the tracks of MARS, and PRID2011."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.names import name_of
from ccreid_cli.data.file_names import identity_and_camera
from ccreid_cli.data.image_files import find_images
from ccreid_cli.data.layouts import ListLayout, ListReader, Scan
from ccreid_cli.data.records import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MARS_PARTS = ("bbox_train", "bbox_test", "info/test_name.txt", "info/tracks_test_info.mat", "info/query_IDX.mat")
_PRID_PERSON = re.compile(r"person_([0-9]+)")
_PRID_TRAINED = range(1, 101)
_PRID_QUERIED = range(101, 201)


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


def mars_tracks() -> ListLayout:
    """MARS: ``bbox_train/0001/0001C1T0001F001.jpg``, likewise ``bbox_test``, and ``info/`` with tracks."""
    return ListLayout(_MARS_PARTS, _read_mars)


def prid_cameras() -> ListLayout:
    """PRID2011: ``cam_a/person_0001.png`` or ``cam_a/person_0001/0001.png``, likewise ``cam_b``."""
    return PridLayout(("cam_a", "cam_b"), _read_prid)


class PridLayout(ListLayout):
    """PRID2011, which has no lists: its files are known by their names."""

    def is_unmistakable(self, root: Path) -> bool:
        """Say whether all images are of persons by number, as nobody else names them."""
        scan = self.read(root)
        return any(scan.records.values()) and not scan.misnamed


def _read_mars(root: Path) -> Scan:
    """Read all training images, and the test images by tracks: those in query_IDX are queries, the others gallery."""
    reader = ListReader(root)
    for name in find_images(root / "bbox_train").names:
        _add_mars(reader, "train", f"bbox_train/{name}")
    names = [name for _, name in reader.lines("info/test_name.txt")]
    tracks = _matrix(root / "info/tracks_test_info.mat", "track_test_info").reshape(-1, 4)
    queries = set(_matrix(root / "info/query_IDX.mat", "query_IDX").ravel().tolist())
    for number, (first, last) in enumerate(tracks[:, :2].tolist(), 1):
        if not 1 <= first <= last <= len(names):
            raise DataError(
                f"{root / 'info/tracks_test_info.mat'}: track {number} is of images {first} to {last}, but "
                f"test_name.txt names {len(names):,}.",
                "Take the files as the dataset's authors gave them out.",
            )
        for name in names[first - 1 : last]:
            _add_mars(reader, "query" if number in queries else "gallery", f"bbox_test/{name[:4]}/{name}")
    return reader.scan


def _add_mars(reader: ListReader, split: str, path: str) -> None:
    named = identity_and_camera(path.rpartition("/")[2])
    if named is None:
        reader.scan.misnamed.append(path)
    else:
        reader.add(split, Record(path, named.identity, named.camera))


def _matrix(path: Path, name: str) -> NDArray[np.int64]:
    """Return an array of a MATLAB file as whole numbers."""
    import numpy as np
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(path)
        return np.asarray(content[name]).astype(np.int64)
    except Exception as error:  # SciPy raises nearly everything on damaged bytes
        raise DataError(
            f"{path} does not hold the array {name}: {error}.", "Take the files as the dataset's authors gave them out."
        ) from error


def _read_prid(root: Path) -> Scan:
    """Read both cameras. Persons 1-200 are the same in both; from 201 on a number means another person in each.

    Persons 1-100 are for training, 101-200 in camera A are queries, and all others in camera B are the gallery; the
    others in camera A, whom camera B did not see, are left out.
    """
    scan = Scan()
    for folder, camera in (("cam_a", "1"), ("cam_b", "2")):
        for name in find_images(root / folder).names:
            person = _PRID_PERSON.match(name)
            if person is None:
                scan.misnamed.append(f"{folder}/{name}")
                continue
            record = Record(f"{folder}/{name}", name_of(person[1]), camera)
            if int(person[1]) in _PRID_TRAINED:
                scan.add("train", record)
            elif camera == "2":
                scan.add("gallery", record)
            elif int(person[1]) in _PRID_QUERIED:
                scan.add("query", record)
            else:
                scan.num_junk["query"] += 1
    return scan
