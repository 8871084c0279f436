"""Small pictures of every kind, as files and in memory, and their pixels as they are shown."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.images.appearance import as_shown

Pixel = tuple[int, int, int]


def grey(rows: object, dtype: str = "u1") -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=dtype))


def exif(orientation: int) -> Image.Exif:
    result = Image.Exif()
    result[274] = orientation
    return result


def saved(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    shown = as_shown(image)
    assert shown.mode == "RGB"
    return np.asarray(shown)


def first(image: Image.Image) -> Pixel:
    red, green, blue = pixels_of(image)[0, 0].tolist()
    return red, green, blue


def png_bytes(bits: int, colour_type: int, row: bytes, width: int, transparent: bytes = b"") -> bytes:
    """A PNG of one row as it stands in the file: depths and kinds that Pillow reads but does not write."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0))]
    chunks += [(b"tRNS", transparent)] if transparent else []
    chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of(bits: int, colour_type: int, row: bytes, width: int, transparent: bytes = b"") -> Image.Image:
    return Image.open(io.BytesIO(png_bytes(bits, colour_type, row, width, transparent)))
