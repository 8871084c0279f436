"""Extraction of many images that goes on where an earlier attempt ended: each chunk of images is kept when it is done.

The images are cut into the same chunks whatever happens, and a chunk is computed as a whole or read as a whole, so the
features are the same, byte for byte, however often the work was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.core.reporter import Reporter, SilentReporter, Task
from ccreid_cli.images.decoding import BROKEN_HINT, Broken, describe_broken
from ccreid_cli.inference.embedder import EmbeddedFiles, Embedder
from ccreid_cli.inference.embedding_file import EmbeddingFile
from ccreid_cli.inference.image_list import ImageList
from ccreid_cli.inference.stored_arrays import UNREADABLE

CHUNK = 1024


@dataclass(frozen=True)
class KeptChunks:
    """The features of chunks of images, as files of one folder.

    Attributes:
        folder: Made with the first chunk.
    """

    folder: Path

    def precision(self) -> str | None:
        """Return the number format in which the chunks that are there were computed; None where there is none."""
        for file in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(file, allow_pickle=False) as loaded:
                    return str(json.loads(str(loaded["about"]))["precision"])
            except UNREADABLE:
                continue
        return None

    def load(self, number: int, digest: str) -> EmbeddedFiles | None:
        """Return a chunk, or None where it is not there, damaged, or of other images or another model."""
        try:
            with np.load(self._file(number), allow_pickle=False) as loaded:
                about = json.loads(str(loaded["about"]))
                if about["digest"] != digest:
                    return None
                broken = [(int(position), str(reason)) for position, reason in about["broken"]]
                return EmbeddedFiles(loaded["features"], loaded["kept"], broken)
        except UNREADABLE:
            return None

    def save(self, number: int, digest: str, precision: str, found: EmbeddedFiles) -> None:
        """Keep a chunk, whole or not at all.

        Raises:
            DataError: It cannot be written.
        """
        about = json.dumps({"digest": digest, "precision": precision, "broken": found.broken})
        with atomic_path(self._file(number)) as temporary, temporary.open("wb") as file:
            np.savez(file, features=found.features, kept=found.kept, about=np.array(about))

    def remove(self) -> None:
        """Remove all of it: what it was kept for is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


class _WithinTask(SilentReporter):
    """Lets the work on a chunk move the bar of all of them."""

    def __init__(self, task: Task) -> None:
        self._task = task

    @contextmanager
    def task(self, description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Task]:
        """Give the bar of all chunks."""
        yield self._task


def embed_in_chunks(
    embedder: Embedder,
    images: ImageList,
    kept: KeptChunks,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    reporter: Reporter | None = None,
    chunk: int = CHUNK,
) -> tuple[EmbeddingFile, list[dict[str, str]]]:
    """Turn listed images into features as `embed_images` does, going on from the chunks that are there.

    Args:
        embedder: The network.
        images: The images.
        kept: Where finished chunks are kept; not used for images that fit into one chunk.
        batch_size: Images at once; by default what suits the device.
        workers: Threads that decode; by default up to four.
        strict: Whether a broken image is an error.
        reporter: Where progress and warnings go.
        chunk: Images that an interruption may cost.

    Returns:
        The features, and name and reason of every image that was left out.

    Raises:
        DataError: Images are broken and `strict` is set, or all of them are; a chunk cannot be written.
    """
    reporter = reporter or SilentReporter()
    paths = images.paths
    starts = range(0, len(paths), chunk)
    features = np.empty((len(paths), embedder.embedding_dim), dtype=np.float32)
    which: list[NDArray[np.int64]] = []
    broken: Broken = []
    num_found = 0
    with reporter.task("images to features", len(paths), "img") as task:
        for number, start in enumerate(starts):
            part = paths[start : start + chunk]
            digest = _digest(embedder, part)
            found = kept.load(number, digest)
            if found is None:
                found = embedder.embed_files(part, batch_size=batch_size, workers=workers, reporter=_WithinTask(task))
                if len(starts) > 1:
                    kept.save(number, digest, embedder.precision, found)
            else:
                task.advance(len(part))
            features[num_found : num_found + len(found.kept)] = found.features
            num_found += len(found.kept)
            which.append(found.kept + start)
            broken += [(start + position, reason) for position, reason in found.broken]
    if broken:
        text = describe_broken(images.names, broken)
        if strict or not num_found:
            raise DataError(f"{images.root}: {text}", BROKEN_HINT)
        reporter.warning(f"{images.root}: {text} They are left out.")
    left_out = [{"name": images.names[position], "reason": reason} for position, reason in broken]
    return EmbeddingFile(features[:num_found], images.select(np.concatenate(which)), embedder.about()), left_out


def _digest(embedder: Embedder, paths: list[Path]) -> str:
    """Return a SHA-256 over all that the features of a chunk depend on: the model and the files as they are now."""
    about = {name: value for name, value in embedder.about().items() if name != "source"}
    digest = hashlib.sha256(json.dumps([about, str(embedder.device)], sort_keys=True).encode())
    for path in paths:
        try:
            status = path.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"\0{path.absolute()}\0{state}".encode(errors="surrogateescape"))
    return digest.hexdigest()
