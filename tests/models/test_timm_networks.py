"""Networks of timm: the same features as timm's own, at any input size, and what cannot be is said in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ccreid_cli.core.components import find_row
from ccreid_cli.core.errors import NetworkError, UsageError
from ccreid_cli.engine.step import draws_random_numbers
from ccreid_cli.models.backbones import empty_backbone
from ccreid_cli.models.batch_norm import ChunkedBatchNorm2d
from ccreid_cli.models.placing import prepare_training
from ccreid_cli.models.registry import BACKBONES, usual_pooling
from ccreid_cli.models.reid_net import ModelSpec, ReidNet, build_model
from ccreid_cli.models.timm_networks import TimmBackbone, grid_of
from ccreid_cli.models.weight_files import load_reid_weights

timm = pytest.importorskip("timm")
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VIT, RESNET = "timm:test_vit", "timm:test_resnet"
TALL = {"height": 64, "width": 32}


def _net(arch: str = VIT, pooling: str = "class", **changes: Any) -> ReidNet:
    torch.manual_seed(0)
    return ReidNet(ModelSpec(arch, pooling, **{**TALL, **changes}), samples_per_bn=4)


def _images(height: int = 64, width: int = 32, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def _of_timm(net: ReidNet, **options: Any) -> Callable[[Tensor], Tensor]:
    """Return timm's own network with the same tensors, for images normalised as ccreid does it."""
    assert isinstance(net.backbone, TimmBackbone)
    model = timm.create_model(net.backbone.name, num_classes=0, **options).eval()
    assert all(key.startswith("fc_norm") for key in model.load_state_dict(net.backbone.state_dict()).missing_keys)
    scale = [torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD, *_values(model))]
    return lambda images: model.forward_features((images * scale[1] + scale[0] - scale[2]) / scale[3])


def _values(model: Any) -> tuple[Any, Any]:
    return model.pretrained_cfg["mean"], model.pretrained_cfg["std"]


@pytest.mark.parametrize("arch", [RESNET, "timm:test_efficientnet"])
@torch.no_grad()
def test_maps_are_timms_own(arch: str) -> None:
    net = _net(arch, "avg").eval()
    torch.testing.assert_close(net.backbone(_images()), _of_timm(net)(_images()))
    assert usual_pooling(arch) == "gem"


@torch.no_grad()
def test_tokens_are_timms_own_and_pooled_as_asked() -> None:
    net = _net().eval()
    tokens = _of_timm(net, img_size=(64, 32))(_images())
    assert tokens.shape[1] == 1 + 8
    expected = {
        "class": tokens[:, 0],
        "avg": tokens[:, 1:].mean(dim=1),
        "max": tokens[:, 1:].amax(dim=1),
        "class+avg": torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1),
    }
    for pooling, features in expected.items():
        found = _net(pooling=pooling).eval()(_images())
        torch.testing.assert_close(found, F.normalize(features))
    assert usual_pooling(VIT) == "class"


@torch.no_grad()
def test_one_file_serves_other_input_sizes() -> None:
    net = _net().eval()
    assert net(_images(48, 48)).shape == (2, 64)
    wide = _net(height=48, width=48).eval()
    load_reid_weights(wide, net.state_dict(), "tall")
    assert wide.backbone.state_dict()["pos_embed"].shape == (1, 1 + 9, 64)
    torch.testing.assert_close(wide(_images(48, 48)), net(_images(48, 48)))


def test_tensors_keep_timms_names() -> None:
    state = _net().state_dict()
    assert {"backbone.cls_token", "backbone.blocks.0.attn.qkv.weight", "neck.weight"} <= set(state)
    assert not [key for key in state if ".net." in key or "head" in key or "scale" in key]
    again = _net()
    again.load_state_dict(state)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items())


def test_batch_norms_are_chunked_and_keep_their_activation() -> None:
    net = _net("timm:test_efficientnet", "avg").train()
    norms = [module for module in net.backbone.modules() if isinstance(module, _BatchNorm)]
    assert norms and all(isinstance(norm, ChunkedBatchNorm2d) and norm.samples_per_bn == 4 for norm in norms)
    images = _images(count=8)
    whole = net.backbone(images)
    torch.testing.assert_close(whole, torch.cat([net.backbone(images[:4]), net.backbone(images[4:])]))


