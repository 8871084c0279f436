"""A network for inference on a CPU, with batch norm folded into the convolutions and activations fused to them.

In evaluation a batch norm is an affine map per channel, which the convolution before it can do itself (Jacob et al.,
CVPR 2018, section 3.2), and oneDNN applies the activation and adds the shortcut while a result is still in cache. What
is saved is passes over memory, a fifth to a third of the time.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from ccreid_cli.models.backbones import Backbone, ResNetBackbone
from ccreid_cli.models.osnet import ConvNorm, LightConv
from ccreid_cli.models.reid_net import ReidNet

_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
}
_NONE: tuple[str, list[float]] = ("none", [])


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

    def forward(self, maps: Tensor) -> Tensor:
        """Turn (B, C, H, W) into (B, C', H', W') in `dtype`."""
        name, scalars = self._activation
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps.to(self._dtype), self._weight, self._bias, *self._where, name, scalars, ""
        )
        return result

    def add_to(self, shortcut: Tensor, maps: Tensor) -> Tensor:
        """Return relu(convolution of `maps` + `shortcut`), overwriting `shortcut`."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            shortcut, maps, self._weight, self._bias, *self._where, "add", 1.0, "relu", [], ""
        )
        return result


class FusedBlock(nn.Module):
    """A block of a ResNet.

    Args:
        steps: All of its main path but the last convolution.
        last: That convolution.
        shortcut: What the input passes on the other path; None for nothing.
    """

    def __init__(self, steps: nn.Module, last: FusedConvolution, shortcut: nn.Module | None) -> None:
        super().__init__()
        self._steps, self._last, self._shortcut = steps, last, shortcut

    def forward(self, maps: Tensor) -> Tensor:
        """Turn (B, C, H, W) into (B, C', H', W'); the input may be overwritten."""
        inner = self._steps(maps)
        return self._last.add_to(maps if self._shortcut is None else self._shortcut(maps), inner)


@cache
def is_fusible(dtype: torch.dtype = torch.float32) -> bool:
    """Whether PyTorch has the operations that `fuse` needs on this processor, tried on one pixel."""
    if not torch._C._has_mkldnn:
        return False
    trial = FusedConvolution(nn.Conv2d(1, 1, 1), _ACTIVATIONS[nn.ReLU], dtype)
    pixel = torch.ones(1, 1, 1, 1, dtype=dtype)
    try:
        trial.add_to(pixel.clone(), trial(pixel))
    except (AttributeError, RuntimeError):
        return False
    return True


def fuse(model: ReidNet, dtype: torch.dtype = torch.float32) -> ReidNet:
    """Return a copy of a network for inference on the CPU; features differ by rounding only.

    Args:
        model: The network as it is now; it is not changed.
        dtype: To compute the convolutions in: float32, or bfloat16 for use under autocast.
    """
    fused = copy.deepcopy(model).eval()
    backbone = _fuse(fused.backbone, dtype)
    assert isinstance(backbone, Backbone)
    fused.backbone = backbone
    return fused


def _fuse(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replace what can be fused inside `module`, in place where it stays."""
    if isinstance(module, Backbone) and not module.fusible:
        return module
    if isinstance(module, BasicBlock | Bottleneck):
        return _fuse_block(module, dtype)
    if isinstance(module, ConvNorm):
        return nn.Sequential(*_fuse_steps([module.conv, module.bn, module.relu], dtype))
    if isinstance(module, LightConv):
        return nn.Sequential(*_fuse_steps([module.conv1, module.conv2, module.bn, module.relu], dtype))
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*_fuse_steps(list(module), dtype))
    if isinstance(module, ResNetBackbone):
        module.conv1, module.bn1, module.relu = _padded(_fuse_steps([module.conv1, module.bn1, module.relu], dtype))
    for name, child in module.named_children():
        setattr(module, name, _fuse(child, dtype))
    return module


def _padded(steps: list[nn.Module]) -> list[nn.Module]:
    return [*steps, *(nn.Identity() for _ in range(3 - len(steps)))]


def _fuse_block(block: BasicBlock | Bottleneck, dtype: torch.dtype) -> FusedBlock:
    steps: list[nn.Module] = [block.conv1, block.bn1, block.relu]
    last = (block.conv2, block.bn2)
    if isinstance(block, Bottleneck):
        steps += [block.conv2, block.bn2, block.relu]
        last = (block.conv3, block.bn3)
    shortcut = None if block.downsample is None else _fuse(block.downsample, dtype)
    final = FusedConvolution(fuse_conv_bn_eval(*last), _NONE, dtype)
    return FusedBlock(nn.Sequential(*_fuse_steps(steps, dtype)), final, shortcut)


def _fuse_steps(steps: list[nn.Module], dtype: torch.dtype) -> list[nn.Module]:
    """Fuse convolution, batch norm and activation wherever they follow one another."""
    result: list[nn.Module] = []
    left = list(steps)
    while left:
        step = left.pop(0)
        if not isinstance(step, nn.Conv2d) or isinstance(step.padding, str):
            result.append(_fuse(step, dtype))
            continue
        if left and isinstance(left[0], nn.BatchNorm2d):
            step = fuse_conv_bn_eval(step, cast(nn.BatchNorm2d, left.pop(0)))
        known = _ACTIVATIONS.get(type(left[0])) if left else None
        if known:
            left.pop(0)
        result.append(FusedConvolution(step, known or _NONE, dtype))
    return result
