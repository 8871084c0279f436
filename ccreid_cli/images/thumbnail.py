"""Small encoded pictures for pages."""

from __future__ import annotations

import io

from PIL import Image, features


def encode_small(picture: Image.Image, longest_side: int, quality: int = 62) -> tuple[bytes, str]:
    """Shrink a picture in place, where it is larger, and encode it.

    Args:
        picture: RGB.
        longest_side: Pixels.
        quality: Of the compression.

    Returns:
        The bytes, and their kind: ``webp``, or ``jpeg`` where Pillow cannot write that.
    """
    picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, quality=quality)
    return buffer.getvalue(), kind
