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

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.core.reporter import Reporter

Broken = list[tuple[int, str]]
"""(position among the paths, reason) of images that cannot be read."""

CHUNK = 16


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
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


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
        """Decode everything.

        Args:
            write: Takes the images, (M, height, width, 3) uint8 at a time, in order and without the broken ones.

        Returns:
            The broken ones.
        """
        broken: Broken = []
        with warnings.catch_warnings(), self.reporter.task("reading images", len(self.paths), "img") as task:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files, which say nothing about the pixels
            for start, (images, broken_here) in zip(range(0, len(self.paths), CHUNK), self._chunks(), strict=True):
                write(images)
                broken += [(start + position, reason) for position, reason in broken_here]
                task.advance(len(images) + len(broken_here))
        return broken

    def _chunks(self) -> Iterator[tuple[NDArray[np.uint8], Broken]]:
        """Decode in order, some chunks ahead of the reader but never so many that they fill the memory."""
        chunks = [self.paths[start : start + CHUNK] for start in range(0, len(self.paths), CHUNK)]
        if self.workers <= 1:
            yield from (decode_chunk(chunk, self.height, self.width) for chunk in chunks)
            return
        pool = ThreadPoolExecutor(self.workers, "decode")
        waiting: deque[Future[tuple[NDArray[np.uint8], Broken]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(decode_chunk, chunk, self.height, self.width))
                if len(waiting) > 3 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
