"""Pooling: from a map of local features to one feature per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32, or as it is when it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class GeM(nn.Module):
    """Generalised mean over the positions: ``(mean(x^p))^(1/p)``, with a learnt p (Radenović et al., TPAMI 2018).

    Args:
        p: The exponent at the start: 1 is the average, infinity the maximum.
        eps: The features are clamped to at least this, so that every power exists.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) feature maps to (B, C) float32 features."""
        powers = at_least_float32(maps).clamp(min=self.eps).pow(self.p)
        pooled: Tensor = powers.mean(dim=(2, 3)).pow(1.0 / self.p)
        return pooled

    def extra_repr(self) -> str:
        """Show the exponent in the printed model."""
        return f"p={self.p.item():.3f}, eps={self.eps}"


class AveragePooling(nn.Module):
    """The mean over the positions."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) feature maps to (B, C) float32 features."""
        return maps.mean(dim=(2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


class MaxPooling(nn.Module):
    """The maximum over the positions."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) feature maps to (B, C) float32 features."""
        return at_least_float32(F.adaptive_max_pool2d(maps, 1).flatten(1))


POOLINGS: dict[str, Callable[[], nn.Module]] = {"gem": GeM, "avg": AveragePooling, "max": MaxPooling}
