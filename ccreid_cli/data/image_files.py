"""Which files of a folder are images, found by one walk for all commands."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

from ccreid_cli.core.packed_texts import PackedTexts

_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".sgi", ".pcx", ".qoi"),
)
"""Endings of the pictures that people have. (Pillow also opens icons, documents, films and tables of numbers.)"""
_OTHER_PICTURES = (
    *(".jxl", ".jxr", ".exr", ".psd", ".svg", ".eps"),
    *(".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf"),
)
"""Endings of pictures that are never read, but counted."""
_SYSTEM_FOLDERS = frozenset(
    ("__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "$recycle.bin")
    + ("system volume information", "lost+found")
)
"""Folders that operating systems and network drives add, in lower case; hidden ones are left out anyway."""


@cache
def image_endings() -> frozenset[str]:
    """Return the endings, in lower case and with the dot, of images that Pillow can open here."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions()
    return frozenset(ending for ending in _ENDINGS if ending == ".mpo" or known.get(ending) in Image.OPEN)


def endings_text() -> str:
    """Return the endings as a hint."""
    return f"Images end in {', '.join(ending for ending in _ENDINGS if ending in image_endings())}."


def is_image(name: str) -> bool:
    """Say whether a file is an image to read, by its name."""
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in image_endings()


def is_unreadable_picture(name: str) -> bool:
    """Say whether a file is a picture that Pillow cannot open here, by its name."""
    ending = PurePosixPath(name).suffix.lower()
    return not name.startswith(".") and ending in (*_ENDINGS, *_OTHER_PICTURES) and ending not in image_endings()


def is_system_folder(name: str) -> bool:
    """Say whether a folder is hidden or one that an operating system made: nothing in it is an image of the user."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


@dataclass
class FolderImages:
    """What a folder and all folders below it hold.

    Attributes:
        names: Images to read, POSIX paths relative to the folder, sorted.
        unreadable: Pictures of formats that Pillow cannot open here, likewise.
        broken_links: Links named like images that lead nowhere, likewise.
        repeated: Linked folders that were not entered, since they lead to a folder that is read anyway, likewise.
    """

    names: list[str] | PackedTexts = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def sort(self, *, is_names_sorted: bool = False) -> FolderImages:
        """Sort everything, but the names where they are sorted, and return it."""
        for names in (self.unreadable, self.broken_links, self.repeated):
            names.sort()
        if not is_names_sorted:
            self.names.sort()
        return self


def find_images(
    folder: Path, *, skip: Collection[Path] = (), names: list[str] | PackedTexts | None = None
) -> FolderImages:
    """Find the images in a folder and all folders below it.

    Hidden files and folders and those of operating systems are passed over. Links are followed, but each real folder is
    entered once, by its own path where it lies below `folder`; so circles of links end.

    Args:
        folder: Where to begin.
        skip: Folders below it that are not entered.
        names: What the images' names are collected in; by default a list.

    Raises:
        OSError: A folder cannot be read.
    """
    found = FolderImages([] if names is None else names)
    seen: set[tuple[int, int]] = {_place(path) for path in skip if path.is_dir()}
    num_walks = 0
    waiting = [("", folder)]  # real folders are walked before links to folders, so that their own paths name the images
    while waiting:
        prefix, start = waiting.pop(0)
        if prefix and _place(start) in seen:
            found.repeated.append(prefix.rstrip("/"))
        else:
            num_walks += 1
            waiting += _walk(start, prefix, found, seen)
    return found.sort(is_names_sorted=num_walks == 1)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted by name; hidden and system folders are left out.

    Raises:
        OSError: The folder cannot be read.
    """
    return [path for path in sorted(folder.iterdir()) if not is_system_folder(path.name) and path.is_dir()]


def _walk(folder: Path, prefix: str, found: FolderImages, seen: set[tuple[int, int]]) -> Iterator[tuple[str, Path]]:
    """Collect what is in a real folder and the real ones below it, and return the linked folders met on the way.

    The names come in sorted order: a folder counts by its name and a slash, with which all names in it begin.
    """
    place = _place(folder)
    if place in seen:
        return
    seen.add(place)
    inside: list[str] = []
    with os.scandir(folder) as scan:
        for entry in scan:
            name = prefix + entry.name
            linked = entry.is_symlink()
            if Path(entry.path).is_dir() if linked else entry.is_dir():  # the entry raises on a link to itself
                if is_system_folder(entry.name):
                    continue
                if linked:
                    yield name + "/", Path(entry.path)
                else:
                    inside.append(entry.name + "/")
            elif is_image(entry.name):
                if not linked or Path(entry.path).is_file():
                    inside.append(entry.name)
                else:
                    found.broken_links.append(name)
            elif is_unreadable_picture(entry.name):
                found.unreadable.append(name)
    for name in sorted(inside):
        if name.endswith("/"):
            yield from _walk(folder / name, prefix + name, found, seen)
        else:
            found.names.append(prefix + name)


def _place(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
