"""What lies where in a folder of a user's own images: its splits, the images of each, and what is in none of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import few, plural
from ccreid_cli.data.file_names import Named, identity_and_camera, is_split_folder
from ccreid_cli.data.image_files import FolderImages, find_images, subfolders

_SPLIT_FOLDERS = {
    "train": ("bounding_box_train", "image_train", "train_all", "train", "training"),
    "query": ("query", "image_query", "queries", "probe", "test/query"),
    "gallery": ("bounding_box_test", "image_test", "gallery", "test/gallery", "test"),
}
"""Folders of the splits, the first that is there is taken."""


@dataclass(frozen=True)
class Crop:
    """One image file.

    Attributes:
        name: POSIX path relative to the dataset's root.
        folder: The first sub-folder of its split that it lies in; empty where it lies in the split's folder itself.
    """

    name: str
    folder: str

    @property
    def file_name(self) -> str:
        """Its name without folders."""
        return self.name.rpartition("/")[2]

    @cached_property
    def named(self) -> Named | None:
        """Identity and camera by its file name, where that gives both."""
        return identity_and_camera(self.file_name)


def find_root(path: Path, reporter: Reporter) -> Path:
    """Go one level down where a folder holds nothing but one dataset's folder, as archives often unpack.

    Raises:
        OSError: A folder cannot be read.
    """
    inside = subfolders(path)
    if len(inside) != 1 or split_folders(path) or not split_folders(inside[0]) or find_images(path, skip=inside).names:
        return path
    reporter.message(f"{path} holds only {inside[0].name}, which is taken.")
    return inside[0]


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of train, query and gallery, where there are any, whatever the case of their names.

    Raises:
        OSError: A folder cannot be read.
    """
    children = subfolders(root)
    by_name = {path.name.lower(): path for path in children} | {path.name: path for path in children}
    for name in ("query", "gallery"):
        if "test" in by_name and (by_name["test"] / name).is_dir():
            by_name[f"test/{name}"] = by_name["test"] / name
    found = {}
    for split, names in _SPLIT_FOLDERS.items():
        present = [by_name[name] for name in names if name in by_name]
        if present:
            found[split] = present[0]
    return found


def find_crops(root: Path, reporter: Reporter) -> dict[str, list[Crop]]:
    """Find the images of each split that is there; without split folders all images are for training.

    Images that are seen and not taken are counted and named.

    Raises:
        DataError: Folders are named like parts of a dataset, but which part is which is not clear.
        OSError: A folder cannot be read.
    """
    folders = split_folders(root)
    if not folders:
        _refuse_other_splits(root)
        found = find_images(root)
        tell_of_left_out(root, found, reporter)
        return {"train": [_crop(name, "") for name in found.names]} if found.names else {}
    crops, rest = {}, FolderImages()
    for split, folder in folders.items():
        others = [other for other in folders.values() if other != folder and folder in other.parents]
        found = find_images(folder, skip=others)
        prefix = folder.relative_to(root).as_posix() + "/"
        crops[split] = [_crop(name, prefix) for name in found.names]
        for kind in ("unreadable", "broken_links", "repeated"):
            getattr(rest, kind).extend(prefix + name for name in getattr(found, kind))
    outside = find_images(root, skip=folders.values())
    for kind in ("unreadable", "broken_links"):
        getattr(rest, kind).extend(getattr(outside, kind))
    tell_of_left_out(root, rest, reporter)
    _tell_of_outside(root, outside.names, folders.values(), reporter)
    return {split: found for split, found in crops.items() if found}


def _crop(name: str, prefix: str) -> Crop:
    return Crop(prefix + name, name.partition("/")[0] if "/" in name else "")


def _refuse_other_splits(root: Path) -> None:
    """Refuse to take folders like ``bbox_train`` and ``bbox_test`` for folders of one and the same split."""
    named = [path.name for path in subfolders(root) if is_split_folder(path.name)]
    if not named or not any(find_images(root / name).names for name in named):
        return
    mars = "bbox_test" in named
    raise DataError(
        f"{root}: {few(named)} {'is' if len(named) == 1 else 'are'} named like parts of a dataset, but not in a way "
        "that says which images are for training, which are queries and which the gallery"
        f"{' (MARS says so in info/query_IDX.mat, info/tracks_test_info.mat and info/test_name.txt)' if mars else ''}.",
        "Name the folders train, query and gallery, write a CSV manifest, or give the one folder to train on.",
    )


def tell_of_left_out(root: Path, found: FolderImages, reporter: Reporter) -> None:
    """Count and name the pictures of a folder that are seen and not read."""
    for names, why in (
        (found.unreadable, "of a format that cannot be read here"),
        (found.broken_links, "a link that leads nowhere"),
    ):
        if names:
            kind = plural(len(names), "image is", "images are")
            reporter.warning(f"{root}: {kind} left out, the first {names[0]}, {why}.")
    if found.repeated:
        kind = plural(len(found.repeated), "linked folder leads", "linked folders lead")
        reporter.message(f"{root}: {kind} to a folder that is read already: {few(found.repeated)}.")


def _tell_of_outside(root: Path, names: Sequence[str], folders: Iterable[Path], reporter: Reporter) -> None:
    """Say which images lie outside the folders of the splits."""
    if not names:
        return
    tops: dict[str, int] = {}
    for name in names:
        top = name.partition("/")[0] + "/" if "/" in name else "the folder itself"
        tops[top] = tops.get(top, 0) + 1
    taken = ", ".join(folder.relative_to(root).as_posix() for folder in folders)
    where = few([f"{count:,} in {top}" for top, count in tops.items()], 5)
    left_out = plural(len(names), "image is", "images are")
    reporter.warning(f"{root}: {left_out} left out, the first {names[0]}, being outside {taken}: {where}.")
