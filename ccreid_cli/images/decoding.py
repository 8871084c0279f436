"""Image files -> arrays, several at a time.

Threads do it: Pillow lets go of Python's lock while it decodes and resizes, and unlike processes they need not be
started, send nothing through pipes and end with the program.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.core.reporter import Reporter

Broken = list[tuple[int, str]]
"""(position among the paths, reason) of images that cannot be read."""

BROKEN_SHOWN = 5
CHUNK = 16
T = TypeVar("T")


def decode(path: str, height: int, width: int) -> NDArray[np.uint8]:
    """Decode one image as RGB and resize it, bicubic, to exactly `height` × `width`.

    The aspect ratio is not kept and an EXIF rotation is not applied, as in the reference.

    Args:
        path: Any file that Pillow reads.
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        (height, width, 3) uint8.

    Raises:
        Exception: Whatever Pillow raises on a missing or broken file.
    """
    with Image.open(path) as image:
        colours = image if image.mode == "RGB" else image.convert("RGB")  # spares a copy
        return np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC))


def decode_chunk(paths: Sequence[str], height: int, width: int) -> tuple[NDArray[np.uint8], Broken]:
    """Decode several images, going on after broken ones.

    Args:
        paths: N files.
        height: Rows of each result.
        width: Columns of each result.

    Returns:
        The (M, height, width, 3) uint8 images that could be read, in order, and (position, reason) of the N - M others.
    """
    images = np.empty((len(paths), height, width, 3), dtype=np.uint8)
    broken: Broken = []
    for position, path in enumerate(paths):
        try:
            images[position - len(broken)] = decode(path, height, width)
        except Exception as error:  # Pillow's decoders raise nearly every type there is
            broken.append((position, _reason(error)))
    return images[: len(paths) - len(broken)], broken


def _reason(error: Exception) -> str:
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
    """

    paths: list[str]
    height: int
    width: int
    workers: int
    reporter: Reporter

    @property
    def num_bytes(self) -> int:
        """Size of all decoded images."""
        return len(self.paths) * self.height * self.width * 3

    def run(self, write: Callable[[NDArray[np.uint8]], object]) -> Broken:
        """Decode everything, in order.

        Args:
            write: Takes the images, (M, height, width, 3) uint8 at a time, in order and without the broken ones.

        Returns:
            The broken ones.
        """

        def decode_from(start: int) -> tuple[NDArray[np.uint8], Broken]:
            return decode_chunk(self.paths[start : start + CHUNK], self.height, self.width)

        return self._run(decode_from, lambda images: write(images))

    def fill(self, put: Callable[[int, NDArray[np.uint8]], object]) -> Broken:
        """Decode everything, each thread handing on what it decoded: the fastest way to fill an array or a file.

        Args:
            put: Takes a position and the images from there on, (M, height, width, 3) uint8, in any order and from
                several threads at once. No position is left out; nor are those of broken images, which hold anything.

        Returns:
            The broken ones.
        """

        def decode_and_put(start: int) -> tuple[None, Broken]:
            paths = self.paths[start : start + CHUNK]
            images, broken = decode_chunk(paths, self.height, self.width)
            if broken:
                images = np.insert(images, _gaps(broken), 0, axis=0)
            put(start, images)
            return None, broken

        return self._run(decode_and_put, lambda _: None)

    def _run(self, work: Callable[[int], tuple[T, Broken]], take: Callable[[T], object]) -> Broken:
        """Do `work` for the first position of every chunk, in threads, and `take` its results in order."""
        broken: Broken = []
        with warnings.catch_warnings(), self.reporter.task("reading images", len(self.paths), "img") as task:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files, which say nothing about the pixels
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


def _gaps(broken: Broken) -> list[int]:
    """Return where `np.insert` has to put rows so that they end up at the positions of the broken images."""
    return [position - number for number, (position, _) in enumerate(broken)]
