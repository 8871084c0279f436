"""Embedded colour profiles: colours of Display P3, Adobe RGB, CMYK and grey profiles as sRGB, as viewers show them."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, features

from ccreid_cli.core.errors import DataError

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""The colour space that a profile for pixels of a Pillow mode must be of."""
INVISIBLE = 2
"""A profile that moves no colour by more levels (of 255) is sRGB by another name: pixels stay as they are."""


def to_srgb(colours: Image.Image, profile: object) -> Image.Image:
    """Convert colours by the profile that their file holds.

    A damaged profile, or one of another colour space than the pixels', is ignored, as viewers do.

    Args:
        colours: Of mode L, RGB or CMYK.
        profile: What Pillow found as ``icc_profile``: ICC bytes, or nothing.

    Returns:
        The picture in RGB by sRGB, or `colours` itself where the profile changes nothing.

    Raises:
        DataError: There is a profile that Pillow cannot apply, since it was built without LittleCMS.
    """
    if not isinstance(profile, bytes) or not profile:
        return colours
    if not features.check("littlecms2"):
        if b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile:
            return colours
        raise DataError("it has a colour profile, and this Pillow was built without LittleCMS: save it as sRGB")
    if transform := _transform(profile, colours.mode):
        return transform.apply(colours)
    if colours.mode == "RGB" and (transform := _transform(profile, "L")) and _is_grey(colours):
        return transform.apply(colours.getchannel(0))  # Pillow opens grey with alpha of 16 bits as colour
    return colours


def _is_grey(colours: Image.Image) -> bool:
    red, green, blue = colours.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return how pixels of `mode` become sRGB, or None where they are to stay as they are."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if mode != "CMYK" and _is_invisible(transform, mode) else transform


def _is_invisible(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, len(levels), 3)
    sample = Image.fromarray(grid).convert(mode)
    moved = np.asarray(transform.apply(sample), dtype=np.int16) - np.asarray(sample.convert("RGB"), dtype=np.int16)
    return int(np.abs(moved).max()) <= INVISIBLE
