from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from ccreid_cli.core.errors import UsageError
from ccreid_cli.models.backbones import InstanceBatchNorm, backbone_shapes, build_backbone
from ccreid_cli.models.registry import BACKBONES

SHIPPED = [arch for arch, row in BACKBONES.items() if arch != "tiny" and row.member is None]
RESNETS = [arch for arch in SHIPPED if arch.startswith("resnet")]
TORCHVISION = [arch for arch in SHIPPED if "ibn" not in arch and not arch.startswith("osnet")]


@pytest.mark.parametrize("arch", SHIPPED)
def test_maps_have_the_promised_channels_and_stride(arch: str) -> None:
    with torch.device("meta"), torch.no_grad():
        backbone = BACKBONES[arch].load()()
        maps = backbone.eval()(torch.empty(2, 3, 256, 128))
    stride = 16 if arch.startswith(("resnet", "osnet")) else 32
    assert maps.shape == (2, backbone.num_channels, 256 // stride, 128 // stride)


@pytest.mark.parametrize("arch", TORCHVISION)
def test_keys_and_shapes_are_torchvisions_without_the_classifier(arch: str) -> None:
    with torch.device("meta"):
        released = getattr(torchvision_models, arch)().state_dict()
    expected = {k: tuple(v.shape) for k, v in released.items() if not k.startswith(("fc.", "classifier."))}
    assert backbone_shapes(arch) == expected


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_the_layers_before_the_last_stride_are_torchvisions(arch: str) -> None:
    torch.manual_seed(0)
    net = getattr(torchvision_models, arch)().eval()
    backbone = build_backbone(arch).eval()
    backbone.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        if arch == "resnet18":
            backbone.layer4 = nn.Identity()
            expected = net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))))
        else:
            expected = net.features(x)
        torch.testing.assert_close(backbone(x), expected)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_last_stride_is_one_and_the_shortcut_agrees(arch: str) -> None:
    with torch.device("meta"):
        first = BACKBONES[arch].load()().layer4[0]
    strided = {name for name, layer in first.named_modules() if isinstance(layer, nn.Conv2d) and layer.stride != (1, 1)}
    assert strided == set()


def test_ibn_sits_where_the_release_has_it() -> None:
    with torch.device("meta"):
        backbone = BACKBONES["resnet_ibn50a"].load()()
    places = {name for name, layer in backbone.named_modules() if isinstance(layer, InstanceBatchNorm)}
    assert places == {f"layer{s + 1}.{u}.bn1" for s, units in enumerate((3, 4, 6)) for u in range(units)}
    shapes = backbone_shapes("resnet_ibn50a")
    assert shapes["layer3.5.bn1.IN.weight"] == (128,) and shapes["layer3.5.bn1.BN.running_var"] == (128,)
    assert "layer1.0.bn1.IN.running_mean" not in shapes


@pytest.mark.parametrize("channels_last", [False, True])
def test_instance_batch_norm_normalises_its_halves(channels_last: bool) -> None:
    torch.manual_seed(0)
    layer = InstanceBatchNorm(6)
    x = torch.randn(4, 6, 5, 3) * torch.arange(1, 5).reshape(4, 1, 1, 1)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    out = layer(x)
    assert out.stride() == x.stride()
    instance, batch = x[:, :3], x[:, 3:]
    mean, var = instance.mean((2, 3), keepdim=True), instance.var((2, 3), keepdim=True, unbiased=False)
    torch.testing.assert_close(out[:, :3], (instance - mean) / (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)
    mean, var = batch.mean((0, 2, 3), keepdim=True), batch.var((0, 2, 3), keepdim=True, unbiased=False)
    torch.testing.assert_close(out[:, 3:], (batch - mean) / (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)


def test_uninitialized_backbone_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    backbone = build_backbone("resnet18", initialize=False)
    assert torch.equal(before, torch.get_rng_state())
    assert all(value.device.type == "cpu" for value in backbone.state_dict().values())


def test_seed_decides_the_starting_weights() -> None:
    torch.manual_seed(3)
    first = build_backbone("resnet18").conv1.weight
    torch.manual_seed(3)
    assert torch.equal(first, build_backbone("resnet18").conv1.weight)


def test_unknown_architecture_suggests_a_known_one() -> None:
    with pytest.raises(UsageError) as caught:
        build_backbone("resnet_50")
    assert (caught.value.hint or "").startswith('did you mean "resnet50"?')
