from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ccreid_cli.core.errors import UsageError
from ccreid_cli.method.memory import ClusterMemory
from ccreid_cli.models.batch_norm import ChunkedBatchNorm1d, ChunkedBatchNorm2d
from ccreid_cli.models.reid_net import ModelSpec, ReidNet, build_model

Fill = Callable[[torch.nn.Module], dict[str, Tensor]]


# The reference has three images; one is enough, as evaluation treats each alone. The test below has two more networks.
@pytest.mark.parametrize("name", ["resnet50__avg", "resnet152__gem", "resnet_ibn101a__gem"])
@pytest.mark.shared
def test_features_are_the_references(name: str, golden: Path, filled: Fill) -> None:
    with np.load(golden / "model_features.npz") as stored:
        expected = stored[name]
    arch, pooling = name.split("__")
    model = ReidNet(ModelSpec(arch, pooling), initialize_backbone=False).eval()
    filled(model)
    images = torch.randn(3, 3, 256, 128, generator=torch.Generator().manual_seed(123))
    with torch.no_grad():
        features = model(images[:1]).numpy()
    np.testing.assert_allclose(features, expected[:1], atol=1e-4)


@pytest.mark.parametrize("arch", ["resnet50", "resnet_ibn50a"])
@pytest.mark.shared
@pytest.mark.slow
def test_official_checkpoint_file_gives_the_references_features(
    arch: str, golden: Path, filled: Fill, tmp_path: Path
) -> None:
    with np.load(golden / "model_features.npz") as stored:
        expected = stored[f"{arch}__gem"]
    state = filled(ReidNet(ModelSpec(arch), initialize_backbone=False))
    content = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 50}
    path = tmp_path / "model_best.pth.tar"
    torch.save({**content, "best_mAP": np.float64(0.826)}, path)
    model = build_model(ModelSpec(arch), weights=str(path)).eval()
    path.unlink()
    images = torch.randn(3, 3, 256, 128, generator=torch.Generator().manual_seed(123))
    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), expected, atol=1e-4)


SAME_KERNELS = torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Add in the reference's order: Adam on random weights blows a last-bit difference up to 10 % in six steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if SAME_KERNELS else before)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("file", "arch", "use_hard"),
    [("train_steps.npz", "resnet50", False), ("train_steps_hard.npz", "resnet_ibn50a", True)],
)
@pytest.mark.shared
@pytest.mark.slow
def test_training_steps_are_the_references(
    file: str, arch: str, use_hard: bool, golden: Path, filled: Fill, two_threads: None
) -> None:
    with np.load(golden / file) as stored:
        expected = dict(stored)
    model = ReidNet(ModelSpec(arch), initialize_backbone=False)
    filled(model)
    images = torch.randn(6, 16, 3, 64, 32, generator=torch.Generator().manual_seed(int(expected["seed"])))
    memory = ClusterMemory(torch.from_numpy(expected["memory_before"]).clone(), 0.05, 0.1, use_hard)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3.5e-4, weight_decay=5e-4)
    losses = []
    steps = len(images) if SAME_KERNELS else 1
    for batch, targets in zip(images[:steps], torch.from_numpy(expected["targets"][:steps]), strict=True):
        raw = model(batch)
        loss = memory.loss(raw, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        memory.update(raw.detach(), targets)
        losses.append(loss.item())
    np.testing.assert_allclose(losses[0], expected["losses"][0], rtol=1e-4)
    if not SAME_KERNELS:
        pytest.skip("Adam's first steps turn rounding into signs: the reference's later numbers are of AVX-512 kernels")
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-3)
    np.testing.assert_allclose(memory.centroids.numpy(), expected["memory_after"], atol=1e-3)
    np.testing.assert_allclose(model.pooling.p.detach().numpy(), expected["gem_p_after"], atol=1e-3)
    np.testing.assert_allclose(model.neck.weight.detach().numpy(), expected["neck_weight_after"], atol=1e-3)
    np.testing.assert_allclose(model.neck.running_mean.numpy(), expected["neck_running_mean_after"], atol=1e-3)
    with torch.no_grad():
        features = model.eval()(images[0]).numpy()
    np.testing.assert_allclose(features, expected["features_after"], atol=1e-3)


