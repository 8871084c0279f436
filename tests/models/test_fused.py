from __future__ import annotations

import pytest
import torch

from ccreid_cli.models.fused import fuse, is_fusible
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

pytestmark = pytest.mark.skipif(not is_fusible(), reason="this PyTorch has no oneDNN operations")


def _trained(arch: str, **options: int) -> tuple[ReidNet, torch.Tensor]:
    """Return a network whose batch norms are far from the identity, in evaluation, and images for it."""
    torch.manual_seed(0)
    model = ReidNet(ModelSpec(arch, **options)).eval()  # type: ignore[arg-type]
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif name.endswith("running_mean") or (value.ndim == 1 and name.endswith("bias")):
            value.normal_(0, 0.1)
    return model, torch.randn(5, 3, 64, 32).to(memory_format=torch.channels_last)


ARCHS = ["resnet18", "resnet50", "resnet_ibn50a", "mobilenet_v2", "efficientnet_b0", "convnext_tiny"]


@pytest.mark.parametrize("arch", ARCHS)
def test_fused_network_gives_the_same_features(arch: str) -> None:
    model, images = _trained(arch, num_features=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        torch.testing.assert_close(fuse(model)(images), model(images), atol=2e-5, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.skipif(not is_fusible(torch.bfloat16), reason="this processor has no bfloat16 convolutions")
@pytest.mark.parametrize("arch", ARCHS)
def test_folding_in_bfloat16_costs_no_more_than_bfloat16_itself(arch: str) -> None:
    model, images = _trained(arch, num_features=32)
    with torch.inference_mode():
        expected = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            plain, rough = model(images), fuse(model, torch.bfloat16)(images)
    assert rough.dtype == torch.float32
    error, allowed = (1 - (rough * expected).sum(1)).max(), (1 - (plain * expected).sum(1)).max()
    assert error < 3 * allowed + 1e-4


@pytest.mark.parametrize("arch", ["resnet50", "mobilenet_v2"])
def test_no_batch_norm_is_left_in_the_backbone(arch: str) -> None:
    model, _ = _trained(arch)
    assert not [part for part in fuse(model).backbone.modules() if isinstance(part, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("arch", ["resnet18", "osnet_x0_25"])
def test_inputs_are_not_overwritten(arch: str) -> None:
    model, images = _trained(arch)
    before = images.clone()
    with torch.inference_mode():
        fuse(model)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("arch", ["mobilenet_v2", "osnet_x0_25"])
def test_weights_ordered_for_one_size_serve_others(arch: str) -> None:
    model, images = _trained(arch)
    with torch.inference_mode():
        fused = fuse(model)
        fused(images)
        for others in (images[:1], images.repeat(3, 1, 2, 1)):
            torch.testing.assert_close(fused(others), model(others), atol=2e-5, rtol=0)
