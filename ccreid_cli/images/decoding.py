"""Image files -> arrays, in threads.

Pillow releases Python's lock while it decodes and resizes, and unlike worker processes threads need not be started and
send nothing through pipes. No library here decodes once and keeps the result: see `images.store`.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.core.components import find_row
from ccreid_cli.core.errors import BrokenImagesError, NetworkError, UsageError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.images.appearance import as_shown

Picture: TypeAlias = "str | bytes"
"""An image file, or the content of one."""
Broken = list[tuple[int, str]]
"""(position among the paths, reason) of images that cannot be read."""

BICUBIC = "bicubic"
"""How images are resized where nothing else is said: as in the reference."""
BROKEN_SHOWN = 5
BROKEN_HINT = "Put whole copies, or such as can be shown, in their place, or remove them."
CHUNK = 16
T = TypeVar("T")
C = TypeVar("C", bound=Sequence[object])


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


def decode(picture: Picture, height: int, width: int, resize: str = BICUBIC) -> NDArray[np.uint8]:
    """Decode one image and resize it: see `to_pixels`.

    Raises:
        Exception: Whatever Pillow raises on a missing or broken file, and as `as_shown`.
    """
    with Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        return to_pixels(image, height, width, resize)


def decode_chunk(
    pictures: Sequence[Picture],
    height: int,
    width: int,
    resize: str = BICUBIC,
    fetch: Callable[[str], Picture] | None = None,
) -> tuple[NDArray[np.uint8], Broken]:
    """Decode several images, going on after broken ones.

    Args:
        pictures: N images.
        height: Rows of each result.
        width: Columns of each result.
        resize: A name of `RESIZES`.
        fetch: Gets the content of those that are not files of this machine, by what they are called. A `NetworkError`
            or `UsageError` that it raises ends the work; anything else means that an image is broken.

    Returns:
        The (M, height, width, 3) uint8 images that could be read, in order, and (position, reason) of the N - M others.
    """
    images = np.empty((len(pictures), height, width, 3), dtype=np.uint8)
    broken: Broken = []
    for position, picture in enumerate(pictures):
        try:
            content = fetch(picture) if fetch and isinstance(picture, str) else picture
            images[position - len(broken)] = decode(content, height, width, resize)
        except (NetworkError, UsageError):
            raise
        except Exception as error:  # Pillow's decoders raise nearly every type there is
            broken.append((position, reason_of(error)))
    return images[: len(pictures) - len(broken)], broken


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
        fetch: As for `decode_chunk`.
    """

    paths: Sequence[str]
    height: int
    width: int
    workers: int
    reporter: Reporter
    resize: str = BICUBIC
    fetch: Callable[[str], Picture] | None = None

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
        return self.run_stream((self.paths[start : start + CHUNK] for start in self._starts), write)

    def run_stream(self, chunks: Iterable[Sequence[Picture]], write: Callable[[NDArray[np.uint8]], object]) -> Broken:
        """Decode images that come a few at a time, as `run` does those of `paths`."""

        def decode_them(chunk: Sequence[Picture]) -> tuple[NDArray[np.uint8], Broken]:
            return decode_chunk(chunk, self.height, self.width, self.resize, self.fetch)

        return self._run(decode_them, chunks, write)

    def fill(self, put: Callable[[int, NDArray[np.uint8]], object]) -> None:
        """Decode everything, each thread storing what it decoded: the fastest way to fill an array or a file.

        Args:
            put: Takes a position and the images from there on, (M, height, width, 3) uint8, in any order and from
                several threads at once.

        Raises:
            BrokenImagesError: Images cannot be read; the message counts them and names the first few.
        """

        def decode_and_put(chunk: Sequence[int]) -> tuple[None, Broken]:
            files = self.paths[chunk[0] : chunk[-1] + 1]
            images, broken = decode_chunk(files, self.height, self.width, self.resize)
            if not broken:
                put(chunk[0], images)
            return None, broken

        places = range(len(self.paths))
        broken = self._run(decode_and_put, (places[start : start + CHUNK] for start in self._starts), lambda _: None)
        if broken:
            raise BrokenImagesError(describe_broken(self.paths, broken), BROKEN_HINT)

    @property
    def _starts(self) -> range:
        return range(0, len(self.paths), CHUNK)

    def _run(self, work: Callable[[C], tuple[T, Broken]], chunks: Iterable[C], take: Callable[[T], object]) -> Broken:
        """Do `work` for every chunk, in threads, and `take` its results in order."""
        broken: Broken = []
        start = 0
        with warnings.catch_warnings(), self.reporter.task("reading images", len(self.paths), "img") as task:
            warnings.simplefilter("ignore")  # Pillow warns of odd files; the pixels are right
            for size, (result, broken_here) in self._results(work, chunks):
                take(result)
                broken += [(start + position, reason) for position, reason in broken_here]
                start += size
                task.advance(size)
        return broken

    def _results(
        self, work: Callable[[C], tuple[T, Broken]], chunks: Iterable[C]
    ) -> Iterator[tuple[int, tuple[T, Broken]]]:
        """Work in order, some chunks ahead of the reader but never so many that they fill the memory.

        Yields:
            The length of each chunk, and what `work` made of it.
        """
        if self.workers <= 1:
            yield from ((len(chunk), work(chunk)) for chunk in chunks)
            return
        pool = ThreadPoolExecutor(self.workers, "decode")
        waiting: deque[tuple[int, Future[tuple[T, Broken]]]] = deque()
        try:
            for chunk in chunks:
                waiting.append((len(chunk), pool.submit(work, chunk)))
                if len(waiting) > 3 * self.workers:
                    size, result = waiting.popleft()
                    yield size, result.result()
            for size, result in waiting:
                yield size, result.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def describe_broken(names: Sequence[object], broken: Broken, total: int | None = None) -> str:
    """Name the first few files that could not be read, and say how many there are, of `total` or of all `names`."""
    shown = ", ".join(f"{names[position]} ({reason})" for position, reason in broken[:BROKEN_SHOWN])
    more = f" and {len(broken) - BROKEN_SHOWN} more" if len(broken) > BROKEN_SHOWN else ""
    return f"{len(broken)} of {len(names) if total is None else total} images cannot be read: {shown}{more}."