def _images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def test_neck_starts_as_the_identity_with_a_frozen_bias() -> None:
    model = build_model(ModelSpec("resnet18"), weights="none")
    assert isinstance(model.neck, ChunkedBatchNorm1d)
    assert torch.equal(model.neck.weight, torch.ones(512))
    assert torch.equal(model.neck.bias, torch.zeros(512)) and not model.neck.bias.requires_grad
    assert model.embedding_dim == 512 and model.embedding is None
    model.eval()
    with torch.no_grad():
        plain = F.normalize(model.pooling(model.backbone(_images())))
        torch.testing.assert_close(model(_images()), plain)


@pytest.mark.parametrize(("arch", "training"), [("resnet18", True), ("mobilenet_v2", False)])
def test_features_are_float32_unit_rows_under_autocast(arch: str, training: bool) -> None:
    torch.manual_seed(0)
    model = build_model(ModelSpec(arch, num_features=24), weights="none", samples_per_bn=4)
    model.to(memory_format=torch.channels_last).train(training)
    images = _images(8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(images)
    assert features.dtype == torch.float32 and features.shape == (8, 24)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(8))
    if training:
        features[:, 0].sum().backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_embedding_is_initialised_as_the_references() -> None:
    torch.manual_seed(0)
    embedding = build_model(ModelSpec("resnet18", num_features=256), weights="none").embedding
    assert embedding is not None and torch.equal(embedding.bias, torch.zeros(256))
    assert embedding.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)


def test_dropout_acts_on_unit_features_in_training_only() -> None:
    torch.manual_seed(0)
    model = build_model(ModelSpec("resnet18", dropout=0.5), weights="none")
    features = model(_images(16))
    dropped = (features == 0).float().mean().item()
    assert 0.4 < dropped < 0.6
    # What is kept is doubled, so the squared length of a unit row is 2 on average.
    assert features.square().sum(dim=1).mean().item() == pytest.approx(2.0, rel=0.2)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(_images()).norm(dim=1), torch.ones(4))


def test_every_batch_norm_is_chunked_and_the_chunks_decide() -> None:
    torch.manual_seed(0)
    small = build_model(ModelSpec("resnet18"), weights="none", samples_per_bn=4)
    whole = copy.deepcopy(small)
    for layer in whole.modules():
        if isinstance(layer, ChunkedBatchNorm1d | ChunkedBatchNorm2d):
            layer.samples_per_bn = 8
    norms = [m for m in small.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 21 and all(norm.samples_per_bn == 4 for norm in norms)
    images = _images(8)
    features = small(images)
    assert not torch.allclose(features, whole(images), atol=1e-3)
    again = build_model(ModelSpec("resnet18"), weights="none", samples_per_bn=4)
    again.load_state_dict(whole.state_dict())
    torch.testing.assert_close(torch.cat([again(images[:4]), again(images[4:])]), features, rtol=1e-3, atol=1e-4)


def test_seed_decides_a_network_without_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(build_model(ModelSpec("mobilenet_v2", num_features=8), weights="none").state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        (ModelSpec("resnet51"), 'did you mean "resnet'),
        (ModelSpec("resnet18", "gm"), 'did you mean "gem"?'),
        (ModelSpec("resnet18", num_features=-1), "--features"),
        (ModelSpec("resnet18", dropout=1.0), "--dropout"),
    ],
)
@pytest.mark.parametrize("weights", ["none", "imagenet"])
def test_impossible_networks_are_explained(spec: ModelSpec, part: str, weights: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_model(spec, weights=weights)
    assert part in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.shared
def test_real_imagenet_weights_of_mobilenet_load_and_see(shared: Path) -> None:
    path = shared / "weights" / "mobilenet_v2_imagenet.pth"
    model = build_model(ModelSpec("mobilenet_v2", "avg"), weights=str(path)).eval()
    released = torch.load(path, weights_only=True)
    assert torch.equal(model.backbone.features[18][0].weight, released["features.18.0.weight"])
    with torch.no_grad():
        features = model(_images(2))
    assert features.shape == (2, 1280) and (features >= 0).all() and features.std() > 0.01
