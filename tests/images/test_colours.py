"""Changed colours, against pixel-by-pixel NumPy."""

from __future__ import annotations

import numpy as np
import torch

from ccreid_cli.images.augment import augment, draw_augmentation
from ccreid_cli.images.colours import change_colours, draw_colours


def oracle(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Change one (3, H, W) image: gains, contrast about the image's mean, saturation about each pixel's grey."""
    gained = image.astype(np.float64) * factors[:3, None, None]
    mean = gained.mean()
    gained = mean + (gained - mean) * factors[3]
    grey = 0.299 * gained[0] + 0.587 * gained[1] + 0.114 * gained[2]
    return np.asarray(np.clip(grey + (gained - grey) * factors[4], 0, 255))


def images_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, 12, 7), dtype=torch.uint8, generator=generator)


def test_colours_change_like_the_oracle() -> None:
    images, factors = images_of(6), draw_colours(6, 1.5, torch.Generator().manual_seed(1))
    found = change_colours(images, factors)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for image, own, changed in zip(images.numpy(), factors.numpy(), found.numpy(), strict=True):
        assert np.abs(changed - oracle(image, own)).max() <= 0.51


def test_half_of_the_images_stay_as_they_are() -> None:
    factors = draw_colours(400, 1.0, torch.Generator().manual_seed(1))
    stay = (factors == 1).all(dim=1)
    assert 150 < stay.sum() < 250
    images = images_of(400)
    assert torch.equal(change_colours(images, factors)[stay], images[stay])
    assert 0.3 < factors.log().abs().amax() <= 0.4 + 1e-6


def test_the_rest_of_a_plan_does_not_depend_on_colours() -> None:
    plain, coloured = (draw_augmentation(9, 12, 7, torch.Generator().manual_seed(5), jitter) for jitter in (0, 1.0))
    assert plain.colours is None and coloured.colours is not None
    assert torch.equal(plain.erase, coloured.erase) and torch.equal(plain.flip, coloured.flip)
    images = images_of(9)
    expected = augment(change_colours(images, coloured.colours), plain)
    assert torch.equal(augment(images, coloured), expected)
    parts = [augment(images[start:stop], coloured.slice(start, stop)) for start, stop in ((0, 4), (4, 9))]
    assert torch.equal(torch.cat(parts), expected)
