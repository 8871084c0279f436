"""Features by the batch-norm statistics of each camera, against those of what each layer is given."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccreid_cli.engine.extraction import extract_by_camera, extract_features
from ccreid_cli.images.augment import normalize
from ccreid_cli.images.store import ImageStore
from ccreid_cli.models.batch_norm import batch_statistics, count_statistics, with_statistics
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

CPU = torch.device("cpu")
CAMERAS = np.repeat([0, 1, 2, -1], [80, 35, 12, 3])
"""Two that stand for themselves, one of them in two batches; one of too few images, and images of no known camera."""


@pytest.fixture(scope="module")
def cameras() -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(CAMERAS)


@pytest.fixture(scope="module")
def images(cameras: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Noise, darker or brighter by camera."""
    noise = np.random.default_rng(1).integers(0, 120, (len(cameras), 32, 16, 3))
    return (noise + 40 * (cameras[:, None, None, None] + 1)).astype(np.uint8)


@pytest.fixture
def model() -> ReidNet:
    torch.manual_seed(2)
    return ReidNet(ModelSpec(tiny.NAME), samples_per_bn=64).train()


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def _by_hand(model: ReidNet, pictures: Tensor, sample: Tensor, num_batches: int, wanted: Tensor) -> Tensor:
    """Return the features of the pictures `wanted`, by the mean statistics of what each layer is given of a sample."""
    net = copy.deepcopy(model).eval()
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in _norms(net)]
    hooks = []
    for layer, found in zip(_norms(net), seen, strict=True):

        def note(_: nn.Module, given: tuple[Tensor], found: list[tuple[Tensor, Tensor]] = found) -> None:
            values = given[0].double().transpose(0, 1).flatten(1)
            found.append((values.mean(dim=1), values.var(dim=1)))

        layer.train()
        hooks.append(layer.register_forward_pre_hook(note))
    with torch.no_grad():
        for first in range(num_batches):
            net(pictures[sample[first::num_batches]])
        for hook in hooks:
            hook.remove()
        for layer, found in zip(_norms(net), seen, strict=True):
            layer.running_mean = torch.stack([mean for mean, _ in found]).mean(dim=0).float()
            layer.running_var = torch.stack([variance for _, variance in found]).mean(dim=0).float()
        return nn.functional.normalize(net.eval()(pictures[wanted]), dim=1)


def test_each_camera_is_described_by_its_own_statistics(
    model: ReidNet, images: NDArray[np.uint8], cameras: NDArray[np.int64]
) -> None:
    before = copy.deepcopy(model.state_dict())
    store = ImageStore(images)
    found = extract_by_camera(model, store, cameras, device=CPU).own
    pictures = normalize(store.gather(torch.arange(len(images)), CPU))
    place = torch.from_numpy(cameras)
    everyone = torch.arange(len(cameras))
    for numbers, sample, num_batches in (
        (everyone[place == 0], everyone[place == 0], 2),
        (everyone[place == 1], everyone[place == 1], 1),
        (everyone[(place == 2) | (place == -1)], everyone, 3),
    ):
        expected = _by_hand(model, pictures, sample, num_batches, numbers)
        torch.testing.assert_close(found[numbers], expected, rtol=1e-4, atol=1e-4)
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    # What tells cameras apart is less than without.
    plain = extract_features(model, store, device=CPU).own
    apart = [float((rows[place == 0].mean(0) - rows[place == 1].mean(0)).norm()) for rows in (found, plain)]
    assert apart[0] < 0.5 * apart[1]


def test_a_network_is_as_before_when_a_batch_fails(model: ReidNet) -> None:
    before = copy.deepcopy(model.eval().state_dict())

    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        batch_statistics(model, fail)
    with pytest.raises(RuntimeError), with_statistics(model, torch.ones(count_statistics(model))):
        assert all(bool((norm.running_mean == 1).all()) for norm in _norms(model) if norm.running_mean is not None)
        fail()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(norm.momentum == 0.1 and not norm.training for norm in _norms(model))


def test_features_are_normalised_by_camera_once(tiny_data: Path, tmp_path: Path) -> None:
    outcomes = []
    for name, also in (("once", False), ("both", True)):
        tiny.train(tiny_data, tmp_path / name, epochs=1, camera_batch_norm=True, camera_norm=also)
        outcomes.append(tiny.outcome(tmp_path / name))
    tiny.assert_same(*outcomes)
    tiny.train(tiny_data, tmp_path / "plain", epochs=1)
    assert tiny.outcome(tmp_path / "plain")["metrics"][0]["loss"] != outcomes[0]["metrics"][0]["loss"]
