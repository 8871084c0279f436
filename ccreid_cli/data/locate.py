"""Finding a dataset of the catalogue under the data directory, and saying what is there when it is not."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.words import few
from ccreid_cli.data.catalog import BUNDLE_NAMES, DatasetInfo, Place, Policy

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")


@dataclass(frozen=True)
class Found:
    """A dataset's folder.

    Attributes:
        place: The catalogue's place whose layout fits.
        root: The folder.
        is_official: Whether it is where the official layout has it.
    """

    place: Place
    root: Path
    is_official: bool


def official_roots(info: DatasetInfo, data_dir: Path) -> list[Path]:
    """Return the folders the official layout accepts: ``<data-dir>/<name>/<folder>``."""
    return [data_dir / info.name / folder for folder in info.folders]


def find_dataset(info: DatasetInfo, data_dir: Path) -> Found | None:
    """Find a dataset by its split folders or lists.

    Looked for, in this order: the official folders, ``<data-dir>/<name>`` itself, anything up to two levels below it,
    an official folder directly in the data directory or one level deeper, and the data directory itself.

    Args:
        info: The dataset.
        data_dir: The data directory.

    Returns:
        The first folder that holds all parts of one of the dataset's layouts, or None.
    """
    for root in _candidates(info, data_dir):
        place = info.place_at(root)
        if place is not None:
            return Found(place, root, root in official_roots(info, data_dir))
    return None


def missing_error(info: DatasetInfo, data_dir: Path) -> DataError:
    """Say what was expected where, what is there instead, and which command gets the dataset."""
    places = " or ".join(str(root) for root in official_roots(info, data_dir))
    expected = f"expected {places}, with {info.parts_text}"
    message = f"{info.name} ({info.title}) was not found: {expected}. {_what_is_there(info, data_dir)}"
    return DataError(message, how_to_get(info, data_dir))


def how_to_get(info: DatasetInfo, data_dir: Path) -> str:
    """Return the commands that lay the dataset out, fit for what is on disk and for its terms."""
    where = f"--data-dir {shlex.quote(str(data_dir))}"
    if info.policy is Policy.MADE:
        return f"Make it: ccreid data make {info.name} {where}"
    archives = archives_of(info, data_dir)
    if archives:
        return f"Lay it out: ccreid data fetch {info.name} {where} --archive {shlex.quote(str(archives[0]))}"
    link = f"Is it elsewhere on this machine? ccreid data link {info.name} FOLDER {where}"
    if not info.sources:
        return (
            f"{why_not_downloaded(info)} With an archive: ccreid data fetch {info.name} {where} --archive FILE. {link}"
        )
    return f"Get it: ccreid data fetch {info.name} {where}. {link}"


def why_not_downloaded(info: DatasetInfo) -> str:
    """Say why a dataset without sources is not downloaded, and where it is to be had."""
    bundle = " (The official bundle holds it: ccreid data fetch all.)" if info.name in BUNDLE_NAMES else ""
    if info.policy is Policy.WITHDRAWN:
        return f"Its authors withdrew it, so it is not downloaded on its own; about it: {info.homepage}.{bundle}"
    if info.policy is Policy.BY_REQUEST:
        return f"Its authors give it out on request, so ask them for it: {info.homepage}.{bundle}"
    return (
        f"It is given out on a web page that a program cannot download from, so get it there: {info.homepage}.{bundle}"
    )


def archives_of(info: DatasetInfo, data_dir: Path) -> list[Path]:
    """Return archives in the data directory and the dataset's own folder that look like this dataset's."""
    known = {_plain(name) for name in (info.name, *info.folders) if name}
    own = [path for path in _entries(data_dir / info.name) if is_archive_name(path.name)]
    loose = [path for path in _entries(data_dir) if is_archive_name(path.name)]
    return own + [path for path in loose if any(name in _plain(path.name) for name in known)]


def is_archive_name(name: str) -> bool:
    """Say whether a file name ends like an archive's."""
    return name.lower().endswith(ARCHIVE_ENDINGS)


def looks_like(info: DatasetInfo, name: str) -> bool:
    """Say whether a file or folder name is about this dataset, whatever its case and punctuation."""
    return any(_plain(known) in _plain(name) for known in (info.name, info.title, *info.folders) if known)


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _candidates(info: DatasetInfo, data_dir: Path) -> Iterator[Path]:
    home = data_dir / info.name
    yield from official_roots(info, data_dir)
    yield home
    if info.policy is Policy.MADE:
        return
    children = _subfolders(home)
    yield from children
    for child in children:
        yield from _subfolders(child)
    for folder in info.folders:
        yield data_dir / folder
        yield from _subfolders(data_dir / folder)
    yield data_dir


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir() and path.name != "__MACOSX"]


def _what_is_there(info: DatasetInfo, data_dir: Path) -> str:
    """Describe the nearest thing to the dataset, from the most to the least telling."""
    if not data_dir.is_dir():
        return f"The data directory {data_dir} does not exist."
    partial = _most_complete(info, data_dir)
    if partial is not None:
        root, present, absent = partial
        return f"{root} has {', '.join(present)} but not {', '.join(absent)}."
    archives = archives_of(info, data_dir)
    if archives:
        return f"The archive {archives[0]} lies there, not laid out."
    for folder in (*official_roots(info, data_dir), data_dir / info.name, data_dir):
        if folder.is_dir():
            return _contents(folder)
    return _contents(data_dir)


def _contents(folder: Path) -> str:
    names = [path.name for path in _entries(folder)]
    return f"{folder} holds {few(names, 5)}." if names else f"{folder} is empty."


def _most_complete(info: DatasetInfo, data_dir: Path) -> tuple[Path, list[str], list[str]] | None:
    best: tuple[Path, list[str], list[str]] | None = None
    for root in _candidates(info, data_dir):
        for place in info.places:
            present = [part for part in place.layout.parts if (root / part).exists()]
            if present and (best is None or len(present) > len(best[1])):
                best = root, present, [part for part in place.layout.parts if part not in present]
    return best
