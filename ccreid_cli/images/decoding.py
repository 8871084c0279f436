"""Image files -> arrays, in threads.

Pillow releases Python's lock while it decodes and resizes, and unlike worker processes threads need not be started and
send nothing through pipes. No library here decodes once and keeps the result: see `images.store`.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.core.components import find_row
from ccreid_cli.core.errors import BrokenImagesError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.images.appearance import as_shown

Broken = list[tuple[int, str]]
"""(position among the paths, reason) of images that cannot be read."""

BICUBIC = "bicubic"
"""How images are resized where nothing else is said: as in the reference."""
BROKEN_SHOWN = 5
BROKEN_HINT = "Put whole copies, or such as can be shown, in their place, or remove them."
CHUNK = 16
T = TypeVar("T")


def _without_antialiasing(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    whole = (0, 0, *image.size)
    return image.transform(size, Image.Transform.EXTENT, whole, Image.Resampling.BILINEAR)


RESIZES: dict[str, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {
    BICUBIC: lambda image, size: image.resize(size, Image.Resampling.BICUBIC),
    "linear": lambda image, size: image.resize(size, Image.Resampling.BILINEAR),
    "opencv": _without_antialiasing,
}
"""What ``--resize`` may be, and how it brings an RGB image to (width, height).

``bicubic`` and ``linear`` are Pillow's (and torchvision's of Pillow images): a smaller result averages over the pixels
that it stands for. ``opencv`` is linear between the four nearest pixels at any size, as OpenCV's INTER_LINEAR, with
which trackers resize their crops (within one level: OpenCV rounds its weights). Enlarging, it is ``linear`` again.
"""


def resize_rule(name: str) -> str:
    """Return the name of a way to resize.

    Raises:
        UsageError: There is none of this name.
    """
    find_row(RESIZES, "resize", name)
    return name


def to_pixels(image: Image.Image, height: int, width: int, resize: str = BICUBIC) -> NDArray[np.uint8]:
    """Resize an image as it is shown (`images.appearance`) to exactly `height` × `width`.

    The aspect ratio is not kept, as in the reference.

    Args:
        image: Any that Pillow opens.
        height: Rows of the result.
        width: Columns of the result.
        resize: A name of `RESIZES`.

    Returns:
        (height, width, 3) uint8.

    Raises:
        Exception: As `as_shown`.
    """
    return np.asarray(RESIZES[resize](as_shown(image), (width, height)))


def read_picture(path: Path | str) -> Image.Image:
    """Read an image file to its last byte, as it is shown.

    Raises:
        Exception: As `as_shown`; `reason_of` says why in words.
    """
    with Image.open(path) as image:
        return as_shown(image)


def decode(path: str, height: int, width: int, resize: str = BICUBIC) -> NDArray[np.uint8]:
    """Decode one image file and resize it: see `to_pixels`.

    Raises:
        Exception: Whatever Pillow raises on a missing or broken file, and as `as_shown`.
    """
    with Image.open(path) as image:
        return to_pixels(image, height, width, resize)


def decode_chunk(
    paths: Sequence[str], height: int, width: int, resize: str = BICUBIC
) -> tuple[NDArray[np.uint8], Broken]:
    """Decode several images, going on after broken ones.

    Args:
        paths: N files.
        height: Rows of each result.
        width: Columns of each result.
        resize: A name of `RESIZES`.

    Returns:
        The (M, height, width, 3) uint8 images that could be read, in order, and (position, reason) of the N - M others.
    """
    images = np.empty((len(paths), height, width, 3), dtype=np.uint8)
    broken: Broken = []
    for position, path in enumerate(paths):
        try:
            images[position - len(broken)] = decode(path, height, width, resize)
        except Exception as error:  # Pillow's decoders raise nearly every type there is
            broken.append((position, reason_of(error)))
    return images[: len(paths) - len(broken)], broken


def reason_of(error: Exception) -> str:
    """Say in a few words why an image cannot be read or shown."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if "cannot identify image file" in str(error):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Decoder:
    """Decodes many images.

    Attributes:
        paths: N absolute paths.
        height: Rows of each image.
        width: Columns of each image.
        workers: How many threads; at most 1 decodes in the caller's.
        reporter: Where progress is shown.
        resize: A name of `RESIZES`.
    """

    paths: list[str]
    height: int
    width: int
    workers: int
    reporter: Reporter
    resize: str = BICUBIC

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, height, width, 3)."""
        return len(self.paths), self.height, self.width, 3

    @property
    def num_bytes(self) -> int:
        """Size of all decoded images."""
        return math.prod(self.shape)

    def run(self, write: Callable[[NDArray[np.uint8]], object]) -> Broken:
        """Decode everything, in order, going on after broken images.

        Args:
            write: Takes the images, (M, height, width, 3) uint8 at a time, in order and without the broken ones.

        Returns:
            The broken ones.
        """

        def decode_from(start: int) -> tuple[NDArray[np.uint8], Broken]:
            return decode_chunk(self.paths[start : start + CHUNK], self.height, self.width, self.resize)

        return self._run(decode_from, write)

    def fill(self, put: Callable[[int, NDArray[np.uint8]], object]) -> None:
        """Decode everything, each thread storing what it decoded: the fastest way to fill an array or a file.

        Args:
            put: Takes a position and the images from there on, (M, height, width, 3) uint8, in any order and from
                several threads at once.

        Raises:
            BrokenImagesError: Images cannot be read; the message counts them and names the first few.
        """

        def decode_and_put(start: int) -> tuple[None, Broken]:
            images, broken = decode_chunk(self.paths[start : start + CHUNK], self.height, self.width, self.resize)
            if not broken:
                put(start, images)
            return None, broken

        broken = self._run(decode_and_put, lambda _: None)
        if broken:
            raise BrokenImagesError(describe_broken(self.paths, broken), BROKEN_HINT)

    def _run(self, work: Callable[[int], tuple[T, Broken]], take: Callable[[T], object]) -> Broken:
        """Do `work` for the first position of every chunk, in threads, and `take` its results in order."""
        broken: Broken = []
        with warnings.catch_warnings(), self.reporter.task("reading images", len(self.paths), "img") as task:
            warnings.simplefilter("ignore")  # Pillow warns of odd files; the pixels are right
            starts = range(0, len(self.paths), CHUNK)
            for start, (result, broken_here) in zip(starts, self._results(work, starts), strict=True):
                take(result)
                broken += [(start + position, reason) for position, reason in broken_here]
                task.advance(min(CHUNK, len(self.paths) - start))
        return broken

    def _results(self, work: Callable[[int], tuple[T, Broken]], starts: Sequence[int]) -> Iterator[tuple[T, Broken]]:
        """Work in order, some chunks ahead of the reader but never so many that they fill the memory."""
        if self.workers <= 1:
            yield from map(work, starts)
            return
        pool = ThreadPoolExecutor(self.workers, "decode")
        waiting: deque[Future[tuple[T, Broken]]] = deque()
        try:
            for start in starts:
                waiting.append(pool.submit(work, start))
                if len(waiting) > 3 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def describe_broken(names: Sequence[object], broken: Broken) -> str:
    """Name the first few files that could not be read, and say how many there are."""
    shown = ", ".join(f"{names[position]} ({reason})" for position, reason in broken[:BROKEN_SHOWN])
    more = f" and {len(broken) - BROKEN_SHOWN} more" if len(broken) > BROKEN_SHOWN else ""
    return f"{len(broken)} of {len(names)} images cannot be read: {shown}{more}."
