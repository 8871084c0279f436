"""A convolution of oneDNN with its batch norm folded in, and its activation applied while the result is in cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
}
"""Activations that oneDNN applies to a convolution's result: their names and scalars there."""

NONE: tuple[str, list[float]] = ("none", [])
"""No activation."""


class FusedConvolution(nn.Module):
    """A convolution, what is left of its batch norm, and an activation, as one operation of oneDNN.

    Args:
        convolution: With batch norm folded in, if there was one.
        activation: Name and scalars of the activation.
        dtype: To compute in.
    """

    def __init__(self, convolution: nn.Conv2d, activation: tuple[str, list[float]], dtype: torch.dtype) -> None:
        super().__init__()
        self._weight = convolution.weight.detach().to(dtype, memory_format=torch.channels_last)
        self._bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)
        self._where: tuple[Any, ...] = (
            convolution.padding,
            convolution.stride,
            convolution.dilation,
            convolution.groups,
        )
        self._activation = activation
        self._dtype = dtype
        self._is_packed = False

    def forward(self, maps: Tensor) -> Tensor:
        """Turn (B, C, H, W) into (B, C', H', W') in `dtype`."""
        maps = maps.to(self._dtype)
        self._pack(maps)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps, self._weight, self._bias, *self._where, *self._activation, ""
        )
        return result

    def add_to(self, shortcut: Tensor, maps: Tensor, *, relu: bool) -> Tensor:
        """Return the convolution of `maps` (without its own activation) + `shortcut`, overwriting `shortcut`."""
        self._pack(maps)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            shortcut, maps, self._weight, self._bias, *self._where, "add", 1.0, "relu" if relu else None, [], ""
        )
        return result

    def _pack(self, maps: Tensor) -> None:
        """Order the weight as oneDNN wants it for maps of this size, once instead of at every call."""
        if not self._is_packed:
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(self._weight, *self._where, maps.shape)
            self._is_packed = True
