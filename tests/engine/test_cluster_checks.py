"""What is said about settings that find no cameras to use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.names import UNKNOWN
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.engine.cluster_checks import check_cameras


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
