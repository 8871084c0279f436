"""Decoded images in a memory-mapped file that is used only while its sources are unchanged."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import PIL
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.files import atomic_path, atomic_write_text, free_bytes
from ccreid_cli.images.appearance import RULE_VERSION
from ccreid_cli.images.decoding import BICUBIC, Decoder

CACHE_FOLDER = ".ccreid-cache"
"""Folder in the data directory for decoded images."""
VERSION = 1
IMAGES_CHECKED = 256


@dataclass(frozen=True)
class ImageCache:
    """A cache file: the bytes of (N, height, width, 3) uint8, with a JSON file beside it that says what they are.

    Attributes:
        file: The file of bytes. Its name depends on the paths, the size and the way to resize, so that changed sources
            overwrite it.
        fingerprint: What the content depends on: the size, the way to resize, the decoder, the rule of how pictures are
            shown, and every source's path, size, time of change.
        shape: (N, height, width, 3).
    """

    file: Path
    fingerprint: str
    shape: tuple[int, int, int, int]

    @classmethod
    def places(cls, decoder: Decoder, folders: Sequence[Path]) -> list[ImageCache]:
        """Return the place in each folder for what `decoder` reads, whether or not there is anything yet."""
        size = f"{decoder.height}x{decoder.width}{_resize_mark(decoder)}"
        key = hashlib.sha256("\0".join([size, *decoder.paths]).encode(errors="surrogateescape")).hexdigest()
        name, fingerprint = f"images-{size}-{key[:16]}.bin", _fingerprint(decoder)
        return [cls(folder / name, fingerprint, decoder.shape) for folder in folders]

    @property
    def sidecar(self) -> Path:
        """The JSON file."""
        return self.file.with_suffix(".json")

    def load(self) -> NDArray[np.uint8] | None:
        """Return the cached images, or None when there is no cache, another or a damaged one."""
        try:
            known = json.loads(self.sidecar.read_text(encoding="utf-8"))
            size = int(np.prod(self.shape, dtype=np.int64))
            if known["fingerprint"] != self.fingerprint or self.file.stat().st_size != size:
                return None
            images = self._map()
            return images if _checksum(images) == known["checksum"] else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def build(self, decoder: Decoder) -> NDArray[np.uint8]:
        """Decode into the file.

        Args:
            decoder: The sources.

        Returns:
            The mapped images.

        Raises:
            BrokenImagesError: Sources cannot be read; nothing is kept.
            DataError: The disk is full, or the folder is not writable.
        """
        if free_bytes(self.file.parent) < decoder.num_bytes:
            raise DataError(f"{self.file.parent} has no room for {decoder.num_bytes / 1e9:.2f} GB.")
        image_bytes = self.shape[1] * self.shape[2] * 3
        lock = Lock()
        with atomic_path(self.file) as temporary, temporary.open("wb") as file:

            def put(start: int, images: NDArray[np.uint8]) -> None:
                with lock:
                    file.seek(start * image_bytes)
                    file.write(images.data)

            decoder.fill(put)
        images = self._map()
        atomic_write_text(self.sidecar, json.dumps({"fingerprint": self.fingerprint, "checksum": _checksum(images)}))
        return images

    def _map(self) -> NDArray[np.uint8]:
        # Mode "c": PyTorch wants writable memory, the file must not change.
        return np.memmap(self.file, dtype=np.uint8, mode="c", shape=self.shape)


def _resize_mark(decoder: Decoder) -> str:
    """Return what follows the size in names; nothing for bicubic, so that caches of earlier versions are found."""
    return "" if decoder.resize == BICUBIC else f"-{decoder.resize}"


def _fingerprint(decoder: Decoder) -> str:
    size = f"{decoder.height} {decoder.width}{_resize_mark(decoder)}"
    digest = hashlib.sha256(f"{VERSION} {RULE_VERSION} {PIL.__version__} {size}".encode())
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
