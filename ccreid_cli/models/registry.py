"""The backbones and poolings by name. To add one, add a row. Imports no torch until a row is loaded.

A backbone keeps the key names of the release it comes from, so that released weights load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ccreid_cli.core.components import Component, find_row
from ccreid_cli.core.paths import torch_hub_checkpoints

if TYPE_CHECKING:
    from torch import nn

    from ccreid_cli.models.backbones import Backbone

    BackboneBuilder = Callable[..., Backbone]
    PoolingBuilder = Callable[[], nn.Module]


@dataclass(frozen=True)
class BackboneRow(Component["BackboneBuilder"]):
    """A backbone and its released ImageNet weights.

    Attributes:
        url: Where the weights are published; empty where nobody has released any.
        num_bytes: Size of that file, to about one percent, in bytes.
        licence: Who made it, and under which terms.
        sized: Whether its builder takes input height, input width and the largest rate of stochastic depth.
    """

    url: str = ""
    num_bytes: int = 0
    licence: str = ""
    sized: bool = False

    @property
    def file_name(self) -> str:
        """The published file name."""
        return self.url.rpartition("/")[2]

    @property
    def sha256_prefix(self) -> str:
        """The start of the file's SHA-256, which the publishers put into the name: ``resnet50-0676ba61.pth``."""
        return Path(self.file_name).stem.rpartition("-")[2]

    @property
    def path(self) -> Path:
        """Where the file is kept: torch.hub's own folder, so that nothing is downloaded twice."""
        return torch_hub_checkpoints() / self.file_name


_TORCHVISION = "https://download.pytorch.org/models/"
_IBN_NET = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/"
_BSD = "torchvision, BSD-3-Clause; trained on ImageNet, whose terms apply"
_APACHE = "Ross Wightman's timm, Apache-2.0, through torchvision; trained on ImageNet, whose terms apply"
_MIT = "IBN-Net, MIT; trained on ImageNet, whose terms apply"


def _resnet(layers: tuple[int, int, int, int], *, bottleneck: bool = True, ibn: bool = False) -> BackboneBuilder:
    from ccreid_cli.models.backbones import resnet

    return partial(resnet, layers, bottleneck=bottleneck, ibn=ibn)


def _features(name: str, num_channels: int) -> BackboneBuilder:
    from ccreid_cli.models.backbones import torchvision_features

    return partial(torchvision_features, name, num_channels)


def _osnet(width: str, *, instance: bool = False, searched: bool = False) -> BackboneBuilder:
    from ccreid_cli.models.osnet import OSNet, SearchedOSNet

    return partial(SearchedOSNet, width) if searched else partial(OSNet, width, instance=instance)


def _timm(name: str) -> BackboneRow:
    from ccreid_cli.models.timm_catalog import usual_pooling as usual_pooling_in_timm
    from ccreid_cli.models.timm_networks import TimmBackbone

    pooling = usual_pooling_in_timm(name)
    defaults = {"pooling_type": pooling} if pooling else {}
    return BackboneRow(f"timm's {name}", lambda: partial(TimmBackbone, name), defaults, _TIMM, sized=True)


def _only_by_name() -> BackboneBuilder:
    raise AssertionError("a network of timm is looked up by its name")


def _gem() -> PoolingBuilder:
    from ccreid_cli.models.pooling import GeM

    return GeM


def _average() -> PoolingBuilder:
    from ccreid_cli.models.pooling import AveragePooling

    return AveragePooling


def _maximum() -> PoolingBuilder:
    from ccreid_cli.models.pooling import MaxPooling

    return MaxPooling


def _class_token() -> PoolingBuilder:
    from ccreid_cli.models.pooling import ClassToken

    return ClassToken


def _class_and_average() -> PoolingBuilder:
    from ccreid_cli.models.pooling import ClassAndAverage

    return ClassAndAverage


def _row(help: str, load: Callable[[], BackboneBuilder], url: str, mib: float, licence: str) -> BackboneRow:
    return BackboneRow(help, load, url=url, num_bytes=round(mib * 2**20), licence=licence)


