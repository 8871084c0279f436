from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.core.config import settings
from ccreid_cli.core.errors import UsageError
from ccreid_cli.images.decoding import RESIZES, resize_rule, to_pixels
from ccreid_cli.images.store import open_store


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 23, 3), dtype=np.uint8)


def between_four_pixels(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Interpolate linearly at the centre of every pixel of the result: OpenCV's INTER_LINEAR."""
    result = np.empty((height, width, 3))
    for row in range(height):
        y = np.clip((row + 0.5) * picture.shape[0] / height - 0.5, 0, picture.shape[0] - 1)
        for column in range(width):
            x = np.clip((column + 0.5) * picture.shape[1] / width - 0.5, 0, picture.shape[1] - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, picture.shape[0] - 1), min(left + 1, picture.shape[1] - 1)
            upper = picture[top, left] * (1 - (x - left)) + picture[top, right] * (x - left)
            lower = picture[below, left] * (1 - (x - left)) + picture[below, right] * (x - left)
            result[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return result


@pytest.mark.parametrize("size", [(64, 32), (16, 9), (40, 23), (80, 11)])
def test_opencv_is_linear_between_the_four_nearest_pixels(picture: NDArray[np.uint8], size: tuple[int, int]) -> None:
    found = to_pixels(Image.fromarray(picture), *size, "opencv")
    np.testing.assert_allclose(found, between_four_pixels(picture, *size), atol=1)


def test_linear_averages_where_it_shrinks_and_is_as_opencv_where_it_enlarges(picture: NDArray[np.uint8]) -> None:
    image = Image.fromarray(picture)
    linear = image.resize((9, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(to_pixels(image, 16, 9, "linear"), np.asarray(linear))
    assert to_pixels(image, 16, 9, "linear").std() < 0.8 * to_pixels(image, 16, 9, "opencv").std()
    np.testing.assert_allclose(to_pixels(image, 64, 32, "linear"), between_four_pixels(picture, 64, 32), atol=1)


def test_the_setting_names_every_way_to_resize() -> None:
    setting = settings()["resize"]
    assert setting.setting.names == tuple(RESIZES) and setting.default == resize_rule("bicubic")
    with pytest.raises(UsageError, match='there is no resize "linaer"') as caught:
        resize_rule("linaer")
    assert '"linear"' in str(caught.value.hint)


def test_each_way_to_resize_has_a_cache_of_its_own(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    for _ in range(2):
        for resize in RESIZES:
            store = open_store([path], 16, 9, cache_folder=tmp_path / "cache", resize=resize)
            np.testing.assert_array_equal(store.images[0], to_pixels(Image.fromarray(picture), 16, 9, resize))
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 3
