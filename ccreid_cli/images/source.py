"""What a batch of images can be taken from: all images in memory, one process's share, or the files themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccreid_cli.images.decoding import BICUBIC
from ccreid_cli.images.store import open_store


class ImageSource(Protocol):
    """Images of one size that can be picked by their row."""

    def gather(self, indices: NDArray[np.int64] | Tensor, device: torch.device) -> Tensor:
        """Pick images, as `ImageStore.gather`: (B,) rows -> (B, 3, height, width) uint8 in channels_last."""
        ...


class ImageSet(ImageSource, Protocol):
    """All N images of a split, as `ImageStore` has them."""

    def __len__(self) -> int: ...

    def to_device(self, device: torch.device, max_bytes: int) -> bool:
        """Keep on `device` what this process holds, when it takes at most `max_bytes`; tell whether it is there."""
        ...

    def leave_device(self) -> bool:
        """Free what `to_device` took, and tell whether it had taken anything."""
        ...

    def release_pages(self) -> None:
        """Free the RAM that memory-mapped images take."""
        ...


class ImageFiles:
    """N images that are decoded whenever they are picked, and not kept: for reading each image about once.

    Args:
        paths: The images.
        height: Rows of every decoded image.
        width: Columns of every decoded image.
        workers: Threads that decode.
        resize: A name of `images.decoding.RESIZES`.
    """

    def __init__(self, paths: Sequence[Path], height: int, width: int, workers: int, resize: str = BICUBIC) -> None:
        self._paths = paths
        self._height = height
        self._width = width
        self._workers = workers
        self._resize = resize

    def __len__(self) -> int:
        return len(self._paths)

    def to_device(self, device: torch.device, max_bytes: int) -> bool:
        """There is nothing to keep."""
        return False

    def leave_device(self) -> bool:
        """Nothing was kept."""
        return False

    def release_pages(self) -> None:
        """Nothing is mapped."""

    def gather(self, indices: NDArray[np.int64] | Tensor, device: torch.device) -> Tensor:
        """Decode images, as `ImageStore.gather`.

        Raises:
            DataError: Images are missing or broken.
        """
        paths = [self._paths[row] for row in np.asarray(indices)]
        store = open_store(
            paths, self._height, self._width, cache_folder=None, workers=self._workers, resize=self._resize
        )
        return store.gather(np.arange(len(paths)), device)
