"""Cluster Contrast behind the method interface, and the registry it stands in."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.images.augment import draw_augmentation
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.cluster_contrast import ClusterContrast
from ccreid_cli.method.memory import ClusterMemory, cluster_centroids
from ccreid_cli.method.registry import METHODS
from ccreid_cli.models.reid_net import ModelSpec, ReidNet


@pytest.fixture
def model() -> ReidNet:
    torch.manual_seed(0)
    assert tiny.TinyNet  # its import registers the network
    return ReidNet(ModelSpec("tiny"))


def make_batch(size: int = 6, clusters: int = 3) -> Batch:
    plan = draw_augmentation(size, 32, 16, torch.Generator().manual_seed(1))
    return Batch(np.arange(size), torch.arange(size) % clusters, torch.arange(size) % 2, plan, seed=4)


def started(model: ReidNet) -> tuple[ClusterContrast, torch.Tensor]:
    method = ClusterContrast(model, TrainConfig(temp=0.07, momentum=0.3, use_hard=True))
    features = torch.nn.functional.normalize(torch.randn(12, 16), dim=1)
    method.begin_epoch(0, SplitRows(features), torch.arange(12) % 4 - 1, torch.zeros(12, dtype=torch.int64))
    return method, features


def test_the_registry_gives_the_method(model: ReidNet) -> None:
    assert isinstance(METHODS["cluster-contrast"].load()(model, TrainConfig()), ClusterContrast)


def test_an_epoch_is_that_of_a_memory_with_the_run_s_settings(model: ReidNet) -> None:
    method, features = started(model)
    memory = ClusterMemory(cluster_centroids(SplitRows(features), torch.arange(12) % 4 - 1), 0.07, 0.3, use_hard=True)
    batch, outputs = make_batch(), torch.randn(6, 16)
    assert torch.equal(method.loss(outputs, outputs, batch), memory.loss(outputs, batch.targets))
    method.after_step(outputs, batch)
    memory.update(outputs, batch.targets)
    assert torch.equal(method.state_dict()["centroids"], memory.centroids)
    assert method.evaluated() is model


def test_a_restored_method_goes_on_as_the_saved_one(model: ReidNet) -> None:
    method, _ = started(model)
    other = ClusterContrast(model, method.config)
    state = method.state_dict()
    other.load_state_dict(state)
    outputs, batch = torch.randn(6, 16), make_batch()
    for one in (method, other):
        one.after_step(outputs, batch)
    assert torch.equal(method.state_dict()["centroids"], other.state_dict()["centroids"])
    assert not torch.equal(state["centroids"], method.state_dict()["centroids"])  # a copy


def test_before_the_first_epoch_there_is_no_state(model: ReidNet) -> None:
    method = ClusterContrast(model, TrainConfig())
    assert method.state_dict() == {}
    method.load_state_dict({})
    with pytest.raises(RuntimeError, match="begin_epoch"):
        method.loss(torch.zeros(6, 16), torch.zeros(6, 16), make_batch())


@pytest.mark.parametrize("state", [{"centroids": torch.eye(3)}, {"centroids": [[1.0]]}, {"other": 1}])
def test_a_state_of_another_width_is_refused(model: ReidNet, state: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="width 16"):
        ClusterContrast(model, TrainConfig()).load_state_dict(state)


def test_a_part_of_a_batch_knows_the_whole() -> None:
    batch = make_batch()
    part = batch.slice(2, 6).slice(1, 3)
    assert part.whole is batch and len(part) == 2
    assert part.indices.tolist() == [3, 4] and part.targets.tolist() == [0, 1] and part.camera_ids.tolist() == [1, 0]
    assert part.seed == batch.seed
