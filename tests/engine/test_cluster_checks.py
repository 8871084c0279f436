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
from ccreid_cli.engine.cluster_checks import check_cameras, takes_camera_statistics
from ccreid_cli.models.reid_net import ModelSpec, ReidNet


@pytest.mark.parametrize(("camera", "words"), [("1", "are of one camera"), (UNKNOWN, "have no known camera")])
def test_camera_settings_without_cameras_are_named(camera: str, words: str, tiny_data: Path, tmp_path: Path) -> None:
    reporter = tiny.Warnings()
    model = ReidNet(ModelSpec(tiny.NAME))
    dataset = load_dataset(str(tiny_data), tmp_path, reporter)
    alone = replace(dataset, train=replace(dataset.train, cameras=(camera,) * len(dataset.train)))
    check_cameras(model, alone, TrainConfig(), reporter)
    check_cameras(model, dataset, TrainConfig(camera_norm=True), reporter)
    assert not reporter.said
    check_cameras(
        model, alone, TrainConfig(camera_norm=True, camera_batch_norm=True, method="camera-contrast"), reporter
    )
    [said] = reporter.said
    assert words in said and "--camera-norm, --camera-batch-norm, --method camera-contrast" in said


def test_a_network_without_batch_norms_is_named(tiny_data: Path, tmp_path: Path) -> None:
    reporter = tiny.Warnings()
    dataset = load_dataset(str(tiny_data), tmp_path, reporter)
    config = TrainConfig(arch="tiny", camera_batch_norm=True, camera_norm=True)
    model = ReidNet(ModelSpec(tiny.NAME))
    check_cameras(model, dataset, config, reporter)
    assert not reporter.said and takes_camera_statistics(model, dataset, config)
    model.backbone.bn1, model.backbone.bn2 = torch.nn.Identity(), torch.nn.Identity()  # the neck's stays
    check_cameras(model, dataset, config, reporter)
    assert not takes_camera_statistics(model, dataset, config)
    assert reporter.said == ["tiny has no batch norms: --camera-batch-norm does nothing, only --camera-norm is done."]
