"""OSNet: omni-scale feature learning (Zhou et al., ICCV 2019; with instance norm: Zhou et al., TPAMI 2021).

Tensors keep the names of the released files of torchreid, so that these load as they are. Networks differ in width
(x1_0 to x0_25) and in where instance norm stands: nowhere, after the first blocks (ibn), where a search put it (ain).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccreid_cli.models.backbones import Backbone
from ccreid_cli.models.batch_norm import dense_format
from ccreid_cli.models.gated_sum import GatedSum, per_stream

NUM_SCALES = 4
"""Streams of a block; the n-th sees n 3×3 convolutions."""

WIDTHS = {
    "x1_0": (64, 256, 384, 512),
    "x0_75": (48, 192, 288, 384),
    "x0_5": (32, 128, 192, 256),
    "x0_25": (16, 64, 96, 128),
}
"""Channels after the stem and after each of the three stages."""


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm that keeps the memory layout of its input, which PyTorch's does not."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, affine=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise (B, C, H, W) feature maps, image by image."""
        return super().forward(maps).contiguous(memory_format=dense_format(maps))


class ConvNorm(nn.Module):
    """Convolution, batch norm (or instance norm), and ReLU unless it is linear."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 1, *, stride: int = 1, linear: bool = False, instance: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
        self.bn: nn.Module = InstanceNorm(outputs) if instance else nn.BatchNorm2d(outputs)
        self.relu: nn.Module = nn.Identity() if linear else nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Turn (B, inputs, H, W) into (B, outputs, H / stride, W / stride)."""
        result: Tensor = self.relu(self.bn(self.conv(maps)))
        return result


class LightConv(nn.Module):
    """A 3×3 convolution in two cheap parts: pointwise, then depthwise; batch norm and ReLU after both (section 3.1)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, num_channels, 1, bias=False)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1, groups=num_channels, bias=False)
        self.bn = nn.BatchNorm2d(num_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Turn (B, C, H, W) into the same shape."""
        result: Tensor = self.relu(self.bn(self.conv2(self.conv1(maps))))
        return result


class LightStream(nn.Module):
    """Light convolutions one after another, under the names of the searched networks (ain)."""

    def __init__(self, num_channels: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(LightConv(num_channels) for _ in range(depth)))

    def forward(self, maps: Tensor) -> Tensor:
        """Turn (B, C, H, W) into the same shape."""
        result: Tensor = self.layers(maps)
        return result


