"""Checkpoints: saved whole or not at all, checked on reading, rotated only after the new one reads back.

A checkpoint is a ``torch.save`` dictionary of plain values and tensors, so that it loads with ``weights_only=True``:
``format``, ``version``, ``model`` (state dict), ``spec`` (architecture), ``preprocess``, ``config`` (settings),
``training`` (all that decides the future of the run) and ``digest`` (SHA-256 over everything else).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ccreid_cli.core.errors import CheckpointError
from ccreid_cli.core.files import atomic_path

FORMAT = "ccreid-checkpoint"
VERSION = 2
_NUMBERED = re.compile(r"epoch-(\d+)(?:-step-(\d+))?\.pt$")


def digest(value: Any) -> str:
    """Return the SHA-256 of nested dictionaries, lists, plain values and tensors (bits, shapes and types)."""
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        hasher.update(f"tensor {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        hasher.update(f"dict {len(value)}".encode())
        for key in sorted(value, key=repr):
            hasher.update(repr(key).encode())
            _feed(hasher, value[key])
    elif isinstance(value, list | tuple):
        hasher.update(f"list {len(value)}".encode())
        for item in value:
            _feed(hasher, item)
    else:
        hasher.update(repr(value).encode())


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` with its digest; the file appears only when it is whole and on disk.

    Raises:
        DataError: The disk is full or the folder not writable; nothing that was there is changed.
    """
    whole = {"format": FORMAT, "version": VERSION, **content}
    whole["digest"] = digest(whole)
    with atomic_path(path) as temporary:
        try:
            torch.save(whole, temporary)
        except RuntimeError as error:
            # PyTorch's zip writer reports a full disk as a RuntimeError.
            raise OSError(28, "the disk is full or not writable") from error
        read_checkpoint(temporary)


def read_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint of ccreid and check its digest. Runs no code from the file.

    Raises:
        CheckpointError: The file is missing, truncated, damaged, or no checkpoint of ccreid.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist.", "`ccreid runs list` shows what there is.")
    try:
        whole = torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"checkpoint {path} is damaged or cut short ({type(error).__name__}).") from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of a ccreid run.",
            "To start from its weights use `--init-from` or `--weights`; to score it, `ccreid eval --resume`.",
        )
    if whole.get("version", 0) > VERSION:
        raise CheckpointError(f"{path} was written by a newer ccreid.", "Update ccreid.")
    stored = whole.pop("digest", None)
    if stored != digest(whole):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match.")
    return _as_newest(whole)


def _as_newest(whole: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of any version in the form of the newest.

    Version 1 (ccreid 0.1.0) kept the centroids of the one method that there was beside the run's other state.
    """
    if whole.get("version") == 1 and "training" in whole:
        training = dict(whole["training"])
        centroids = training.pop("centroids", None)
        training["method"] = {} if centroids is None else {"centroids": centroids}
        return {**whole, "version": VERSION, "training": training}
    return whole


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint.

    Attributes:
        content: What `read_checkpoint` gave.
        path: Its file.
        problems: What was wrong with newer ones.
    """

    content: dict[str, Any]
    path: Path
    problems: list[str] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, int]:
        """Epochs done, and steps done within the next one."""
        training = self.content["training"]
        return int(training["epoch"]), int(training["step"])


def _place_in_name(path: Path) -> tuple[int, int]:
    # A save within epoch e comes after the save that ended epoch e - 1, which is named e.
    match = _NUMBERED.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, 0)


def is_whole(path: Path) -> bool:
    """Tell whether a checkpoint is there and undamaged."""
    return _first_whole([path], []) is not None


def _first_whole(paths: Iterable[Path], problems: list[str]) -> Saved | None:
    """Read the first of `paths` that is whole, noting what is wrong with those before it."""
    for path in paths:
        if not path.exists():
            continue
        try:
            return Saved(read_checkpoint(path), path)
        except CheckpointError as error:
            problems.append(error.message)
    return None


class CheckpointStore:
    """The checkpoints of one run: numbered ones, and ``last.pt`` and ``best.pt``.

    Args:
        folder: Where they lie.
        keep: How many of the newest numbered ones stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def last(self) -> Path:
        """The newest checkpoint under a fixed name."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the highest mAP."""
        return self.folder / "best.pt"

    def numbered(self) -> list[Path]:
        """Return the numbered checkpoints, oldest first."""
        return sorted(
            (path for path in self.folder.glob("epoch-*.pt") if _NUMBERED.fullmatch(path.name)), key=_place_in_name
        )

    def save(
        self, content: Mapping[str, Any], *, epoch: int, step: int, is_best: bool, instead_of: Path | None = None
    ) -> Path:
        """Write a numbered checkpoint, point ``last`` (and ``best``) at it, then prune.

        Args:
            content: What `save_checkpoint` takes.
            epoch: Epochs done.
            step: Steps done within the next one.
            is_best: Whether this is the best evaluation so far.
            instead_of: A numbered one that this one makes superfluous, if any; it need not exist.

        Returns:
            The numbered file.

        Raises:
            DataError: It could not be written; the earlier ones are untouched.
        """
        path = self.path_of(epoch, step)
        save_checkpoint(path, content)
        self.point(self.last, path)
        if is_best:
            self.point(self.best, path)
        if instead_of is not None:
            instead_of.unlink(missing_ok=True)
        for old in self.numbered()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def path_of(self, epoch: int, step: int = 0) -> Path:
        """Return the file of the save after `epoch` epochs and `step` steps of the next."""
        return self.folder / (f"epoch-{epoch:04d}-step-{step:06d}.pt" if step else f"epoch-{epoch:04d}.pt")

    def point(self, name: Path, path: Path) -> None:
        """Make `name` the same file as `path`, by a hard link where the disk has them."""
        with atomic_path(name) as temporary:
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)

    def load_newest(self) -> Saved:
        """Read the newest checkpoint that is whole.

        Raises:
            CheckpointError: None is whole.
        """
        problems: list[str] = []
        numbered = self.numbered()[::-1]
        found = _first_whole(numbered, problems)
        if self.last.exists() and not any(self.last.samefile(path) for path in numbered):
            # The numbered file that it was another name of is gone, or the disk has no links.
            other = _first_whole([self.last], problems)
            if other and (found is None or other.place > found.place):
                found = other
        found = found or _first_whole([self.best], problems)
        if found is None:
            detail = " ".join(problems) or "There is none."
            raise CheckpointError(f"{self.folder} holds no whole checkpoint. {detail}", "Start the run again.")
        return replace(found, problems=problems)

    def is_empty(self) -> bool:
        """Whether there is nothing to go on from."""
        return not (self.numbered() or self.last.exists() or self.best.exists())

    def go_back_to(self, saved: Saved) -> None:
        """Make `saved` the newest: damaged or abandoned newer ones are out of the way, ``last`` is its file.

        Damaged files are kept under another name; whole ones are removed, since the run writes them again.
        """
        for newer in [path for path in self.numbered() if _place_in_name(path) > saved.place]:
            if is_whole(newer):
                newer.unlink()
            else:
                newer.replace(newer.with_name(f"{newer.name}.damaged"))
        if not (self.last.exists() and self.last.samefile(saved.path)):
            self.point(self.last, saved.path)


def config_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings stored in a checkpoint, by name."""
    stored: dict[str, Any] = json.loads(content["config"])
    return stored
