"""What the edges of images look like: a cut-out has its object in the middle and the place around it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ccreid_cli.images.source import ImageSet
from ccreid_cli.machine.distributed import Group

NUM_COLUMNS = 54
"""Mean and deviation of three colours in nine strips."""

_IMAGES_PER_BLOCK = 256
_ROWS = 4
_SIDE = 10
_FOOT = 12
"""The strips: a tenth of the width at either side, in four parts, and the lowest twelfth of the height."""


def edges_of(images: ImageSet, group: Group) -> Tensor:
    """Describe the edges of all images, each process reading its share.

    It depends on the pixels alone, not on processes, threads or device.

    Args:
        images: N images, at least 4 pixels high.
        group: The processes; all take part.

    Returns:
        (N, 54) float64 on the CPU, the same in every process; see `edge_colours`.
    """
    start, stop = group.bounds(len(images))
    blocks = [torch.zeros((0, NUM_COLUMNS), dtype=torch.float64)]
    for first in range(start, stop, _IMAGES_PER_BLOCK):
        rows = torch.arange(first, min(first + _IMAGES_PER_BLOCK, stop))
        blocks.append(edge_colours(images.gather(rows, torch.device("cpu"))))
    images.release_pages()
    colours = torch.cat(blocks)
    return group.gather_rows(colours.to(group.device)).cpu() if group.world > 1 else colours


def edge_colours(images: Tensor) -> Tensor:
    """Return mean and standard deviation of each colour in each strip of the edges.

    Args:
        images: (B, 3, H, W) uint8, at least 4 pixels high.

    Returns:
        (B, 54) float64, in units of pixel values; exact sums of whole numbers.
    """
    height, width = images.shape[2:]
    side = max(1, width // _SIDE)
    cuts = [height * row // _ROWS for row in range(_ROWS + 1)]
    strips = [
        images[:, :, top:bottom, columns]
        for top, bottom in pairwise(cuts)
        for columns in (slice(0, side), slice(width - side, width))
    ]
    strips.append(images[:, :, height - max(1, height // _FOOT) :])
    return torch.cat([value for strip in strips for value in _mean_and_deviation(strip)], dim=1)


def _mean_and_deviation(strip: Tensor) -> tuple[Tensor, Tensor]:
    values = strip.flatten(2).to(torch.int64)
    mean = values.sum(dim=2).to(torch.float64) / values.shape[2]
    squares = (values * values).sum(dim=2).to(torch.float64) / values.shape[2]
    return mean, (squares - mean * mean).clamp_min(0).sqrt()
