"""ClusterMemory against the golden numbers and a plain loop over the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.method.memory import ClusterMemory, cluster_centroids

GOLDEN_COPY = Path(__file__).resolve().parents[1] / "golden" / "memory.npz"


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def update_one_by_one(
    centroids: NDArray[np.float64], features: NDArray[np.float64], targets: NDArray[np.int64], momentum: float
) -> NDArray[np.float64]:
    result = centroids.copy()
    for feature, target in zip(features, targets, strict=True):
        result[target] = unit(momentum * result[target] + (1 - momentum) * feature)
    return result


def update_hardest(
    centroids: NDArray[np.float64], features: NDArray[np.float64], targets: NDArray[np.int64], momentum: float
) -> NDArray[np.float64]:
    result = centroids.copy()
    for target in set(targets.tolist()):
        members = np.flatnonzero(targets == target)
        hardest = members[np.argmin(features[members] @ centroids[target])]
        result[target] = unit(momentum * centroids[target] + (1 - momentum) * features[hardest])
    return result


@pytest.mark.parametrize("mode", ["avg", "hard"])
def test_loss_gradient_and_memory_equal_the_reference(mode: str) -> None:
    golden = np.load(GOLDEN_COPY)
    memory = ClusterMemory(
        torch.from_numpy(golden["memory_before"]),
        float(golden["temperature"]),
        float(golden["momentum"]),
        use_hard=mode == "hard",
    )
    raw = torch.from_numpy(golden["raw"]).requires_grad_()
    targets = torch.from_numpy(golden["targets"])
    loss = memory.loss(raw, targets)
    loss.backward()
    memory.update(raw, targets)
    assert loss.item() == pytest.approx(float(golden[f"{mode}_loss"]), abs=1e-5)
    assert raw.grad is not None
    np.testing.assert_allclose(raw.grad.numpy(), golden[f"{mode}_grad_raw"], atol=1e-5)
    np.testing.assert_allclose(memory.centroids.numpy(), golden[f"{mode}_memory_after"], atol=1e-5)


def test_the_copy_is_the_golden_file(golden: Path) -> None:
    assert GOLDEN_COPY.read_bytes() == (golden / "memory.npz").read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_clusters=st.integers(1, 7),
    batch_size=st.integers(0, 40),
    momentum=st.floats(0, 1),
    use_hard=st.booleans(),
)
def test_update_equals_the_plain_loop(
    seed: int, num_clusters: int, batch_size: int, momentum: float, use_hard: bool
) -> None:
    rng = np.random.default_rng(seed)
    centroids, features = unit(rng.normal(size=(num_clusters, 12))), unit(rng.normal(size=(batch_size, 12)))
    targets = rng.integers(0, num_clusters, batch_size)
    memory = ClusterMemory(torch.from_numpy(centroids), momentum=momentum, use_hard=use_hard)
    memory.update(torch.from_numpy(features), torch.from_numpy(targets))
    oracle = update_hardest if use_hard else update_one_by_one
    np.testing.assert_allclose(memory.centroids.numpy(), oracle(centroids, features, targets, momentum), atol=2e-5)
    np.testing.assert_allclose(memory.centroids.norm(dim=1).numpy(), 1, atol=1e-5)


def test_hard_update_takes_the_first_of_equally_hard_samples() -> None:
    centroids = torch.eye(3)[:1]
    features = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    memory = ClusterMemory(centroids, momentum=0.5, use_hard=True)
    memory.update(features, torch.tensor([0, 0]))
    np.testing.assert_allclose(memory.centroids.numpy(), [[0.5**0.5, 0.5**0.5, 0]], atol=1e-6)


def test_clusters_outside_the_batch_keep_their_bits(rng: np.random.Generator) -> None:
    memory = ClusterMemory(torch.from_numpy(unit(rng.normal(size=(5, 8)))).float())
    before = memory.centroids.clone()
    memory.update(torch.from_numpy(rng.normal(size=(4, 8))).float(), torch.tensor([1, 3, 1, 1]))
    assert torch.equal(memory.centroids[[0, 2, 4]], before[[0, 2, 4]])
    assert not torch.equal(memory.centroids[1], before[1])


def test_loss_is_float32_under_autocast_and_leaves_the_memory_alone(rng: np.random.Generator) -> None:
    memory = ClusterMemory(torch.from_numpy(unit(rng.normal(size=(6, 16)))))
    before = memory.centroids.clone()
    raw, targets = torch.from_numpy(rng.normal(size=(8, 16))).float(), torch.arange(8) % 6
    expected = memory.loss(raw, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = memory.loss(raw, targets)
        low = memory.loss(raw.bfloat16(), targets)
    assert loss.dtype == low.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(memory.centroids, before)


def test_update_before_backward_is_refused(rng: np.random.Generator) -> None:
    memory = ClusterMemory(torch.from_numpy(unit(rng.normal(size=(3, 4)))))
    raw, targets = torch.randn(6, 4, requires_grad=True), torch.arange(6) % 3
    loss = memory.loss(raw, targets)
    memory.update(raw, targets)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_memory_does_not_touch_the_tensor_it_was_given() -> None:
    centroids = torch.eye(2)
    ClusterMemory(centroids).update(torch.ones(1, 2), torch.tensor([0]))
    assert torch.equal(centroids, torch.eye(2))


def test_centroids_are_the_normalised_means_without_outliers(rng: np.random.Generator) -> None:
    features = unit(rng.normal(size=(50, 300))).astype(np.float32)
    labels = rng.integers(-1, 4, 50)
    found = cluster_centroids(SplitRows(torch.from_numpy(features)), torch.from_numpy(labels))
    expected = unit(np.stack([features[labels == label].astype(np.float64).mean(axis=0) for label in range(4)]))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, 2, 2], [0, 1]])
def test_centroids_of_no_cluster_of_numbers_with_gaps_or_of_another_length_are_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="labels"):
        cluster_centroids(SplitRows(torch.eye(3)), torch.tensor(labels))


@pytest.mark.gpu
@pytest.mark.parametrize("use_hard", [False, True])
def test_cuda_equals_cpu_wherever_the_targets_are(use_hard: bool, rng: np.random.Generator) -> None:
    centroids, features = torch.from_numpy(unit(rng.normal(size=(9, 32)))), torch.randn(64, 32)
    targets = torch.from_numpy(rng.integers(0, 9, 64))
    expected = ClusterMemory(centroids, use_hard=use_hard)
    expected.update(features, targets)
    for place in ("cpu", "cuda"):
        memory = ClusterMemory(centroids.cuda(), use_hard=use_hard)
        memory.update(features.cuda(), targets.to(place))
        torch.testing.assert_close(memory.centroids.cpu(), expected.centroids, atol=1e-5, rtol=0)
