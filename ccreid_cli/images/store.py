"""Every image decoded and resized once: a uint8 array in RAM, in a memory-mapped cache file or on the GPU."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccreid_cli.core.errors import DataError, DeviceError
from ccreid_cli.core.paths import cache_folder as user_cache_folder
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.images.cache import ImageCache, leave_out
from ccreid_cli.images.decoding import Broken, Decoder, describe_broken


class ImageStore:
    """N images of one size, ready to be picked.

    Attributes:
        images: (N, height, width, 3) uint8, in RAM or memory-mapped (changes to it never reach the file).
        kept: (N,) int64, which of the paths given to `open_store` the images come from: all, unless some were skipped.
    """

    def __init__(self, images: NDArray[np.uint8], kept: NDArray[np.int64] | None = None) -> None:
        self.images = images
        self.kept = np.arange(len(images)) if kept is None else kept
        self._rows = torch.from_numpy(images).view(len(images), self.height * self.width * 3)

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
        self._rows = torch.from_numpy(self.images).view(len(self.images), self.height * self.width * 3)
        return was_there

    def let_go(self) -> None:
        """Take memory-mapped images out of this process's memory; the next `gather` maps what it needs again."""
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
    reporter: Reporter | None = None,
    on_broken: Literal["error", "skip"] = "error",
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
        reporter: Where progress and warnings are shown.
        on_broken: Whether images that cannot be read are an error or are left out (see `ImageStore.kept`).

    Returns:
        The images.

    Raises:
        DataError: Images are missing or broken; the message names the first few.
        DeviceError: The images do not fit into memory.
    """
    reporter = reporter or SilentReporter()
    decoder = Decoder([str(Path(path).absolute()) for path in paths], height, width, workers, reporter)
    images, broken = _load_or_build(decoder, cache_folder, keep_broken=on_broken == "skip")
    if broken and on_broken == "error":
        raise DataError(describe_broken(paths, broken), "Put whole copies in their place, or remove them.")
    if broken:
        reporter.warning(f"{describe_broken(paths, broken)} They are left out.")
    return ImageStore(images, np.delete(np.arange(len(paths)), [position for position, _ in broken]))


def _load_or_build(
    decoder: Decoder, cache_folder: Path | None, *, keep_broken: bool
) -> tuple[NDArray[np.uint8], Broken]:
    """Return the images from the first cache that has them, else decode them to the first place that takes them."""
    if cache_folder is None or not decoder.paths:
        return _build_in_memory(decoder)
    caches = ImageCache.places(decoder, [cache_folder, user_cache_folder() / "images"])
    for cache in caches:
        if (found := cache.load()) is not None:
            return found
    place = next((cache for cache in caches if _is_writable(cache.file.parent)), None)
    if place is None:
        decoder.reporter.warning(f"{cache_folder} is not writable: the images stay in memory, for this time only.")
        return _build_in_memory(decoder)
    try:
        return place.build(decoder, keep_broken=keep_broken)
    except DataError as error:
        decoder.reporter.warning(f"No image cache, so the images stay in memory for this time: {error.message}")
        return _build_in_memory(decoder)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _build_in_memory(decoder: Decoder) -> tuple[NDArray[np.uint8], Broken]:
    try:
        images = np.empty((len(decoder.paths), decoder.height, decoder.width, 3), dtype=np.uint8)
    except MemoryError as error:
        raise DeviceError(
            f"{len(decoder.paths)} images take {decoder.num_bytes / 1e9:.1f} GB, more than there is memory.",
            "Use a smaller --height and --width, or a disk with room for the image cache.",
        ) from error

    def put(start: int, chunk: NDArray[np.uint8]) -> None:
        images[start : start + len(chunk)] = chunk

    broken = decoder.fill(put)
    return leave_out(images, broken), broken
