"""Inter-camera proxies against a loop over images and proxies."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.images.augment import draw_augmentation
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.method import camera_contrast
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.camera_contrast import CameraContrast
from ccreid_cli.method.cluster_contrast import ClusterContrast
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, -1, -1])
CAMERAS = torch.tensor([0, 0, 2, 1, 1, 0, 1, 2, 0, 1])


@pytest.fixture
def model() -> ReidNet:
    torch.manual_seed(0)
    assert tiny.TinyNet  # its import registers the network
    return ReidNet(ModelSpec("tiny"))


@pytest.fixture
def features() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(10, 16, generator=torch.Generator().manual_seed(5)), dim=1)


def batch_of(indices: list[int]) -> Batch:
    plan = draw_augmentation(len(indices), 32, 16, torch.Generator().manual_seed(1))
    return Batch(np.array(indices), LABELS[indices], CAMERAS[indices], plan)


def unit(row: np.ndarray) -> np.ndarray:
    return row / np.linalg.norm(row)


def proxies_of(features: torch.Tensor) -> dict[tuple[int, int], np.ndarray]:
    rows = features.numpy().astype(np.float64)
    pairs = sorted({(int(k), int(c)) for k, c in zip(LABELS, CAMERAS, strict=True) if k >= 0})
    return {(k, c): unit(rows[(k == LABELS).numpy() & (c == CAMERAS).numpy()].mean(axis=0)) for k, c in pairs}


def loss_oracle(raw: torch.Tensor, targets: torch.Tensor, proxies: dict[tuple[int, int], np.ndarray], n: int) -> float:
    total = 0.0
    for row, target in zip(raw.detach().numpy().astype(np.float64), targets.tolist(), strict=True):
        logits = {pair: unit(row) @ proxy / 0.07 for pair, proxy in proxies.items()}
        positives = [logit for (k, _), logit in logits.items() if k == target]
        negatives = sorted((logit for (k, _), logit in logits.items() if k != target), reverse=True)[:n]
        total += np.log(np.exp([*positives, *negatives]).sum()) - np.mean(positives)
    return total / len(raw)


@pytest.mark.parametrize("num_negatives", [50, 2])
def test_the_loss_is_that_of_a_loop_weighed_by_the_share(
    model: ReidNet, features: torch.Tensor, num_negatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_contrast, "NUM_NEGATIVES", num_negatives)
    config = TrainConfig(proxy_weight=0.5)
    method, plain = CameraContrast(model, config), ClusterContrast(model, config)
    for one in (method, plain):
        one.begin_epoch(0, SplitRows(features), LABELS, CAMERAS)
    raw, batch = torch.randn(4, 16, requires_grad=True), batch_of([0, 2, 3, 7])
    loss = method.loss(raw, raw, batch)
    share = 6 / 8  # clusters 0 and 2 are seen by several cameras
    expected = loss_oracle(raw, batch.targets, proxies_of(features), num_negatives)
    assert (loss - plain.loss(raw, raw, batch)).item() == pytest.approx(0.5 * share * expected, rel=1e-4)
    loss.backward()
    assert torch.isfinite(raw.grad).all() and raw.grad.abs().sum() > 0


def test_every_image_moves_the_proxy_of_its_cluster_and_camera(model: ReidNet, features: torch.Tensor) -> None:
    method = CameraContrast(model, TrainConfig())
    method.begin_epoch(0, SplitRows(features), LABELS, CAMERAS)
    expected = proxies_of(features)
    raw, batch = torch.randn(4, 16), batch_of([1, 0, 3, 6])
    for row, pair in zip(raw.numpy(), [(0, 0), (0, 0), (1, 1), (2, 1)], strict=True):
        expected[pair] = unit(0.2 * expected[pair] + 0.8 * unit(row))
    method.after_step(raw, batch)
    found = method.state_dict()["proxies"]["vectors"]
    np.testing.assert_allclose(found.numpy(), np.stack([expected[pair] for pair in sorted(expected)]), atol=1e-6)


def test_a_single_camera_leaves_cluster_contrast(model: ReidNet, features: torch.Tensor) -> None:
    method, plain = CameraContrast(model, TrainConfig()), ClusterContrast(model, TrainConfig())
    for one in (method, plain):
        one.begin_epoch(0, SplitRows(features), LABELS, torch.zeros_like(CAMERAS))
    raw = torch.randn(4, 16)
    assert torch.equal(method.loss(raw, raw, batch_of([0, 2, 3, 7])), plain.loss(raw, raw, batch_of([0, 2, 3, 7])))
    assert set(method.state_dict()) == {"centroids"}


def test_a_restored_method_goes_on_as_the_saved_one(model: ReidNet, features: torch.Tensor) -> None:
    method, other = CameraContrast(model, TrainConfig()), CameraContrast(model, TrainConfig())
    method.begin_epoch(0, SplitRows(features), LABELS, CAMERAS)
    other.load_state_dict(method.state_dict())
    raw, batch = torch.randn(4, 16), batch_of([1, 0, 3, 6])
    for one in (method, other):
        one.after_step(raw, batch)
    assert torch.equal(method.loss(raw, raw, batch), other.loss(raw, raw, batch))
    assert torch.equal(method.state_dict()["proxies"]["vectors"], other.state_dict()["proxies"]["vectors"])
