"""Features without what the images' edges tell: images of one place resemble one another, whoever they show.

Own idea, for sets without camera labels: a linear prediction of the features from the edges' colours is subtracted, as
`cameras` subtracts the mean feature of an image's camera.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ccreid_cli.machine.split_rows import SplitRows

LEAST_IMAGES = 30
"""With fewer images features stay as they are: the prediction would be of chance."""

RIDGE = 2.0
"""What keeps the prediction small, in units of the variance of one column of the edges."""


def without_background(features: SplitRows, edges: Tensor) -> SplitRows:
    """Subtract from features what a ridge regression on the edges predicts, and their mean, in double precision.

    Args:
        features: (N, D) float32.
        edges: (N, E) any description of each image's edges; standardised here, constant columns say nothing.

    Returns:
        (N, D) float32 unit rows on the features' device; with fewer than `LEAST_IMAGES` images the features as they
        are.
    """
    if features.total < LEAST_IMAGES:
        return features
    place = features.own.device
    device = torch.device("cpu") if place.type == "mps" else place  # which has no double precision
    columns = _standardised(edges.to(device, torch.float64))
    identity = torch.eye(columns.shape[1], dtype=torch.float64, device=device)
    factor = torch.linalg.cholesky(columns.t() @ columns + RIDGE * len(columns) * identity)

    def unexplained(block: Tensor) -> Tensor:
        block = block.to(device, torch.float64)
        block = block - block.mean(dim=0)
        predicted = columns @ torch.cholesky_solve(columns.t() @ block, factor)
        return (block - predicted).to(place, torch.float32)

    return features.with_own(functional.normalize(features.by_columns(unexplained).own, dim=1))


def _standardised(edges: Tensor) -> Tensor:
    deviation = edges.std(dim=0, correction=0)
    return (edges - edges.mean(dim=0)) / torch.where(deviation > 0, deviation, 1.0)
