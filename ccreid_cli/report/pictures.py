"""Images as small data addresses within the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

MAX_SIDE = 128
"""Longest side of a thumbnail in pixels: more than is shown, for dense screens."""

SHOWN = (74, 96)
"""Width and height that a thumbnail is shown within, in CSS pixels."""


def data_address(image: NDArray[np.uint8]) -> tuple[str, int, int]:
    """Encode an image as a thumbnail.

    Args:
        image: (height, width, 3) uint8.

    Returns:
        A ``data:`` address, and the width and height to show it at, in CSS pixels.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, quality=62)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    scale = min(SHOWN[0] / picture.width, SHOWN[1] / picture.height)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    return f"data:image/{kind};base64,{text}", width, height
