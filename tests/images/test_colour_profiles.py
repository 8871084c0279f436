from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from colour_profile import ADOBE_RGB, DISPLAY_P3, SRGB, in_srgb, profile
from numpy.typing import NDArray
from pictures import first, grey, pixels_of, png_of, saved
from PIL import Image, ImageCms, PngImagePlugin

from ccreid_cli.core.errors import DataError
from ccreid_cli.images.appearance import as_shown

COLOURS = np.array([[[200, 30, 60], [20, 180, 40], [90, 90, 90], [128, 160, 240]]], dtype=np.uint8)


def png(image: Image.Image, *chunks: tuple[bytes, bytes]) -> Image.Image:
    info = PngImagePlugin.PngInfo()
    for name, data in chunks:
        info.add(name, data)
    return saved(image, "PNG", pnginfo=info)


@pytest.mark.parametrize("gamma, primaries", [(2.2, ADOBE_RGB), (2.2, DISPLAY_P3), (1.0, SRGB)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "PNG with alpha", "PNG with a palette"])
def test_colours_of_a_profile_become_srgb(kind: str, gamma: float, primaries: NDArray[np.float64]) -> None:
    picture, options = Image.fromarray(COLOURS), {"icc_profile": profile(gamma, primaries)}
    if kind == "PNG with alpha":
        picture.putalpha(255)
    if kind == "PNG with a palette":
        picture = picture.quantize(4)
    if kind == "WEBP":
        options["lossless"] = True
    image = saved(picture, kind.split()[0], **options)
    np.testing.assert_allclose(pixels_of(image), in_srgb(COLOURS, gamma, primaries), atol=2.5)


def test_grey_of_a_profile_becomes_srgb() -> None:
    levels, linear = grey([[20, 60, 128, 200]]), profile(1.0)
    expected = in_srgb(np.array([[[v] * 3 for v in (20, 60, 128, 200)]]), 1.0)
    with_alpha = levels.convert("LA")
    deep = grey([[20 * 257, 60 * 257, 128 * 257, 200 * 257]], "<u2")
    for picture in (levels, with_alpha, deep):
        np.testing.assert_allclose(pixels_of(saved(picture, "PNG", icc_profile=linear)), expected, atol=1.5)
    deep_with_alpha = png_of(16, 4, bytes([128, 128, 255, 255]), 1)  # Pillow opens it as RGBA
    deep_with_alpha.info["icc_profile"] = linear
    np.testing.assert_allclose(pixels_of(deep_with_alpha), expected[:, 2:3], atol=1.5)


def test_transparent_pixels_of_a_profile_lie_on_white() -> None:
    picture = Image.fromarray(COLOURS)
    picture.putalpha(0)
    assert (pixels_of(saved(picture, "PNG", icc_profile=profile(1.0, SRGB))) == 255).all()


def test_a_profile_in_a_jpeg_counts() -> None:
    picture = Image.new("RGB", (16, 16), (128, 128, 128))
    found = first(saved(picture, "JPEG", icc_profile=profile(1.0, SRGB)))
    np.testing.assert_allclose(found, in_srgb(np.full(3, 128), 1.0), atol=2)


def test_srgb_damaged_and_foreign_profiles_leave_the_pixels() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for block in (srgb, srgb[:200], b"nonsense", profile(1.0)):
        found = pixels_of(saved(Image.fromarray(COLOURS), "PNG", icc_profile=block))
        np.testing.assert_array_equal(found, COLOURS)
    found = pixels_of(saved(grey([[10, 50]]), "PNG", icc_profile=profile(1.0, SRGB)))
    assert found[..., 0].tolist() == [[10, 50]]


def test_without_littlecms_a_profile_is_refused_unless_it_is_srgb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(pixels_of(saved(Image.fromarray(COLOURS), "PNG", icc_profile=srgb)), COLOURS)
    with pytest.raises(DataError, match="without LittleCMS"):
        as_shown(saved(Image.fromarray(COLOURS), "PNG", icc_profile=profile(1.0, SRGB)))


def test_threads_share_a_profile() -> None:
    buffer = io.BytesIO()
    random = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    Image.fromarray(random).save(buffer, "PNG", icc_profile=profile(2.2, ADOBE_RGB))
    expected = pixels_of(Image.open(buffer))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: pixels_of(Image.open(io.BytesIO(buffer.getvalue()))), range(40)):
            np.testing.assert_array_equal(found, expected)


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def test_the_gamma_that_a_png_names_counts_where_nothing_better_is_said() -> None:
    picture = Image.fromarray(COLOURS)
    brighter = 255 * (COLOURS / 255) ** (1 / 2.2)
    np.testing.assert_allclose(pixels_of(png(picture, gamma(1.0))), brighter, atol=0.5)
    grey_128 = round(255 * (128 / 255) ** (1 / 2.2))
    assert first(png(grey([[128]]), gamma(1.0))) == (grey_128,) * 3
    for chunks in ([gamma(0.45455)], [gamma(0.0)], [gamma(1.0), (b"sRGB", b"\0")]):
        np.testing.assert_array_equal(pixels_of(png(picture, *chunks)), COLOURS)
