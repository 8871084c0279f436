"""How a picture looks: anything that Pillow opens, as the upright 8-bit sRGB picture that a viewer shows, or refused.

One rule for training, features, search, sheets and `data verify`:

- The first frame, turned upright by the EXIF orientation (XMP's where there is none; in TIFF by its own tag).
- Transparent pixels over white.
- 16-bit grey: 65535 is white; of deeper colours the upper 8 bits, as Pillow reads 16-bit RGB.
- Colours by the embedded ICC profile, else by a PNG's gAMA, else taken for sRGB. A damaged profile is ignored.
- Refused, since their white is not known: floating-point, 32-bit and signed pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ccreid_cli.core.errors import DataError
from ccreid_cli.images.colour_profiles import to_srgb

RULE_VERSION = 2
"""To be raised whenever a picture's pixels change: caches of decoded images are made anew. 1 was `convert("RGB")`."""

_Turn = Image.Transpose
_TURNS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 258, 262, 339
_TELLING = {"exif", "icc_profile", "xmp", "transparency"}
"""What an RGB picture of a JPEG file needs to have for its pixels not to be what is shown."""
_WITH_ALPHA = {"LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}
_AS_RGB = {"P", "RGBX", "YCbCr", "LAB", "HSV"}
_USUAL_GAMMA = 1 / 2.2
_REMEDY = "save it as 8-bit grey or RGB"


def as_shown(image: Image.Image) -> Image.Image:
    """Return a picture as a viewer shows it: see the module.

    Args:
        image: As `PIL.Image.open` gives it, or made in memory; of any mode and size. It is not changed, only loaded.

    Returns:
        The upright picture in mode RGB; `image` itself where it is that already.

    Raises:
        DataError: There is no telling how it looks; the message names the mode and what to do.
        Exception: Whatever Pillow raises on a broken file.
    """
    key = _transparent_value(image)  # before the pixels are loaded: what it needs is gone afterwards
    image.load()
    if image.format == "JPEG" and image.mode == "RGB" and _TELLING.isdisjoint(image.info):
        return image
    colours, alpha = _split(image, key)
    picture = to_srgb(colours, image.info.get("icc_profile"))
    if "icc_profile" not in image.info:
        picture = _by_gamma(picture, image.info)
    if picture.mode != "RGB":  # spares a copy
        picture = picture.convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        paper = Image.new("RGB", picture.size, "white")
        paper.paste(picture, mask=alpha)
        picture = paper
    turn = _turn(image)
    return picture if turn is None else picture.transpose(turn)


def _split(image: Image.Image, key: Any) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours in mode L, RGB or CMYK, and the alpha channel if there is one."""
    mode = image.mode
    tags = getattr(image, "tag_v2", {})
    if mode == "F" or set(tags.get(_SAMPLE_FORMAT, (1,))) - {1}:
        raise DataError(f"mode {mode} of floating-point or signed pixels has no agreed white: {_REMEDY}")
    if mode == "I" or mode.startswith("I;16"):
        return _split_deep(image, key, tags)
    if key is not None and mode in {"1", "L", "RGB"}:
        image = image.copy()
        image.info["transparency"] = key
        mode = "RGBA" if mode == "RGB" else "LA"
    elif mode == "P" and image.has_transparency_data:
        mode = "RGBA"
    if mode in _WITH_ALPHA:
        *bands, alpha = image.convert(_WITH_ALPHA[mode]).split()
        return (bands[0] if len(bands) == 1 else Image.merge("RGB", bands)), alpha
    if mode in {"L", "RGB", "CMYK"}:
        return image, None
    if mode == "1":
        return image.convert("L"), None
    if mode in _AS_RGB:
        return image.convert("RGB"), None
    raise DataError(f"mode {mode} is not known: {_REMEDY}")


def _split_deep(image: Image.Image, key: Any, tags: Any) -> tuple[Image.Image, Image.Image | None]:
    """As `_split`, for grey of 12 or 16 bits (in mode I too, where it is Pillow's 16 bits)."""
    values = np.asarray(image).astype(np.int32)
    is_16_bits = image.format in {None, "PNG", "PPM"} or (image.mode != "I" and image.format != "FITS")
    if not is_16_bits or values.min() < 0 or values.max() > 65535:
        raise DataError(f"mode {image.mode} of signed or 32-bit pixels has no agreed white: {_REMEDY}")
    bits = 12 if tags.get(_BITS) == (12,) else 16
    levels = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow sees to it in 8 bits only
        levels = 255 - levels
    alpha = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    return Image.fromarray(levels), alpha


def _transparent_value(image: Image.Image) -> Any:
    """Return the one grey level or colour that is transparent, in the levels of the loaded pixels, or None.

    A PNG gives it in the file's own depth.

    Raises:
        DataError: It is a colour of 16 bits, which 8 bits cannot tell from its neighbours.
    """
    value = image.info.get("transparency")
    if isinstance(value, tuple) and len(value) == 3 and image.mode == "RGB":
        if max(value) > 255 or _raw_mode(image) == "RGB;16B":
            raise DataError("a transparent colour of 16 bits cannot be shown: save it as 8-bit RGB")
        return value
    if isinstance(value, int) and image.mode in {"1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"}:
        return value * {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)
    return None


def _raw_mode(image: Image.Image) -> str:
    """Return how a PNG file that is not loaded yet stores its pixels."""
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None
    return str(tiles[0].args) if tiles else ""


def _by_gamma(colours: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """Undo the gamma that a PNG names for itself, where it is not the usual one (5 % is what libpng tolerates)."""
    gamma = info.get("gamma")
    if not gamma or gamma < 0 or "srgb" in info or abs(gamma / _USUAL_GAMMA - 1) < 0.05:
        return colours
    table = np.rint(255 * (np.arange(256) / 255) ** (_USUAL_GAMMA / gamma)).astype(int).tolist()
    return colours.point(table * len(colours.getbands()))


def _turn(image: Image.Image) -> _Turn | None:
    """Return what makes the picture upright, if anything; a damaged EXIF block says nothing, as to viewers."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # parsing damaged EXIF and XMP raises nearly every type there is
        return None
