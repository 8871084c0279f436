"""Every image decoded and resized once: a uint8 array in RAM, in a memory-mapped cache file or on the GPU.

Ours rather than a data loader's: training reads every image a hundred times, and decoding costs more than a step.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccreid_cli.core.errors import BrokenImagesError, DataError, DeviceError
from ccreid_cli.core.paths import cache_folder as user_cache_folder
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.images.cache import ImageCache
from ccreid_cli.images.decoding import BICUBIC, Decoder


class ImageStore:
    """N images of one size, ready to be picked.

    Attributes:
        images: (N, height, width, 3) uint8, in RAM or memory-mapped (changes to it never reach the file).
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images
        self._rows = self._in_ram()

    def _in_ram(self) -> Tensor:
        """Return the images as (N, height·width·3), sharing their memory."""
        return torch.from_numpy(self.images).view(len(self.images), self.height * self.width * 3)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def height(self) -> int:
        """Rows of every image."""
        return int(self.images.shape[1])

    @property
    def width(self) -> int:
        """Columns of every image."""
        return int(self.images.shape[2])

    def to_device(self, device: torch.device, max_bytes: int) -> bool:
        """Keep the images on `device` from now on, when they fit.

        Args:
            device: Where batches will be wanted.
            max_bytes: How much of its memory the images may take.

        Returns:
            Whether the images are there now. If not, `gather` goes on sending batches.
        """
        if self._rows.device == device:
            return True
        if self.images.nbytes > max_bytes:
            return False
        try:
            self._rows = self._rows.to(device)
        except torch.OutOfMemoryError:
            return False
        return True

    def leave_device(self) -> bool:
        """Free what `to_device` took: `gather` sends batches again. Tell whether there was anything to free."""
        was_there = self._rows.device.type != "cpu"
        self._rows = self._in_ram()
        return was_there

    def release_pages(self) -> None:
        """Free the RAM that memory-mapped images take; the next `gather` reads what it needs again."""
        mapped = getattr(self.images, "_mmap", None)
        if mapped is not None and hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def gather(self, indices: NDArray[np.int64] | Tensor, device: torch.device) -> Tensor:
        """Pick a batch.

        Args:
            indices: (B,) positions in the store, repeats allowed.
            device: Where the batch is wanted. Copies to a GPU are asynchronous.

        Returns:
            (B, 3, height, width) uint8 in channels_last.
        """
        chosen = torch.as_tensor(indices)
        if self._rows.is_cuda:
            chosen = chosen.to(self._rows.device, non_blocking=True)
        if self._rows.device.type == "cpu" and device.type == "cuda":
            # PyTorch's pinned allocator hands a buffer out again only after its copy is done.
            pinned = torch.empty((len(chosen), self._rows.shape[1]), dtype=torch.uint8, pin_memory=True)
            rows = torch.index_select(self._rows, 0, chosen, out=pinned).to(device, non_blocking=True)
        else:
            rows = self._rows.index_select(0, chosen).to(device)
        return rows.view(len(chosen), self.height, self.width, 3).permute(0, 3, 1, 2)


def open_store(
    paths: Sequence[Path],
    height: int,
    width: int,
    *,
    cache_folder: Path | None,
    workers: int = 2,
    resize: str = BICUBIC,
    reporter: Reporter | None = None,
) -> ImageStore:
    """Decode and resize images, or map what an earlier call left in a cache file.

    A cache is used only while every source file has the path, size and time of change it had then; a damaged one is
    made anew. Where the cache folder cannot be written the user's own cache folder is tried; without either, and on a
    full disk, the images stay in RAM.

    Args:
        paths: The images, in the order of the result.
        height: Rows of every image of the store.
        width: Columns of every image of the store.
        cache_folder: Where to keep the cache file, or None to keep the images in RAM.
        workers: Threads that decode; at most 1 decodes in the caller's.
        resize: A name of `images.decoding.RESIZES`.
        reporter: Where progress and warnings are shown.

    Returns:
        The images.

    Raises:
        DataError: Images are missing or broken; the message names the first few.
        DeviceError: The images do not fit into memory.
    """
    reporter = reporter or SilentReporter()
    decoder = Decoder([str(Path(path).absolute()) for path in paths], height, width, workers, reporter, resize)
    if cache_folder is None or not paths:
        return ImageStore(_decode_to_memory(decoder))
    caches = ImageCache.places(decoder, [cache_folder, user_cache_folder() / "images"])
    for cache in caches:
        if (found := cache.load()) is not None:
            return ImageStore(found)
    place = next((cache for cache in caches if _is_writable(cache.file.parent)), None)
    if place is None:
        reporter.warning(f"{cache_folder} is not writable: the images stay in memory, for this time only.")
        return ImageStore(_decode_to_memory(decoder))
    try:
        return ImageStore(place.build(decoder))
    except BrokenImagesError:
        raise
    except DataError as error:
        reporter.warning(f"No image cache, so the images stay in memory for this time: {error.message}")
        return ImageStore(_decode_to_memory(decoder))


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _decode_to_memory(decoder: Decoder) -> NDArray[np.uint8]:
    try:
        images = np.empty(decoder.shape, dtype=np.uint8)
    except MemoryError as error:
        raise DeviceError(
            f"{len(decoder.paths)} images take {decoder.num_bytes / 1e9:.1f} GB, more than there is memory.",
            "Use a smaller --height and --width, or a disk with room for the image cache.",
        ) from error

    def put(start: int, chunk: NDArray[np.uint8]) -> None:
        images[start : start + len(chunk)] = chunk

    decoder.fill(put)
    return images