def test_stochastic_depth_is_known_to_the_step() -> None:
    assert draws_random_numbers(_net(drop_path=0.2)) and not draws_random_numbers(_net())
    assert draws_random_numbers(nn.Sequential(nn.AlphaDropout(0.1)))
    with pytest.raises(UsageError, match="--drop-path: resnet18"):
        ReidNet(ModelSpec("resnet18", drop_path=0.1))


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        net = _net(drop_path=0.5)
        prepare_training(net, freeze_patch_embed=True, grad_checkpointing=recompute)
        torch.manual_seed(3)
        net(_images()).sum().backward()
        gradients.append({name: value.grad for name, value in net.named_parameters()})
    assert all(gradients[0][name] is None for name in gradients[0] if "patch_embed" in name)
    assert sum(value is None for value in gradients[0].values()) == 3  # weight and bias there, and the neck's bias
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


@pytest.mark.parametrize(("what", "arch"), [("freeze_patch_embed", RESNET), ("grad_checkpointing", RESNET)])
def test_what_is_for_transformers_is_refused_elsewhere(what: str, arch: str) -> None:
    chosen = {"freeze_patch_embed": False, "grad_checkpointing": False, what: True}
    with pytest.raises(UsageError, match=f"--{what.replace('_', '-')}: {arch}"):
        prepare_training(_net(arch, "avg"), **chosen)


def test_a_stem_with_batch_norms_is_computed_once_and_cannot_be_frozen() -> None:
    arch = "timm:test_vit+ics"
    prepare_training(_net(arch), freeze_patch_embed=False, grad_checkpointing=True)
    with pytest.raises(UsageError, match=r"--freeze-patch-embed: the layer of timm:test_vit\+ics .* has batch norms"):
        prepare_training(_net(arch), freeze_patch_embed=True, grad_checkpointing=False)


@torch.no_grad()
def test_the_pooled_feature_stays_beside_the_embedding() -> None:
    net = _net(num_features=10, with_pooled=True).eval()
    nn.init.uniform_(net.neck.running_mean)
    token = net.backbone(_images()).class_token
    both = torch.cat([token, net.embedding(token)], dim=1)
    assert net.embedding_dim == 64 + 10
    torch.testing.assert_close(net(_images()), F.normalize((both - net.neck.running_mean) / (1 + 1e-5) ** 0.5))
    with pytest.raises(UsageError, match="--with-pooled"):
        _net(with_pooled=True)


def test_timms_weights_come_through_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked = timm.create_model, []

    def with_ones(name: str, pretrained: bool = False, **options: Any) -> Any:
        model = original(name, **options)
        if pretrained:
            asked.append(name)
            model.load_state_dict({key: torch.full_like(value, 0.5) for key, value in model.state_dict().items()})
        return model

    monkeypatch.setattr(timm, "create_model", with_ones)
    # The classifier stands for CLIP's projection here: it starts the embedding where the sizes agree.
    net = build_model(ModelSpec(VIT, "class", 1000, with_pooled=True, **TALL), weights="imagenet")
    assert asked == ["test_vit"] and net.backbone.state_dict()["norm.weight"].mean() == 0.5
    assert net.embedding is not None and net.embedding.weight.mean().item() == 0.5 and not net.embedding.bias.any()


def test_without_a_network_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    original = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("cannot reach huggingface.co")
        return original(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(NetworkError, match="no weights for timm:test_vit: cannot reach") as caught:
        build_model(ModelSpec(VIT, "class", **TALL), weights="imagenet")
    assert "--weights none" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("arch", "words", "hint"),
    [
        ("timm:test_vti", 'timm has no network "test_vti"', 'did you mean "test_vit"'),
        ("timm:test_vit.foo", "Invalid pretrained tag", "timm:test_vit"),
        ("timm:", "needs a name", "any network of timm"),
        ("timn:test_vit", "there is no architecture", "Known"),
    ],
)
def test_wrong_names_are_explained(arch: str, words: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_row(BACKBONES, "architecture", arch)
    assert words in caught.value.message and hint in str(caught.value.hint)


def test_a_missing_timm_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="needs the package timm") as caught:
        find_row(BACKBONES, "architecture", "timm:test_vit3")
    assert "ccreid[timm]" in str(caught.value.hint)
    assert find_row(BACKBONES, "architecture", "resnet18") is BACKBONES["resnet18"]


def test_what_a_network_cannot_do_is_said() -> None:
    with pytest.raises(UsageError, match="timm:test_resnet has no class token"):
        _net(RESNET)
    with pytest.raises(UsageError, match="takes images of 224x224 only, not 64x32"):
        empty_backbone("timm:mixer_s32_224")(torch.zeros(1, 3, 64, 32, device="meta"))


def test_grids_of_patches() -> None:
    assert [grid_of(count) for count in (196, 128, 192, 49)] == [(14, 14), (16, 8), (24, 8), (7, 7)]
