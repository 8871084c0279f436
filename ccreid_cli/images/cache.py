"""Decoded images in a file that notices when its sources change."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.files import atomic_path, atomic_write_text, free_bytes
from ccreid_cli.images.decoding import Broken, Decoder

VERSION = 1
IMAGES_CHECKED = 256


@dataclass(frozen=True)
class _Sidecar:
    """What the JSON file beside a cache says about it."""

    fingerprint: str
    count: int
    height: int
    width: int
    checksum: int
    broken: list[list[int | str]]


@dataclass(frozen=True)
class ImageCache:
    """A cache file: the bytes of (N, height, width, 3) uint8, with a JSON file beside it that says what they are.

    Attributes:
        file: The file of bytes. Its name depends on the paths and the size, so that changed sources overwrite it.
        fingerprint: What the content depends on: the size, the decoder and every source's path, size, time of change.
        height: Rows of each image.
        width: Columns of each image.
    """

    file: Path
    fingerprint: str
    height: int
    width: int

    @classmethod
    def places(cls, decoder: Decoder, folders: Sequence[Path]) -> list[ImageCache]:
        """Return the place in each folder for what `decoder` reads, whether or not there is anything yet."""
        size = f"{decoder.height}x{decoder.width}"
        key = hashlib.sha256("\0".join([size, *decoder.paths]).encode(errors="surrogateescape")).hexdigest()
        name, fingerprint = f"images-{size}-{key[:16]}.bin", _fingerprint(decoder)
        return [cls(folder / name, fingerprint, decoder.height, decoder.width) for folder in folders]

    @property
    def sidecar(self) -> Path:
        """The JSON file."""
        return self.file.with_suffix(".json")

    def load(self) -> tuple[NDArray[np.uint8], Broken] | None:
        """Return the cached images and what was left out, or None when there is no cache, another or a damaged one."""
        try:
            known = _Sidecar(**json.loads(self.sidecar.read_text(encoding="utf-8")))
            size = known.count * self.height * self.width * 3
            if known.fingerprint != self.fingerprint or self.file.stat().st_size != size:
                return None
            images = self._map(known.count)
            if _checksum(images) != known.checksum:
                return None
            return images, [(int(position), str(reason)) for position, reason in known.broken]
        except (OSError, ValueError, TypeError):
            return None

    def build(self, decoder: Decoder, *, keep_broken: bool) -> tuple[NDArray[np.uint8], Broken]:
        """Decode into the file.

        Args:
            decoder: The sources.
            keep_broken: Whether a cache that lacks the broken images is of use; else it is not kept.

        Returns:
            The mapped images and what is broken among the sources.

        Raises:
            DataError: The disk is full, or the folder is not writable.
        """
        if free_bytes(self.file.parent) < decoder.num_bytes:
            raise DataError(f"{self.file.parent} has no room for {decoder.num_bytes / 1e9:.2f} GB.")
        with atomic_path(self.file) as temporary:
            with temporary.open("wb") as file:
                broken = self._write(decoder, file)
            if broken and keep_broken:
                rows = np.memmap(temporary, np.uint8, "r+", shape=(len(decoder.paths), self.height, self.width, 3))
                num_bytes = leave_out(rows, broken).nbytes
                rows.flush()
                os.truncate(temporary, num_bytes)
        if broken and not keep_broken:
            self.file.unlink(missing_ok=True)
            return np.empty((0, self.height, self.width, 3), dtype=np.uint8), broken
        images = self._map(len(decoder.paths) - len(broken))
        left_out: list[list[int | str]] = [[position, reason] for position, reason in broken]
        known = _Sidecar(self.fingerprint, len(images), self.height, self.width, _checksum(images), left_out)
        atomic_write_text(self.sidecar, json.dumps(asdict(known)))
        return images, broken

    def _write(self, decoder: Decoder, file: BinaryIO) -> Broken:
        image_bytes = self.height * self.width * 3
        turn = Lock()

        def put(start: int, images: NDArray[np.uint8]) -> None:
            with turn:
                file.seek(start * image_bytes)
                file.write(images.data)

        return decoder.fill(put)

    def _map(self, count: int) -> NDArray[np.uint8]:
        shape = (count, self.height, self.width, 3)
        if count == 0:
            return np.empty(shape, dtype=np.uint8)
        # Mode "c": PyTorch wants writable memory, the file must not change.
        return np.memmap(self.file, dtype=np.uint8, mode="c", shape=shape)


def leave_out(images: NDArray[np.uint8], broken: Broken) -> NDArray[np.uint8]:
    """Move up the images behind broken ones, in place.

    Args:
        images: (N, height, width, 3).
        broken: Positions and reasons of M of them.

    Returns:
        The (N - M, height, width, 3) others, a view.
    """
    if not broken:
        return images
    others = np.delete(np.arange(len(images)), [position for position, _ in broken])
    for target, source in enumerate(others):
        if target != source:
            images[target] = images[source]
    return images[: len(others)]


def _fingerprint(decoder: Decoder) -> str:
    digest = hashlib.sha256(f"{VERSION} {PIL.__version__} {decoder.height} {decoder.width}".encode())
    for path in decoder.paths:
        try:
            status = Path(path).stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"\0{path}\0{state}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _checksum(images: NDArray[np.uint8]) -> int:
    """Return the CRC-32 of up to 256 evenly spaced images: reading all would take longer than it is worth."""
    checksum = 0
    for image in images[:: max(1, -(-len(images) // IMAGES_CHECKED))]:
        checksum = zlib.crc32(image.tobytes(), checksum)
    return checksum


CACHE_FOLDER = ".ccreid-cache"
"""Folder in the data directory for decoded images."""