_TIMM = ("timm", "timm")
_18, _34, _50 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3)
_101, _152 = (3, 4, 23, 3), (3, 8, 36, 3)

BACKBONES: dict[str, BackboneRow] = {
    "resnet18": _row(
        "ResNet-18", lambda: _resnet(_18, bottleneck=False), _TORCHVISION + "resnet18-f37072fd.pth", 44.7, _BSD
    ),
    "resnet34": _row(
        "ResNet-34", lambda: _resnet(_34, bottleneck=False), _TORCHVISION + "resnet34-b627a593.pth", 83.3, _BSD
    ),
    "resnet50": _row("ResNet-50", lambda: _resnet(_50), _TORCHVISION + "resnet50-0676ba61.pth", 97.8, _BSD),
    "resnet101": _row("ResNet-101", lambda: _resnet(_101), _TORCHVISION + "resnet101-63fe2227.pth", 170.5, _BSD),
    "resnet152": _row("ResNet-152", lambda: _resnet(_152), _TORCHVISION + "resnet152-394f9c45.pth", 230.4, _BSD),
    "resnet_ibn50a": _row(
        "IBN-ResNet-50a", lambda: _resnet(_50, ibn=True), _IBN_NET + "resnet50_ibn_a-d9d0bb7b.pth", 97.8, _MIT
    ),
    "resnet_ibn101a": _row(
        "IBN-ResNet-101a", lambda: _resnet(_101, ibn=True), _IBN_NET + "resnet101_ibn_a-59ea0ac6.pth", 170.5, _MIT
    ),
    "mobilenet_v2": _row(
        "MobileNetV2", lambda: _features("mobilenet_v2", 1280), _TORCHVISION + "mobilenet_v2-b0353104.pth", 13.6, _BSD
    ),
    "efficientnet_b0": _row(
        "EfficientNet-B0",
        lambda: _features("efficientnet_b0", 1280),
        _TORCHVISION + "efficientnet_b0_rwightman-7f5810bc.pth",
        20.5,
        _APACHE,
    ),
    "convnext_tiny": _row(
        "ConvNeXt-T", lambda: _features("convnext_tiny", 768), _TORCHVISION + "convnext_tiny-983f1562.pth", 109.1, _BSD
    ),
    "osnet_x1_0": BackboneRow("OSNet x1.0", lambda: _osnet("x1_0")),
    "osnet_x0_75": BackboneRow("OSNet x0.75", lambda: _osnet("x0_75")),
    "osnet_x0_5": BackboneRow("OSNet x0.5", lambda: _osnet("x0_5")),
    "osnet_x0_25": BackboneRow("OSNet x0.25, what trackers use", lambda: _osnet("x0_25")),
    "osnet_ibn_x1_0": BackboneRow("OSNet-IBN x1.0", lambda: _osnet("x1_0", instance=True)),
    "osnet_ain_x1_0": BackboneRow("OSNet-AIN x1.0", lambda: _osnet("x1_0", searched=True)),
    "timm:": BackboneRow("any network of timm by its name there", _only_by_name, needs=_TIMM, member=_timm),
}
"""Every backbone by name; loading a row gives a function that builds it."""


def usual_pooling(arch: str, otherwise: str = "gem") -> str:
    """Return the pooling that a backbone brings along, or another where it brings none.

    Raises:
        UsageError: There is no such backbone.
    """
    return str(find_row(BACKBONES, "architecture", arch).defaults.get("pooling_type", otherwise))


POOLINGS: dict[str, Component[PoolingBuilder]] = {
    "gem": Component("generalised mean with a learnt exponent", _gem),
    "avg": Component("average", _average),
    "max": Component("maximum", _maximum),
    "class": Component("class token of a transformer", _class_token),
    "class+avg": Component("class token and average, side by side", _class_and_average),
}
"""Every pooling by name; loading a row gives its class."""
