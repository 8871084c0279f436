"""Training augmentation of whole batches on any device: change colours, flip, pad and crop, normalise, erase.

Randomness and work are apart: `draw_augmentation` decides on the CPU from one generator, `augment` does as told. So one
process or several, CPU or GPU see the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ccreid_cli.images.colours import change_colours, draw_colours

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PADDING = 10
"""Black pixels added on every side before cropping back to size."""
FLIP_PROBABILITY = ERASE_PROBABILITY = 0.5
ERASE_AREA = (0.02, 0.4)
ERASE_ASPECT = (0.3, 1 / 0.3)
ERASE_ATTEMPTS = 100


@dataclass(frozen=True)
class AugmentPlan:
    """What is to be done to each of B images; tensors on the CPU.

    Attributes:
        flip: (B,) bool, mirror left and right (before the crop).
        crop_top: (B,) int64, first row of the crop in the padded image, 0 to 20.
        crop_left: (B,) int64, first column of the crop in the padded image, 0 to 20.
        erase: (B, 4) int64, top, left, height and width of the erased rectangle; height 0 erases nothing.
        colours: (B, 5) float32 factors of `images.colours`; None leaves all colours as they are.
    """

    flip: Tensor
    crop_top: Tensor
    crop_left: Tensor
    erase: Tensor
    colours: Tensor | None = None

    def __len__(self) -> int:
        return len(self.flip)

    def slice(self, start: int, stop: int) -> AugmentPlan:
        """Return the plan of images `start` to `stop`, as one process's share of a batch."""
        part = slice(start, stop)
        colours = None if self.colours is None else self.colours[part]
        return AugmentPlan(self.flip[part], self.crop_top[part], self.crop_left[part], self.erase[part], colours)


def draw_augmentation(
    batch_size: int, height: int, width: int, generator: torch.Generator, colour_jitter: float = 0.0
) -> AugmentPlan:
    """Decide how each image of a batch is augmented.

    Args:
        batch_size: How many images, B.
        height: Image height, pixels.
        width: Image width, pixels.
        generator: A CPU generator, the only source of randomness.
        colour_jitter: How much the colours change, as `draw_colours` takes it; 0 for not at all.

    Returns:
        The plan of B images.
    """
    flip = torch.rand(batch_size, generator=generator) < FLIP_PROBABILITY
    corners = torch.randint(0, 2 * PADDING + 1, (2, batch_size), generator=generator)
    rectangles = _draw_rectangles(batch_size, height, width, generator)
    colours = draw_colours(batch_size, colour_jitter, generator) if colour_jitter else None
    return AugmentPlan(flip, corners[0], corners[1], rectangles, colours)


def _draw_rectangles(batch_size: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw what to erase: the first of 100 random shapes that fits, at a random place, in half of the images.

    Source: Zhong et al., Random Erasing Data Augmentation (arXiv 1708.04896), algorithm 1.
    """
    chosen = torch.rand(batch_size, generator=generator) < ERASE_PROBABILITY
    area, aspect = torch.rand((2, batch_size, ERASE_ATTEMPTS), generator=generator)
    area = (ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * area) * (height * width)
    aspect = ERASE_ASPECT[0] + (ERASE_ASPECT[1] - ERASE_ASPECT[0]) * aspect
    heights, widths = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    shape = torch.cat([heights.gather(1, first), widths.gather(1, first)], dim=1)
    shape *= (chosen & fits.any(dim=1))[:, None]
    room = torch.tensor([height, width]) - shape + 1
    corner = (torch.rand((batch_size, 2), generator=generator, dtype=torch.float64) * room).long()
    return torch.cat([corner, shape], dim=1)


def augment(images: Tensor, plan: AugmentPlan) -> Tensor:
    """Carry out a plan.

    Args:
        images: (B, 3, H, W) uint8; the channels_last memory format saves a copy.
        plan: What to do to each of the B images.

    Returns:
        (B, 3, H, W) float32 in channels_last, normalised by ImageNet's mean and standard deviation.

    Raises:
        ValueError: The plan is for another number of images.
    """
    if len(plan) != len(images):
        raise ValueError(f"a plan for {len(plan)} images does not fit a batch of {len(images)}")
    if plan.colours is not None:
        images = change_colours(images, plan.colours)
    todo = torch.cat([torch.stack([plan.flip.long(), plan.crop_top, plan.crop_left], dim=1), plan.erase], dim=1)
    flip, top, left, *rectangle = todo.to(images.device, non_blocking=images.is_cuda).unbind(dim=1)
    pixels = _crop(_flip(images.permute(0, 2, 3, 1), flip.bool()), top, left)
    result = _normalize_pixels(pixels)
    _erase(result, rectangle)
    return result.permute(0, 3, 1, 2)


def normalize(images: Tensor) -> Tensor:
    """Normalise a batch as at test time.

    Args:
        images: (B, 3, H, W) uint8; the channels_last memory format saves a copy.

    Returns:
        (B, 3, H, W) float32 in channels_last: (image / 255 - mean) / standard deviation of ImageNet.
    """
    return _normalize_pixels(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _flip(pixels: Tensor, flip: Tensor) -> Tensor:
    return torch.where(flip[:, None, None, None], pixels.flip(2), pixels)


def _crop(pixels: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Return (B, H, W, 3) windows of the padded images.

    All windows are one strided view; picking one per image copies whole rows, where a gather of pixels would be slow.
    """
    count, height, width, channels = pixels.shape
    padded = F.pad(pixels, (0, 0, PADDING, PADDING, PADDING, PADDING)).contiguous()
    image, row, column, channel = padded.stride()
    places = 2 * PADDING + 1
    windows = padded.as_strided(
        (count, places, places, height, width, channels), (image, row, column, row, column, channel)
    )
    return windows[torch.arange(count, device=pixels.device), top, left]


def _normalize_pixels(pixels: Tensor) -> Tensor:
    """Turn (B, H, W, 3) uint8 into normalised float32."""
    count, height, width, channels = pixels.shape
    mean, scale, _ = _constants(width, pixels.device)
    rows = pixels.reshape(count, height, width * channels)
    return rows.to(torch.float32).sub_(mean).mul_(scale).view(count, height, width, channels)


def _erase(pixels: Tensor, rectangle: list[Tensor]) -> None:
    """Fill one rectangle per image of (B, H, W, 3) float32 in place; as the reference, after the normalisation."""
    count, height, width, channels = pixels.shape
    top, left, tall, wide = (side[:, None] for side in rectangle)
    row = torch.arange(height, device=pixels.device)
    column = torch.arange(width * channels, device=pixels.device) // channels
    inside_rows = (row >= top) & (row < top + tall)
    inside_columns = (column >= left) & (column < left + wide)
    rows = pixels.view(count, height, width * channels)
    _, _, fill = _constants(width, pixels.device)
    torch.where(inside_rows[:, :, None] & inside_columns[:, None, :], fill, rows, out=rows)


@lru_cache(maxsize=32)
def _constants(width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, 1 / deviation and fill of a row of pixels, each (3W,): long rows vectorise, channels do not."""
    mean = torch.tensor(IMAGENET_MEAN, device=device).repeat(width)
    deviation = torch.tensor(IMAGENET_STD, device=device).repeat(width)
    return mean * 255, 1 / (255 * deviation), mean
