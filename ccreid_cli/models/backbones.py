"""Backbones: from images to feature maps. `models.registry` names them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ccreid_cli.core.components import find_row
from ccreid_cli.core.errors import UsageError
from ccreid_cli.machine.without_tensors import without_tensors
from ccreid_cli.models.batch_norm import dense_format
from ccreid_cli.models.registry import BACKBONES


class Tokens(NamedTuple):
    """What a transformer with a class token makes of images.

    Attributes:
        class_token: (B, C).
        maps: (B, C, N, 1), the tokens of the patches as feature maps.
    """

    class_token: Tensor
    maps: Tensor


class Backbone(nn.Module, ABC):
    """A network cut before its head.

    Args:
        num_channels: Channels of the feature maps that `forward` returns.

    Attributes:
        has_class_token: Whether `forward` returns `Tokens`.
        fusible: Whether `models.fused` may take its layers apart.
    """

    fusible = True

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.has_class_token = False

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor | Tokens:
        """Turn (B, 3, H, W) normalised images into (B, num_channels, H / stride, W / stride) maps, or into tokens."""

    def fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file in the shapes that they have here, where that can be done."""
        return dict(state)

    def resized(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this network's own tensors of another input size in the shapes that they have here."""
        return dict(state)

    def size_of(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return the input height and width that the tensors of a file were made for; zeros where they do not tell."""
        return 0, 0

    def patch_embedding(self) -> nn.Module | None:
        """Return the layer that makes patches into tokens; None where there is none."""
        return None

    def checkpoint_gradients(self) -> bool:
        """Compute activations a second time in the backward pass instead of keeping them; False where it cannot."""
        return False


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


def resnet(layers: Sequence[int], *, bottleneck: bool = True, ibn: bool = False) -> ResNetBackbone:
    """Build a ResNet whose last stage keeps the resolution.

    Args:
        layers: Blocks of the four stages.
        bottleneck: Whether its blocks have three convolutions; two otherwise.
        ibn: Whether the first three stages normalise half of their channels per image (IBN-a).
    """
    block = Bottleneck if bottleneck else BasicBlock
    net = ResNet(block, list(layers), num_classes=1)
    _keep_last_resolution(net)
    if ibn:
        for stage in (net.layer1, net.layer2, net.layer3):
            for unit in stage:
                unit.bn1 = InstanceBatchNorm(unit.bn1.num_features)
    return ResNetBackbone(net, 512 * block.expansion)


def torchvision_features(name: str, num_channels: int) -> FeaturesBackbone:
    """Build the ``features`` of torchvision's network `name`, which end in `num_channels` channels."""
    return FeaturesBackbone(get_model(name, num_classes=1).features, num_channels)


def build_backbone(
    arch: str, *, initialize: bool = True, height: int = 0, width: int = 0, drop_path: float = 0.0
) -> Backbone:
    """Build a backbone by name.

    Args:
        arch: A name of `BACKBONES`.
        initialize: Draw starting weights from torch's global generator. False leaves every tensor unset, which is
            much faster and for callers that load all of them next.
        height: Input height that position embeddings are made for; 0 for the network's own.
        width: Input width, likewise.
        drop_path: Largest rate of stochastic depth.

    Raises:
        UsageError: There is no such architecture, or it has no stochastic depth to set.
    """
    row = find_row(BACKBONES, "architecture", arch)
    if row.sized:  # timm's networks compute buffers that no file holds: they are never left unset
        return row.load()(height, width, drop_path)
    if drop_path:
        raise UsageError(f"--drop-path: {arch} has no stochastic depth to set.", "It is for timm's networks.")
    if initialize:
        return row.load()()
    with without_tensors():
        backbone = row.load()()
    return backbone.to_empty(device="cpu")


@cache
def empty_backbone(arch: str, height: int = 0, width: int = 0) -> Backbone:
    """Return a backbone whose tensors have shapes and no values."""
    row = find_row(BACKBONES, "architecture", arch)
    with without_tensors():
        return row.load()(height, width) if row.sized else row.load()()


@cache
def backbone_shapes(arch: str, height: int = 0, width: int = 0) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a backbone's state dict, without building its tensors."""
    return {key: tuple(value.shape) for key, value in empty_backbone(arch, height, width).state_dict().items()}
