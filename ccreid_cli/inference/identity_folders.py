"""One folder per identity, of hard links, symbolic links or copies, as ``-d`` and any file manager read them."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.names import UNKNOWN
from ccreid_cli.core.reporter import Reporter

HARD, SYMBOLIC, COPY = "hard links", "symbolic links", "copies"


def check_folder(folder: Path) -> None:
    """Refuse, before any work is done, a place that holds anything already.

    Raises:
        UsageError: It is a file or a link, or a folder that is not empty, or would lie in a file.
    """
    if above := next((parent for parent in folder.absolute().parents if parent.is_file()), None):
        raise UsageError(f"{above} is a file, so {folder} cannot be made in it.", "Choose another folder.")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is not a folder.", "Choose another name.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is there already and not empty.", "Choose another name, or remove it first.")


def write_folders(folder: Path, images: Sequence[Path], names: Sequence[str], how: str, reporter: Reporter) -> str:
    """Make a folder per identity, all of them or none; images in no identity are in none.

    Args:
        folder: The folder of the folders: new or empty.
        images: N files.
        names: N names of identities.
        how: `HARD`, `SYMBOLIC` or `COPY`. Where hard links are impossible, copies are made, which is said.
        reporter: Told of that.

    Returns:
        What was made.

    Raises:
        DataError: The disk refuses.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        made = _fill(temporary, images, names, how, reporter)
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise DataError(
            f"could not write {folder}: {error.strerror or error}.", "Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return made


def folder_name(identity: str) -> str:
    """Return an identity's name as the name of a folder: the same where that is one, else with escapes (%2F)."""
    escaped = (
        quote(identity, safe=" !#$&'()+,;=@[]{}^~`", errors="surrogateescape") if _is_unsafe(identity) else identity
    )
    return escaped.replace(".", "%2E", 1) if escaped.startswith(".") else escaped


def _is_unsafe(identity: str) -> bool:
    return any(character in '/\\:*?"<>|%' or not character.isprintable() for character in identity)


def _fill(folder: Path, images: Sequence[Path], names: Sequence[str], how: str, reporter: Reporter) -> str:
    place = _PLACERS[how]
    for identity, members in _members(images, names).items():
        inside = folder / folder_name(identity)
        inside.mkdir()
        for image, name in zip(members, _file_names(members), strict=True):
            source = image.resolve()
            try:
                place(source, inside / name)
            except OSError as error:
                if how != HARD or not source.is_file():
                    raise
                reporter.warning(f"hard links are impossible there ({error.strerror or error}): copies are made.")
                how, place = COPY, shutil.copy2
                place(source, inside / name)
    return how


_PLACERS: dict[str, Callable[[Path, Path], object]] = {HARD: os.link, SYMBOLIC: os.symlink, COPY: shutil.copy2}


def _members(images: Sequence[Path], names: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files of each identity, each once, in their order."""
    members: dict[str, dict[Path, None]] = defaultdict(dict)
    for image, name in zip(images, names, strict=True):
        if name != UNKNOWN:
            members[name][image] = None
    return {name: list(files) for name, files in members.items()}


def _file_names(files: Sequence[Path]) -> list[str]:
    """Return a different name for each file of a folder: its own, else with its folders, else with a number."""
    found: dict[str, None] = {}
    for file in files:
        name = file.name
        if name in found:
            name = "_".join(file.parts[-3:]).replace(os.sep, "")
        stem, suffix, number = PurePosixPath(name).stem, file.suffix, 2
        while name in found:
            name, number = f"{stem}-{number}{suffix}", number + 1
        found[name] = None
    return list(found)
