"""Backbones: from images to feature maps.

To add one, write a line in `BACKBONES` (and, where released weights exist, one in `models.weights.WEIGHTS`). A backbone
keeps the key names of the release it comes from, so that released weights load as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn
from torchvision.models import convnext_tiny, efficientnet_b0, mobilenet_v2
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.models.batch_norm import dense_format


class Backbone(nn.Module, ABC):
    """A network cut before its head.

    Args:
        num_channels: Channels of the feature maps that `forward` returns.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Turn (B, 3, H, W) normalised images into (B, num_channels, H / stride, W / stride) feature maps."""


class ResNetBackbone(Backbone):
    """torchvision's ResNet without its classifier, under the same key names."""

    def __init__(self, net: ResNet, num_channels: int) -> None:
        super().__init__(num_channels)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, images: Tensor) -> Tensor:
        """Turn (B, 3, H, W) normalised images into (B, num_channels, H / 16, W / 16) feature maps."""
        maps: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
        return maps


class FeaturesBackbone(Backbone):
    """A torchvision network of the form ``features`` + ``classifier``, without the classifier."""

    def __init__(self, features: nn.Module, num_channels: int) -> None:
        super().__init__(num_channels)
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        """Turn (B, 3, H, W) normalised images into (B, num_channels, H / 32, W / 32) feature maps."""
        maps: Tensor = self.features(images)
        return maps


class InstanceBatchNorm(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the rest (IBN-a, Pan et al., ECCV 2018).

    Args:
        num_channels: Channels of the input; an odd one goes to the batch norm.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_instance = num_channels // 2
        self.IN = nn.InstanceNorm2d(self.num_instance, affine=True)
        self.BN = nn.BatchNorm2d(num_channels - self.num_instance)

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise (B, C, H, W) feature maps."""
        instance, batch = maps.tensor_split([self.num_instance], dim=1)
        # Norm kernels are slow on slices of channels, and instance norm always answers in plain memory order, which
        # would take the rest of the network out of channels_last.
        memory_format = dense_format(maps)
        batch = self.BN(batch.contiguous(memory_format=memory_format))
        return torch.cat([self.IN(instance).contiguous(memory_format=memory_format), batch], dim=1)


def _keep_last_resolution(net: ResNet) -> None:
    """Set the stride of the last stage to 1: twice the height and width of the feature maps."""
    first = net.layer4[0]
    strided = first.conv1 if isinstance(first, BasicBlock) else first.conv2
    strided.stride = (1, 1)
    first.downsample[0].stride = (1, 1)


def _resnet(block: type[BasicBlock | Bottleneck], layers: Sequence[int], *, ibn: bool = False) -> ResNetBackbone:
    net = ResNet(block, list(layers), num_classes=1)
    _keep_last_resolution(net)
    if ibn:
        for stage in (net.layer1, net.layer2, net.layer3):
            for unit in stage:
                unit.bn1 = InstanceBatchNorm(unit.bn1.num_features)
    return ResNetBackbone(net, 512 * block.expansion)


def _mobilenet_v2() -> FeaturesBackbone:
    return FeaturesBackbone(mobilenet_v2(num_classes=1).features, 1280)


def _efficientnet_b0() -> FeaturesBackbone:
    return FeaturesBackbone(efficientnet_b0(num_classes=1).features, 1280)


def _convnext_tiny() -> FeaturesBackbone:
    return FeaturesBackbone(convnext_tiny(num_classes=1).features, 768)


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "resnet18": partial(_resnet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(_resnet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(_resnet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(_resnet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(_resnet, Bottleneck, (3, 8, 36, 3)),
    "resnet_ibn50a": partial(_resnet, Bottleneck, (3, 4, 6, 3), ibn=True),
    "resnet_ibn101a": partial(_resnet, Bottleneck, (3, 4, 23, 3), ibn=True),
    "mobilenet_v2": _mobilenet_v2,
    "efficientnet_b0": _efficientnet_b0,
    "convnext_tiny": _convnext_tiny,
}


def build_backbone(arch: str, *, initialize: bool = True) -> Backbone:
    """Build a backbone by name.

    Args:
        arch: A name of `BACKBONES`.
        initialize: Draw starting weights from torch's global generator. False leaves every tensor unset, which is
            much faster and for callers that load all of them next.

    Raises:
        UsageError: There is no such architecture.
    """
    if arch not in BACKBONES:
        hint = did_you_mean(arch, BACKBONES) or f"Known architectures: {', '.join(BACKBONES)}."
        raise UsageError(f'there is no architecture "{arch}".', hint)
    if initialize:
        return BACKBONES[arch]()
    with torch.device("meta"):
        backbone = BACKBONES[arch]()
    return backbone.to_empty(device="cpu")


@cache
def backbone_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a backbone's state dict, without building its tensors."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in BACKBONES[arch]().state_dict().items()}
