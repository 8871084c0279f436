"""Tiny datasets with the real names: images of 8x16 pixels."""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.catalog import CATALOG, Counts, DatasetInfo

BOXES = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000001_01.jpg", "0007_c6s3_077419_03.jpg"],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c2s1_000001_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c3s1_000151_01.jpg",
        "0001_c2s1_000301_00.jpg",
        "0003_c1s1_000301_00.jpg",
    ],
}
BOX_COUNTS = (Counts(3, 2), Counts(2, 2), Counts(3, 3))
"""What is in `BOXES`, as a catalogue row would publish it."""


def image_bytes(name: str, kind: str = "JPEG") -> bytes:
    """A picture whose colour depends on the name, so that different names have different bytes."""
    shade = zlib.crc32(name.encode())
    file = io.BytesIO()
    Image.new("RGB", (8, 16), (shade & 255, shade >> 8 & 255, shade >> 16 & 255)).save(file, kind)
    return file.getvalue()


class Listener(SilentReporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def write_images() -> Callable[..., Path]:
    def write(folder: Path, names: Iterable[str]) -> Path:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(name, "PNG" if name.endswith(".png") else "JPEG"))
        return folder

    return write


@pytest.fixture
def write_boxes(write_images: Callable[..., Path]) -> Callable[[Path], Path]:
    """Write a complete Market-1501-style tree, with the litter that real ones have."""

    def write(root: Path) -> Path:
        for folder, names in BOXES.items():
            write_images(root / folder, names)
            (root / folder / "Thumbs.db").write_bytes(b"thumbs")
            (root / folder / f"._{names[0]}").write_bytes(b"resource fork")
        return root

    return write


@pytest.fixture
def small() -> Callable[..., DatasetInfo]:
    """A row of the catalogue whose published counts are those of `BOXES`."""

    def row(name: str = "market1501", **changes: object) -> DatasetInfo:
        return dataclasses.replace(CATALOG[name], **{"counts": BOX_COUNTS, **changes})

    return row
