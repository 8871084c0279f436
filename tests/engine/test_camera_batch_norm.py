"""Features by the batch-norm statistics of each camera, against those of what each layer is given."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import steps_in_ranks
import tiny
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccreid_cli.engine import extraction
from ccreid_cli.engine.extraction import extract_by_camera, extract_features
from ccreid_cli.images.augment import normalize
from ccreid_cli.images.store import ImageStore
from ccreid_cli.machine.signals import StopRequested
from ccreid_cli.models.batch_norm import batch_statistics, chunk_batch_norms, count_statistics, with_statistics
from ccreid_cli.models.reid_net import ModelSpec, ReidNet
from ccreid_cli.pseudo_labels import pipeline

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


def test_bfloat16_gives_nearly_the_same_features(
    model: ReidNet, images: NDArray[np.uint8], cameras: NDArray[np.int64]
) -> None:
    store = ImageStore(images)
    exact, near = (extract_by_camera(model, store, cameras, device=CPU, precision=p).own for p in ("fp32", "bf16"))
    cosines = nn.functional.cosine_similarity(exact, near)
    assert near.dtype == torch.float32 and 0.999 < cosines.min() < 1 - 1e-7


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


def test_features_are_normalised_by_camera_once(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "normalize_by_camera", None)  # whoever calls it fails
    tiny.train(tiny_data, tmp_path / "both", epochs=1, camera_batch_norm=True, camera_norm=True)
    with pytest.raises(TypeError):
        tiny.train(tiny_data, tmp_path / "alone", epochs=1, camera_norm=True)


def test_a_part_of_many_images_is_enough(
    model: ReidNet, images: NDArray[np.uint8], cameras: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_STATISTICS_IMAGES", 20)
    store, place = ImageStore(images), torch.from_numpy(cameras)
    found = extract_by_camera(model, store, cameras, device=CPU).own
    pictures = normalize(store.gather(torch.arange(len(images)), CPU))
    for camera, step in ((0, 4), (1, 1.75)):
        numbers = torch.nonzero(place == camera)[:, 0]
        sample = numbers[[int(step * n) for n in range(20)]]
        expected = _by_hand(model, pictures, sample, 1, numbers)
        torch.testing.assert_close(found[numbers], expected, rtol=1e-4, atol=1e-4)


def test_statistics_are_those_of_whole_batches_whatever_training_takes(
    model: ReidNet, images: NDArray[np.uint8], cameras: NDArray[np.int64]
) -> None:
    store = ImageStore(images)
    expected = extract_by_camera(model, store, cameras, device=CPU).own
    chunk_batch_norms(model, 2)
    assert torch.equal(extract_by_camera(model, store, cameras, device=CPU).own, expected)
    assert {norm.samples_per_bn for norm in _norms(model)} == {2}


@pytest.mark.parametrize("calls", [1, 6])
def test_it_stops_when_asked_to(
    calls: int, model: ReidNet, images: NDArray[np.uint8], cameras: NDArray[np.int64]
) -> None:
    """While statistics are taken (6 batches), and later."""
    left = iter(range(calls))

    def check() -> None:
        if next(left, None) is None:
            raise StopRequested

    with pytest.raises(StopRequested):
        extract_by_camera(model, ImageStore(images), cameras, device=CPU, check_stop=check)
    assert model.training


@pytest.mark.parametrize("world", [2, 3])
def test_processes_give_the_bits_of_one(
    world: int, model: ReidNet, images: NDArray[np.uint8], cameras: NDArray[np.int64], tmp_path: Path
) -> None:
    """Whole stores; where each holds its share of the images, batches and so roundings differ."""
    alone = extract_by_camera(model, ImageStore(images), cameras, device=CPU).own
    state = model.state_dict()
    for whole, shared in tiny.call_in_ranks(steps_in_ranks.extract_by_camera, world, tmp_path, state, images, cameras):
        assert torch.equal(whole, alone)
        torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-5)
