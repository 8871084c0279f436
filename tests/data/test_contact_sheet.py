from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.data.catalog import CATALOG, DatasetInfo
from ccreid_cli.data.contact_sheet import contact_sheet
from ccreid_cli.data.reading import load_dataset

Write = Callable[..., Path]


@pytest.fixture
def root(
    tmp_path: Path, write_boxes: Write, small: Callable[..., DatasetInfo], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setitem(CATALOG, "market1501", small())
    return write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15")


def test_contact_sheet(root: Path, tmp_path: Path, listener: Any) -> None:
    dataset = load_dataset("market1501", tmp_path, listener)
    out = contact_sheet(dataset, tmp_path / "sheet.png", num_ids=5)
    with Image.open(out) as sheet:
        assert sheet.size == (50 + 3 * 70, 22 + 2 * 134)  # three cameras, two identities
        assert sheet.getpixel((50 + 32, 22 + 64)) != (255, 255, 255)  # identity 2 in the first camera
        assert sheet.getpixel((50 + 32, 22 + 134 + 64)) == (255, 255, 255)  # identity 7 was not seen there
    with pytest.raises(UsageError, match="ends in"):
        contact_sheet(dataset, tmp_path / "sheet.pdf")
    (root / "bounding_box_train" / "0002_c1s1_000451_03.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="0002_c1s1_000451_03.jpg does not decode"):
        contact_sheet(dataset, tmp_path / "sheet.jpg")


def test_contact_sheet_without_identities(tmp_path: Path, write_images: Write, listener: Any) -> None:
    folder = write_images(tmp_path / "mine", [f"{letter}.jpg" for letter in "abcdefghij"])
    dataset = load_dataset(str(folder), tmp_path, listener)
    with Image.open(contact_sheet(dataset, tmp_path / "sheet.jpg", num_ids=4)) as sheet:
        assert sheet.height == 22 + 2 * 134
