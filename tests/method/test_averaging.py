"""The running mean of weights against a loop in NumPy, and what is scored, saved and used for labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.engine.checkpoint import read_checkpoint
from ccreid_cli.engine.trainer import Trainer
from ccreid_cli.images.augment import draw_augmentation
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.method.averaging import WeightAveraging
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.registry import make_method
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

DECAY = 0.75
"""A sum of powers of two: products with it are exact."""


def change(model: ReidNet, seed: int) -> None:
    """Give every weight and statistic another value, as a step does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))
            else:
                value += 1


def test_the_evaluated_network_is_the_mean_of_the_steps() -> None:
    assert tiny.TinyNet  # its import registers the network
    model = ReidNet(ModelSpec("tiny"))
    method = make_method(model, TrainConfig(weight_averaging=DECAY))
    assert isinstance(method, WeightAveraging)
    labels = torch.arange(6) % 3
    method.begin_epoch(0, SplitRows(torch.nn.functional.normalize(torch.randn(6, 16), dim=1)), labels, labels)
    batch = Batch(np.arange(6), labels, labels, draw_augmentation(6, 32, 16, torch.Generator().manual_seed(1)))
    expected: dict[str, Any] = {}
    for step in range(4):
        change(model, step)
        method.after_step(torch.randn(6, 16), batch)
        for name, value in model.state_dict().items():
            now = value.double().numpy()
            expected[name] = now if step == 0 else DECAY * expected[name] + (1 - DECAY) * now
    for name, value in method.evaluated().state_dict().items():
        if value.is_floating_point():
            np.testing.assert_allclose(value.numpy(), expected[name], atol=1e-6)
        else:
            assert int(value) == 4  # a count is not averaged
    assert not any(parameter.requires_grad for parameter in method.evaluated().parameters())
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_run_scores_and_saves_the_mean_and_labels_with_the_network(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, Tensor]] = []
    end_epoch = Trainer._end_epoch

    def keep_weights(trainer: Trainer, *arguments: Any) -> None:
        trained.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        end_epoch(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_end_epoch", keep_weights)
    tiny.train(tiny_data, tmp_path / "plain")
    tiny.train(tiny_data, tmp_path / "mean", weight_averaging=0.5)
    tiny.assert_same(*(list(part) for part in (trained[: tiny.EPOCHS], trained[tiny.EPOCHS :])))  # it changes no step
    saved = read_checkpoint(tiny.run_of(tmp_path / "mean").path / "checkpoints" / "last.pt")
    tiny.assert_same(dict(saved["training"]["model"]), trained[-1])
    assert not torch.equal(saved["model"]["neck.weight"], trained[-1]["neck.weight"])
    scores = [tiny.outcome(tmp_path / name)["result"]["last"]["mAP"] for name in ("plain", "mean")]
    assert scores[0] != scores[1]
    shutil.rmtree(tmp_path)
