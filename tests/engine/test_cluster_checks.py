"""What is said about settings that find no cameras to use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.names import UNKNOWN
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.engine.cluster_checks import check_batch_norms, check_cameras
from ccreid_cli.models.reid_net import ModelSpec, ReidNet


@pytest.mark.parametrize(("camera", "words"), [("1", "are of one camera"), (UNKNOWN, "have no known camera")])
def test_camera_settings_without_cameras_are_named(camera: str, words: str, tiny_data: Path, tmp_path: Path) -> None:
    reporter = tiny.Warnings()
    dataset = load_dataset(str(tiny_data), tmp_path, reporter)
    alone = replace(dataset, train=replace(dataset.train, cameras=(camera,) * len(dataset.train)))
    check_cameras(alone, TrainConfig(), reporter)
    check_cameras(dataset, TrainConfig(camera_norm=True), reporter)
    assert not reporter.said
    check_cameras(alone, TrainConfig(camera_norm=True, method="camera-contrast"), reporter)
    [said] = reporter.said
    assert words in said and "--camera-norm, --method camera-contrast" in said


def test_a_network_without_batch_norms_is_named() -> None:
    reporter = tiny.Warnings()
    model = ReidNet(ModelSpec(tiny.NAME))
    config = TrainConfig(arch="convnext_tiny", camera_batch_norm=True, camera_norm=True)
    check_batch_norms(model, config, reporter)
    assert not reporter.said
    for norm in [name for name, part in model.named_modules() if "BatchNorm" in type(part).__name__]:
        model.set_submodule(norm, torch.nn.Identity())
    check_batch_norms(model, config, reporter)
    assert reporter.said == [
        "convnext_tiny has no batch norms: --camera-batch-norm does nothing, only --camera-norm is done."
    ]