class ChannelGate(nn.Module):
    """Weighs every channel by what the whole map shows; one gate serves all scales of a block (section 3.2)."""

    def __init__(self, num_channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(num_channels, num_channels // reduction, 1)
        self.fc2 = nn.Conv2d(num_channels // reduction, num_channels, 1)

    def forward(self, streams: Sequence[Tensor]) -> Tensor:
        """Weigh streams of (B, C, H, W) each and add them up; without gradients the streams are overwritten."""
        first, second = self.fc1.weight.flatten(1), self.fc2.weight.flatten(1)
        if torch.is_grad_enabled():
            result: Tensor = GatedSum.apply(first, self.fc1.bias, second, self.fc2.bias, *streams)
            return result
        means = torch.cat([maps.mean(dim=(2, 3)) for maps in streams])
        hidden = torch.relu(F.linear(means, first, self.fc1.bias))
        weights = per_stream(torch.sigmoid(F.linear(hidden, second, self.fc2.bias)), list(streams))
        total = streams[0].mul_(weights[0])
        for maps, weight in zip(streams[1:], weights[1:], strict=True):
            total.addcmul_(maps, weight)
        return total


class OmniScaleBlock(nn.Module):
    """A residual bottleneck of four streams with growing receptive fields, summed through a shared gate.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        instance: Instance norm after the sum with the shortcut (ibn).
    """

    def __init__(self, inputs: int, outputs: int, *, instance: bool = False) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = ConvNorm(inputs, middle)
        self.conv2a = LightConv(middle)
        self.conv2b = nn.Sequential(*(LightConv(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LightConv(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LightConv(middle) for _ in range(4)))
        self.gate = ChannelGate(middle)
        self.conv3 = ConvNorm(middle, outputs, linear=True)
        self.downsample = ConvNorm(inputs, outputs, linear=True) if inputs != outputs else None
        self.IN = InstanceNorm(outputs) if instance else None

    def scales(self, maps: Tensor) -> Tensor:
        """Turn (B, inputs, H, W) into the gated sum of the streams, (B, outputs / 4, H, W)."""
        first = self.conv1(maps)
        result: Tensor = self.gate([stream(first) for stream in (self.conv2a, self.conv2b, self.conv2c, self.conv2d)])
        return result

    def forward(self, maps: Tensor) -> Tensor:
        """Turn (B, inputs, H, W) into (B, outputs, H, W)."""
        result: Tensor = self.conv3(self.scales(maps))
        result = result + (maps if self.downsample is None else self.downsample(maps))
        return torch.relu_(result if self.IN is None else self.IN(result))


class SearchedBlock(nn.Module):
    """`OmniScaleBlock` of the searched networks (ain): other names, and instance norm within the residual branch.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        instance: Instance norm instead of batch norm after the last convolution of the branch.
    """

    def __init__(self, inputs: int, outputs: int, *, instance: bool) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = ConvNorm(inputs, middle)
        self.conv2 = nn.ModuleList(LightStream(middle, depth) for depth in range(1, NUM_SCALES + 1))
        self.gate = ChannelGate(middle)
        self.conv3: nn.Module = _Pointwise(middle, outputs) if instance else ConvNorm(middle, outputs, linear=True)
        self.downsample = ConvNorm(inputs, outputs, linear=True) if inputs != outputs else None
        self.IN = InstanceNorm(outputs) if instance else None

    def scales(self, maps: Tensor) -> Tensor:
        """Turn (B, inputs, H, W) into the gated sum of the streams, (B, outputs / 4, H, W)."""
        first = self.conv1(maps)
        result: Tensor = self.gate([stream(first) for stream in self.conv2])
        return result

    def forward(self, maps: Tensor) -> Tensor:
        """Turn (B, inputs, H, W) into (B, outputs, H, W)."""
        result: Tensor = self.conv3(self.scales(maps))
        if self.IN is not None:
            result = self.IN(result)
        return torch.relu_(result + (maps if self.downsample is None else self.downsample(maps)))


class _Pointwise(nn.Module):
    """A 1×1 convolution by itself, under the name that it has in the release."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.conv(maps)
        return result


def _halve(num_channels: int) -> nn.Sequential:
    """Return what stands between two stages: half the height and width."""
    return nn.Sequential(ConvNorm(num_channels, num_channels), nn.AvgPool2d(2, stride=2))


class OSNet(Backbone):
    """OSNet without its head.

    Args:
        width: A key of `WIDTHS`.
        instance: Instance norm in the stem and after the blocks of the first stage (ibn).
    """

    def __init__(self, width: str, *, instance: bool = False) -> None:
        stem, first, second, third = WIDTHS[width]
        super().__init__(third)
        self.conv1 = ConvNorm(3, stem, 7, stride=2, instance=instance)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(
            OmniScaleBlock(stem, first, instance=instance),
            OmniScaleBlock(first, first, instance=instance),
            _halve(first),
        )
        self.conv3 = nn.Sequential(OmniScaleBlock(first, second), OmniScaleBlock(second, second), _halve(second))
        self.conv4 = nn.Sequential(OmniScaleBlock(second, third), OmniScaleBlock(third, third))
        self.conv5 = ConvNorm(third, third)

    def forward(self, images: Tensor) -> Tensor:
        """Turn (B, 3, H, W) normalised images into (B, num_channels, H / 16, W / 16) feature maps."""
        maps: Tensor = self.maxpool(self.conv1(images))
        for stage in (self.conv2, self.conv3, self.conv4, self.conv5):
            maps = stage(maps)
        return maps


class SearchedOSNet(Backbone):
    """OSNet-AIN without its head: instance norm where the search put it (blocks 1, 2, 4 and 5 of 6, and the stem).

    Args:
        width: A key of `WIDTHS`.
    """

    def __init__(self, width: str = "x1_0") -> None:
        stem, first, second, third = WIDTHS[width]
        super().__init__(third)
        self.conv1 = ConvNorm(3, stem, 7, stride=2, instance=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(
            SearchedBlock(stem, first, instance=True), SearchedBlock(first, first, instance=True)
        )
        self.pool2 = _halve(first)
        self.conv3 = nn.Sequential(
            SearchedBlock(first, second, instance=False), SearchedBlock(second, second, instance=True)
        )
        self.pool3 = _halve(second)
        self.conv4 = nn.Sequential(
            SearchedBlock(second, third, instance=True), SearchedBlock(third, third, instance=False)
        )
        self.conv5 = ConvNorm(third, third)

    def forward(self, images: Tensor) -> Tensor:
        """Turn (B, 3, H, W) normalised images into (B, num_channels, H / 16, W / 16) feature maps."""
        maps: Tensor = self.maxpool(self.conv1(images))
        for stage in (self.conv2, self.pool2, self.conv3, self.pool3, self.conv4, self.conv5):
            maps = stage(maps)
        return maps
