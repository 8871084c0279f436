"""Extraction in shards: any number of processes share them, and what is interrupted goes on with those that are there.

The images are cut into the same shards whatever happens, and a shard is computed as a whole or read as a whole, so the
features are the same, byte for byte, however many processes there are and however often they were interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter, SilentReporter, Task
from ccreid_cli.engine.extraction import checked_batch_size
from ccreid_cli.images.decoding import BROKEN_HINT, describe_broken
from ccreid_cli.inference.embedder import Embedder, make_room
from ccreid_cli.inference.embedding_file import EmbeddingFile, write_embeddings
from ccreid_cli.inference.image_parts import Parts, Shard
from ccreid_cli.inference.shard_index import ShardIndex, kept_shards, shard_file
from ccreid_cli.inference.stored_arrays import UNREADABLE
from ccreid_cli.machine.distributed import Group

KEPT_SIZE = 1024
"""Images in a shard that is only kept until the work is done."""
SHARD_SIZE = 8192
"""Images in a shard that stays."""
_SECONDS_BETWEEN_NEWS = 0.5


@dataclass(frozen=True)
class Extraction:
    """How images become features.

    Attributes:
        embedder: The network; None where only a feature file was given.
        folder: Where shards are kept; None computes in memory, which only one process can.
        batch_size: Images at once; None for what suits the device.
        workers: Threads that decode.
        strict: Whether a broken image is an error.
        group: The processes that share the work.
    """

    embedder: Embedder | None
    folder: Path | None = None
    batch_size: int | None = None
    workers: int | None = None
    strict: bool = False
    group: Group = field(default_factory=Group)

    def index(self, parts: Parts) -> ShardIndex:
        """Return what the shards of these images are made from."""
        assert self.embedder is not None
        device = self.embedder.device
        size = checked_batch_size(self.batch_size, device)
        about = {**self.embedder.about(), **parts.about(), "batch_size": size, "device": device.type}
        return ShardIndex(about, len(parts))


def embed_in_shards(
    parts: Parts, extraction: Extraction, reporter: Reporter, *, everywhere: bool = True
) -> tuple[EmbeddingFile, list[dict[str, str]]]:
    """Turn images into features in memory, going on from the shards that are kept; the caller removes them.

    Args:
        parts: The images.
        extraction: How.
        reporter: Where progress and warnings go.
        everywhere: Whether all processes get the features; else only the first does, and the others none.

    Returns:
        The features, and name and reason of every image that was left out.

    Raises:
        DataError: Images are broken and that is an error, or all of them are; a shard cannot be written.
    """
    assert extraction.embedder is not None
    group, folder = extraction.group, extraction.folder
    index = extraction.index(parts)
    found = _Gathered(parts.num_images, extraction.embedder.embedding_dim)
    with kept_shards(folder if len(parts) > 1 or group.world > 1 else None, index, group) as kept:
        alone = group.world == 1
        _work(parts, extraction, index, kept, reporter, found.take if alone else None)
        if not alone and (everywhere or group.is_main):
            assert kept is not None
            for number in range(len(parts)):
                found.take(number, _read(kept, number))
        group.barrier()  # the caller may remove what the others read
    broken = found.left_out(parts, extraction.strict, reporter) if everywhere or group.is_main else []
    return EmbeddingFile(found.finish(), parts.join(found.shards), extraction.embedder.about()), broken


def write_shards(
    parts: Parts, extraction: Extraction, reporter: Reporter, *, replace: bool = False
) -> tuple[int, list[dict[str, str]]]:
    """Turn images into a folder of features, going on from the shards that are there.

    Args:
        parts: The images.
        extraction: How; its folder is the result.
        reporter: Where progress and warnings go.
        replace: Whether features of other images or another model are removed first, where there are some.

    Returns:
        How many features there are, and name and reason of every image that was left out.

    Raises:
        UsageError: The folder holds other features, and `replace` is not set.
        DataError: Images are broken and that is an error, or all of them are; a shard cannot be written.
    """
    group, index = extraction.group, extraction.index(parts)
    folder = extraction.folder
    assert folder is not None
    with kept_shards(folder, index, group, is_result=True, replace=replace):
        _work(parts, extraction, index, folder, reporter)
        rows, broken = group.on_main(lambda: _finish(folder, parts, index, extraction.strict, reporter))
    return sum(rows), broken


def _finish(
    folder: Path, parts: Parts, index: ShardIndex, strict: bool, reporter: Reporter
) -> tuple[list[int], list[dict[str, str]]]:
    found = _Gathered(0, 0)
    for number in range(len(parts)):
        about = _about(folder, number)
        if about is None:
            raise _unseen(folder, number)
        found.take(number, Shard.of(about))
    broken = found.left_out(parts, strict, reporter)
    rows = [shard.num_kept for shard in found.shards]
    index.finished(rows).write(folder)
    return rows, broken


def _work(
    parts: Parts,
    extraction: Extraction,
    index: ShardIndex,
    folder: Path | None,
    reporter: Reporter,
    take: Callable[[int, Shard], None] | None = None,
) -> None:
    """Compute the shards that are missing, together with the other processes.

    Args:
        parts: The images.
        extraction: How.
        index: Of the shards.
        folder: Where they are kept, if at all.
        reporter: Where progress goes.
        take: Takes each shard, in order, where there is one process.
    """
    embedder = extraction.embedder
    assert embedder is not None
    group = extraction.group
    with _shared_task(group, reporter, "images to features", parts.num_images) as task:
        for number in group.share_out(len(parts)):
            if not parts.num_images:
                task.note(tar=f"{number + 1:,} of {len(parts):,}")
            state = parts.state(number)
            about = _about(folder, number) if folder else None
            if about is not None and about.get("state") == state and folder:
                task.advance(int(about["num_images"]))
                if take:
                    take(number, _read(folder, number))
                continue
            shard = parts.compute(number, embedder, extraction.batch_size, extraction.workers, _WithinTask(task))
            if shard.broken and extraction.strict:
                raise DataError(f"{parts.source}: {_describe(parts, [shard])}", BROKEN_HINT)
            if folder:
                _save(folder, number, shard, {**index.made_from, "state": state})
            if take:
                take(number, shard)


def _save(folder: Path, number: int, shard: Shard, made_from: dict[str, Any]) -> None:
    """Keep a shard, whole or not at all."""
    about = {**made_from, "num_images": shard.num_images, "broken": shard.broken}
    write_embeddings(shard_file(folder, number), EmbeddingFile(shard.features, shard.images, about))


def _about(folder: Path, number: int) -> dict[str, Any] | None:
    """Return what a shard says of itself; None where it is not there, or damaged."""
    try:
        with np.load(shard_file(folder, number), allow_pickle=False) as loaded:
            about: dict[str, Any] = json.loads(str(loaded["about"]))
            return about
    except UNREADABLE:
        return None


def _read(folder: Path, number: int) -> Shard:
    """Read a shard that one of the processes has written.

    Raises:
        DataError: It is not there.
    """
    try:
        with np.load(shard_file(folder, number), allow_pickle=False) as loaded:
            return Shard.of(json.loads(str(loaded["about"])), loaded)
    except UNREADABLE as error:
        raise _unseen(folder, number) from error


def _unseen(folder: Path, number: int) -> DataError:
    return DataError(
        f"{shard_file(folder, number)}, which one of the processes wrote, cannot be read.",
        "The folder must be on a disk that all machines share. The same command goes on where it was.",
    )


class _Gathered:
    """Collects shards, in order.

    Args:
        num_images: How many images there are at most; 0 where that is not known, or no features are wanted.
        dim: Length of a feature.
    """

    def __init__(self, num_images: int, dim: int) -> None:
        self.features = np.empty((num_images, dim), dtype=np.float32)
        self.num_rows = 0
        self.shards: list[Shard] = []

    def take(self, number: int, shard: Shard) -> None:
        """Add the shard `number`."""
        stop = self.num_rows + len(shard.features)
        make_room(self.features, stop)
        self.features[self.num_rows : stop] = shard.features
        self.num_rows = stop
        self.shards.append(shard.without_features())

    def finish(self) -> NDArray[np.float32]:
        """Return the features of all shards."""
        return self.features[: self.num_rows]

    def left_out(self, parts: Parts, strict: bool, reporter: Reporter) -> list[dict[str, str]]:
        """Return name and reason of the images that could not be read, and warn of them.

        Raises:
            DataError: There are such and `strict` is set, or there are no others.
        """
        broken = [{"name": name, "reason": reason} for shard in self.shards for _, name, reason in shard.broken]
        if broken:
            text = _describe(parts, self.shards)
            if strict or not any(shard.num_kept for shard in self.shards):
                raise DataError(f"{parts.source}: {text}", BROKEN_HINT)
            reporter.warning(f"{parts.source}: {text} They are left out.")
        return broken


def _describe(parts: Parts, shards: list[Shard]) -> str:
    broken = [(name, reason) for shard in shards for _, name, reason in shard.broken]
    total = max(parts.num_images, sum(shard.num_images for shard in shards))
    return describe_broken([name for name, _ in broken], [(at, reason) for at, (_, reason) in enumerate(broken)], total)


@contextmanager
def _shared_task(group: Group, reporter: Reporter, description: str, total: int) -> Iterator[Task]:
    """Give one bar for the work of all processes; at the end they wait for one another."""
    if group.world == 1:
        with reporter.task(description, total, "img") as task:
            yield task
        return
    done, finished = group.tally(), group.tally()
    with reporter.task(description, total, "img") as bar:
        shared = _SharedTask(done, bar)
        yield shared
        shared.tell()
        finished(1)
        while finished(0) < group.world:
            time.sleep(_SECONDS_BETWEEN_NEWS / 5)
            shared.tell()


class _SharedTask:
    """Counts what all processes do; the bar of the first shows it."""

    def __init__(self, done: Callable[[int], int], bar: Task) -> None:
        self._done, self._bar = done, bar
        self._shown = self._untold = 0
        self._told = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        """Count images of this process."""
        self._untold += amount
        if time.monotonic() - self._told > _SECONDS_BETWEEN_NEWS:
            self.tell()

    def tell(self) -> None:
        """Tell the others, and show what they have told; raises the error of one that failed."""
        total, self._untold = self._done(self._untold), 0
        self._bar.advance(total - self._shown)
        self._shown, self._told = total, time.monotonic()

    def note(self, **fields: object) -> None:
        """Show named values beside the bar."""
        self._bar.note(**fields)


class _WithinTask(SilentReporter):
    """Lets the work on a shard move the bar of all of them."""

    def __init__(self, task: Task) -> None:
        self._task = task

    @contextmanager
    def task(self, description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Task]:
        """Give the bar of all shards."""
        yield self._task
