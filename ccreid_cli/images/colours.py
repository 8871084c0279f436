"""Other light and other cameras: half of a training batch in changed colours.

Every image is changed by one affine map of its colours: gains of red, green and blue, then contrast about the image's
mean, then saturation about each pixel's grey value (0.299, 0.587, 0.114).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

PROBABILITY = 0.5
CAST, LIGHT, CONTRAST, SATURATION = 0.15, 0.25, 0.25, 0.35
"""Largest logarithm of a factor at strength 1: of one colour, of all three, of contrast and of saturation."""

_GREY = (0.299, 0.587, 0.114)


def draw_colours(batch_size: int, strength: float, generator: torch.Generator) -> Tensor:
    """Decide how the colours of each image change.

    Args:
        batch_size: How many images, B.
        strength: Multiplies the logarithms of all factors.
        generator: A CPU generator, the only source of randomness.

    Returns:
        (B, 5) float32 factors of red, green, blue, contrast and saturation; ones for an image that stays as it is.
    """
    logs = 2 * torch.rand((batch_size, 6), generator=generator) - 1
    changed = torch.rand((batch_size, 1), generator=generator) < PROBABILITY
    logs = strength * changed * logs * torch.tensor([CAST] * 3 + [LIGHT, CONTRAST, SATURATION])
    return torch.cat([logs[:, :3] + logs[:, 3:4], logs[:, 4:]], dim=1).exp()


def change_colours(images: Tensor, factors: Tensor) -> Tensor:
    """Carry out what `draw_colours` decided.

    Args:
        images: (B, 3, H, W) uint8.
        factors: (B, 5) float32, on the CPU or the images' device.

    Returns:
        (B, 3, H, W) uint8 in channels_last, rounded and cut to 0 to 255.
    """
    factors = factors.to(images.device, non_blocking=images.is_cuda)
    gains, contrast, saturation = factors[:, :3, None], factors[:, 3, None, None], factors[:, 4, None, None]
    pixels = images.flatten(2).to(torch.float32)  # (B, 3, HW)
    mean = (gains * pixels.mean(dim=2, keepdim=True)).mean(dim=1, keepdim=True)
    same, grey = _constants(images.device)
    mixing = saturation * same + (1 - saturation) * grey  # a row for each new colour
    changed = mixing @ (contrast * gains * pixels + (1 - contrast) * mean)
    changed = changed.round_().clamp_(0, 255).to(torch.uint8).view(images.shape)
    return changed.contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=32)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the (3, 3) identity and the (3,) shares of grey, once per device: making them waits for a GPU."""
    return torch.eye(3, device=device), torch.tensor(_GREY, device=device)
