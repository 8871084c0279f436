from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import Pixel, exif, first, grey, pixels_of, png_bytes, png_of, saved
from PIL import Image, ImageOps

from ccreid_cli.core.errors import BrokenImagesError, DataError
from ccreid_cli.data.verify import decode_problems
from ccreid_cli.images import appearance
from ccreid_cli.images import cache as image_cache
from ccreid_cli.images.appearance import as_shown
from ccreid_cli.images.store import open_store

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
A, B, C, D, E, F = 10, 50, 90, 130, 170, 210
UPRIGHT = [[A, B, C], [D, E, F]]
STORED = {
    1: [[A, B, C], [D, E, F]],
    2: [[C, B, A], [F, E, D]],
    3: [[F, E, D], [C, B, A]],
    4: [[D, E, F], [A, B, C]],
    5: [[A, D], [B, E], [C, F]],
    6: [[C, F], [B, E], [A, D]],
    7: [[F, C], [E, B], [D, A]],
    8: [[D, A], [E, B], [F, C]],
}
"""How a picture lies in its file for each EXIF orientation (0th row and column by the standard) to look as UPRIGHT."""


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "MPO", "JPEG of XMP", "PNG in memory", "TIFF, LZW"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_shown_upright(kind: str, orientation: int) -> None:
    block = np.ones((16, 16), dtype=np.uint8)  # large enough for JPEG to keep each colour
    stored = Image.fromarray(np.kron(np.array(STORED[orientation], dtype=np.uint8), block)).convert("RGB")
    if kind == "JPEG of XMP":
        image = saved(stored, "JPEG", xmp=f'<x tiff:Orientation="{orientation}"/>'.encode())
    elif kind == "PNG in memory":
        image = saved(stored, "PNG", exif=exif(orientation)).copy()
    elif kind == "TIFF, LZW":
        image = saved(stored, "TIFF", exif=exif(orientation), compression="tiff_lzw")
    else:
        image = saved(stored, kind, exif=exif(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.kron(np.array(UPRIGHT, dtype=np.uint8), block)
    np.testing.assert_allclose(pixels_of(image)[..., 0].astype(int), expected, atol=2)


def test_exif_that_says_nothing_turns_nothing() -> None:
    for block in (exif(0), exif(9), b"Exif\0\0nonsense", b""):
        assert pixels_of(saved(grey(UPRIGHT), "PNG", exif=block))[..., 0].tolist() == UPRIGHT


def with_transparency(mode: str, value: object, pixel: int | Pixel) -> Image.Image:
    image = Image.new(mode, (1, 1), pixel)
    image.info["transparency"] = value
    return image


def palette(pixel: int, transparency: object = None) -> Image.Image:
    image = Image.new("P", (1, 1), pixel)
    image.putpalette([*RED, *GREEN, *BLUE])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def tiff(rows: object, dtype: str, **tags: int) -> Image.Image:
    return saved(grey(rows, dtype), "TIFF", tiffinfo={262: tags["photometric"]} if tags else {})


MODES: dict[str, tuple[Callable[[], Image.Image], Pixel]] = {
    "1": (lambda: Image.new("1", (1, 1), 1), WHITE),
    "L": (lambda: Image.new("L", (1, 1), 77), (77, 77, 77)),
    "P": (lambda: palette(1), GREEN),
    "RGB": (lambda: Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
    "RGBX": (lambda: Image.new("RGBX", (1, 1), (1, 2, 3, 0)), (1, 2, 3)),
    "RGBA, clear": (lambda: Image.new("RGBA", (1, 1), (200, 0, 0, 0)), WHITE),
    "RGBA, opaque": (lambda: Image.new("RGBA", (1, 1), (200, 1, 2, 255)), (200, 1, 2)),
    "RGBA, 1/5": (lambda: Image.new("RGBA", (1, 1), (255, 0, 100, 51)), (255, 204, 224)),
    "RGBa, 1/5": (lambda: Image.new("RGBa", (1, 1), (51, 0, 20, 51)), (255, 204, 224)),
    "LA, 1/5": (lambda: Image.new("LA", (1, 1), (100, 51)), (224, 224, 224)),
    "La, 1/5": (lambda: Image.new("La", (1, 1), (20, 51)), (224, 224, 224)),
    "PA, 1/5": (lambda: Image.merge("PA", (palette(0), grey([[51]]))), (255, 204, 204)),
    "P, clear": (lambda: palette(1, 1), WHITE),
    "P, another clear": (lambda: palette(1, 2), GREEN),
    "P, alphas": (lambda: palette(0, b"\x33\xff\xff"), (255, 204, 204)),
    "P in PNG": (lambda: saved(palette(0, b"\x33\xff\xff"), "PNG"), (255, 204, 204)),
    "P in TIFF": (lambda: saved(palette(1), "TIFF"), GREEN),
    "P in GIF": (lambda: saved(palette(2, 2), "GIF"), WHITE),
    "L, clear": (lambda: with_transparency("L", 77, 77), WHITE),
    "L, another clear": (lambda: with_transparency("L", 76, 77), (77, 77, 77)),
    "1, clear": (lambda: saved(with_transparency("1", 0, 0), "PNG"), WHITE),
    "RGB, clear": (lambda: saved(with_transparency("RGB", (1, 2, 3), (1, 2, 3)), "PNG"), WHITE),
    "RGB, another clear": (lambda: saved(with_transparency("RGB", (1, 2, 4), (1, 2, 3)), "PNG"), (1, 2, 3)),
    "PNG of 2 bits": (lambda: png_of(2, 0, b"\x80", 1), (170, 170, 170)),
    "PNG of 2 bits, clear": (lambda: png_of(2, 0, b"\x80", 1, b"\0\2"), WHITE),
    "PNG of 4 bits, clear": (lambda: png_of(4, 0, b"\x50", 1, b"\0\5"), WHITE),
    "PNG of 4 bits, another clear": (lambda: png_of(4, 0, b"\x50", 1, b"\0\x55"), (85, 85, 85)),
    "PNG of 16 bits": (lambda: png_of(16, 0, b"\x80\xff", 1), (128, 128, 128)),
    "PNG of 16 bits, clear": (lambda: png_of(16, 0, b"\x80\xff", 1, b"\x80\xff"), WHITE),
    "PNG of 16 bits, another clear": (lambda: png_of(16, 0, b"\x80\xff", 1, b"\x80\xfe"), (128, 128, 128)),
    "PNG of 16 bits, alpha": (lambda: png_of(16, 4, b"\x64\x64\x33\x33", 1), (224, 224, 224)),
    "PNG of 16 bits, RGB": (lambda: png_of(16, 2, b"\xff\xff\x80\xff\0\0", 1), (255, 128, 0)),
    "I;16": (lambda: grey([[65535]], "<u2"), WHITE),
    "I;16B": (lambda: saved(Image.new("I;16B", (1, 1), 0x4D00), "TIFF"), (77, 77, 77)),
    "I;16L": (lambda: Image.new("I;16L", (1, 1), 0x4D4D), (77, 77, 77)),
    "I": (lambda: grey([[0x4D4D]], "i4"), (77, 77, 77)),
    "I of PGM": (lambda: saved(grey([[0x4D4D]], "i4"), "PPM"), (77, 77, 77)),
    "TIFF of 16 bits": (lambda: tiff([[0xC0C0]], "<u2"), (192, 192, 192)),
    "TIFF of 16 bits, white is zero": (lambda: tiff([[0xC0C0]], "<u2", photometric=0), (63, 63, 63)),
    "CMYK": (lambda: Image.new("CMYK", (1, 1), (255, 0, 0, 0)), (0, 255, 255)),
    "CMYK in JPEG": (lambda: saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), (254, 0, 0)),
    "CMYK in TIFF": (lambda: saved(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF"), BLACK),
    "YCbCr": (lambda: Image.new("YCbCr", (1, 1), (77, 128, 128)), (77, 77, 77)),
    "HSV": (lambda: Image.new("HSV", (1, 1), (0, 255, 255)), RED),
    "LAB": (lambda: Image.new("LAB", (1, 1), (255, 128, 128)), WHITE),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode(name: str) -> None:
    make, expected = MODES[name]
    tolerance = 1 if name in {"LAB", "CMYK in JPEG", "RGBa, 1/5", "La, 1/5"} else 0
    np.testing.assert_allclose(first(make()), expected, atol=tolerance)


def test_grey_of_12_bits_is_white_at_4095() -> None:
    """A TIFF by hand, since Pillow writes none: two pixels, 0xFFF and 0x800, in three bytes."""
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 3)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries)
    data = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0" + directory + bytes(4)
    assert pixels_of(Image.open(io.BytesIO(data)))[0, :, 0].tolist() == [255, 128]


def test_of_several_frames_the_first_is_shown() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN)]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        assert first(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)) == RED


