"""OSNet against torchreid's own numbers: released files, key names, features of made weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ccreid_cli.models.backbones import build_backbone
from ccreid_cli.models.fused import fuse, is_fusible
from ccreid_cli.models.programs import PROGRAMS
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.models.spec import ModelSpec
from ccreid_cli.models.weight_files import adopted_spec, load_reid_weights, read_weights, resolve_spec

MEMBERS = ["osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25", "osnet_ibn_x1_0"]


def loaded(path: Path) -> ReidNet:
    file = read_weights(path)
    model = ReidNet(resolve_spec(file), initialize_backbone=False)
    load_reid_weights(model, file.state_dict, source=str(path))
    return model.eval()


def images() -> Tensor:
    return torch.randn(3, 3, 256, 128, generator=torch.Generator().manual_seed(123))


def released_names(arch: str) -> dict[str, list[int]]:
    """Return the names and shapes of a network with torchreid's head, as ccreid would read them."""
    backbone = build_backbone(arch, initialize=False)
    names = {key: list(value.shape) for key, value in backbone.state_dict().items()}
    head = nn.Sequential(nn.Linear(backbone.num_channels, 512), nn.BatchNorm1d(512))
    return names | {f"fc.{key}": list(value.shape) for key, value in head.state_dict().items()}


@pytest.mark.shared
@pytest.mark.parametrize("weights", ["market1501", "msmt17"])
def test_released_files_give_torchreids_features(shared: Path, weights: str) -> None:
    expected = np.load(shared / "golden" / "osnet.npz")
    model = loaded(shared / "weights" / f"osnet_x0_25_{weights}.pth")
    assert (model.spec.arch, model.spec.pooling_type, model.spec.num_features, model.spec.relu) == (
        "osnet_x0_25",
        "avg",
        512,
        True,
    )
    with torch.no_grad():
        pooled = model.backbone(images()).mean(dim=(2, 3)).numpy()
        features = model(images()).numpy()
    np.testing.assert_allclose(pooled, expected[f"{weights}__pooled"], rtol=1e-4, atol=1e-6)
    reference = expected[f"{weights}__features"]
    np.testing.assert_allclose(features, reference / np.linalg.norm(reference, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("arch", MEMBERS)
def test_key_names_and_shapes_are_the_releases(golden: Path, arch: str) -> None:
    keys = {str(key) for key in np.load(golden / "osnet.npz")[f"{arch}__keys"]}
    ours = {f"{key} {tuple(shape)}" for key, shape in released_names(arch).items()}
    assert ours == {key for key in keys if not key.startswith("classifier.")}


@pytest.mark.parametrize("arch", ["osnet_x0_25", "osnet_ibn_x1_0", "osnet_ain_x1_0"])
def test_a_file_with_torchreids_names_decides_network_and_head(arch: str, tmp_path: Path) -> None:
    state = {key: torch.rand(shape) * 0.1 + ("running_var" in key) for key, shape in released_names(arch).items()}
    state["classifier.weight"], state["classifier.bias"] = torch.zeros(10, 512), torch.zeros(10)
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "file.pth")
    file = read_weights(tmp_path / "file.pth")
    model = loaded(tmp_path / "file.pth")
    assert model.spec.arch == arch and model.spec.relu and model.embedding_dim == 512
    assert any("classifier.weight [10, 512]" in note for note in file.notes)
    assert not any("pools" in note for note in file.notes)
    with torch.no_grad():
        assert bool((model(images()[:1, :, :64, :32]) >= 0).all())
    assert adopted_spec(file, ModelSpec(arch), ()) == replace(model.spec, relu=False)  # to train from it
    assert adopted_spec(file, ModelSpec(arch, relu=True), ("relu",)) == model.spec


@pytest.mark.skipif(not is_fusible(), reason="PyTorch has no oneDNN here")
@pytest.mark.parametrize("arch", ["osnet_x0_25", "osnet_ibn_x1_0", "osnet_ain_x1_0"])
def test_the_fused_network_gives_the_same_features(arch: str) -> None:
    torch.manual_seed(0)
    model = ReidNet(ModelSpec(arch, "avg")).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        inputs = images()[:, :, :64, :32].to(memory_format=torch.channels_last)
        torch.testing.assert_close(fuse(model)(inputs), model(inputs), rtol=1e-4, atol=1e-5)


def test_every_part_of_the_networks_has_a_name_in_the_table() -> None:
    names = PROGRAMS["torchreid"].names
    for arch in ("osnet_x1_0", "osnet_ain_x1_0"):
        for key in build_backbone(arch, initialize=False).state_dict():
            assert any(key.startswith(start) for start in names), key