def bytes_of(image: Image.Image, **tags: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", tiffinfo=tags.get("tags", {}))
    return buffer.getvalue()


SIGNED = {339: 2}
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "float.tif": (lambda: bytes_of(Image.new("F", (2, 2), 0.5)), "mode F"),
    "int32.tif": (lambda: bytes_of(Image.new("I", (2, 2), 7)), "mode I"),
    "int16.tif": (lambda: bytes_of(grey([[1]], "<u2"), tags=SIGNED), "signed"),
    "int8.tif": (lambda: bytes_of(grey([[1]]), tags=SIGNED), "signed"),
    "key.png": (lambda: png_bytes(16, 2, bytes(6), 1, bytes(6)), "transparent colour of 16 bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_is_refused_by_name_in_training_and_verification(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    good, path = tmp_path / "good.png", tmp_path / name
    grey(UPRIGHT).save(good)
    path.write_bytes(make())
    with pytest.raises(BrokenImagesError) as training:
        open_store([good, path], 8, 8, cache_folder=None)
    (broken,) = decode_problems([good, path])
    for text in (training.value.message, f"{broken.path} {broken.reason}"):
        assert name in text and words in text and "save it as 8-bit" in text


def test_pixels_in_memory_whose_white_is_unknown_are_refused() -> None:
    for image in (Image.new("F", (1, 1), 3.0), Image.new("I", (1, 1), 65536), Image.new("I", (1, 1), -1)):
        with pytest.raises(DataError, match=f"mode {image.mode}.*save it as 8-bit"):
            as_shown(image)


def test_truncated_and_huge_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    Image.effect_noise((64, 64), 50).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in decode_problems([path])[0].reason
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "decompression bomb" in decode_problems([path])[0].reason


def test_a_cache_of_another_rule_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "turned.png"
    grey([[A, B, C, D]]).save(path, exif=exif(3))
    with monkeypatch.context() as patch:  # as it was before pictures were turned
        patch.setattr(image_cache, "RULE_VERSION", appearance.RULE_VERSION - 1)
        patch.setattr(appearance, "_turn", lambda _: None)
        old = open_store([path], 1, 4, cache_folder=tmp_path / "cache").images.copy()
    assert old[0, 0, :, 0].tolist() == [A, B, C, D]
    new = open_store([path], 1, 4, cache_folder=tmp_path / "cache").images
    assert new[0, 0, :, 0].tolist() == [D, C, B, A]
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1


KEPT_MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"),
    "WEBP": ("RGB", "RGBA"),
    "": ("1", "L", "LA", "La", "P", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I;16B", "I"),
}
"""Lossless formats, "" for a picture in memory, and the modes they keep: TIFF no alpha of a palette."""
DEEP = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def drawn(mode: str, height: int, width: int, random: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw a picture of a mode, and the same in RGB over white."""
    if mode in DEEP:
        levels = random.integers(0, 65536, (height, width))
        deep = Image.frombytes(mode, (width, height), levels.astype(DEEP[mode]).tobytes())
        return deep, grey(levels // 256).convert("RGB")
    picture = Image.fromarray(random.integers(0, 256, (height, width, 4), dtype=np.uint8))
    picture = picture.convert(PREMULTIPLIED[mode]).convert(mode) if mode in PREMULTIPLIED else picture.convert(mode)
    colours = picture.convert(PREMULTIPLIED.get(mode, mode)).convert("RGBA")
    return picture, Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


@settings(max_examples=120, deadline=None)
@given(
    kind_and_mode=st.sampled_from([(kind, mode) for kind, modes in KEPT_MODES.items() for mode in modes]),
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    orientation=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_a_picture_is_that_of_its_upright_copy_in_rgb(
    kind_and_mode: tuple[str, str], sides: tuple[int, int], orientation: int, seed: int
) -> None:
    kind, mode = kind_and_mode
    picture, flat = drawn(mode, *sides, np.random.default_rng(seed))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = saved(picture, kind, exif=exif(orientation), **options) if kind else picture
    if not kind:
        image.info["exif"] = exif(orientation).tobytes()
    expected = np.asarray(upright(flat, orientation))
    np.testing.assert_allclose(pixels_of(image).astype(int), expected, atol=1)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture by Pillow's own tool."""
    image = image.copy()
    image.getexif()[274] = orientation
    return ImageOps.exif_transpose(image)
