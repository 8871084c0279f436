from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ccreid_cli.core.errors import CheckpointError
from ccreid_cli.inference.loading import LoadedModel, Preprocessing
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

VERI = '{"dataset": "veri", "data_dir": "x"}'


def loaded(meta: dict[str, Any]) -> LoadedModel:
    model = ReidNet(ModelSpec("resnet18"), initialize_backbone=False)
    return LoadedModel(model, "", Path("c.pt"), meta, torch.device("cpu"))


@pytest.mark.parametrize(
    ("meta", "dataset", "size"),
    [
        ({}, None, (256, 128)),
        ({}, "market1501", (256, 128)),
        ({}, "veri", (224, 224)),
        ({"config": VERI}, None, (224, 224)),
        ({"config": VERI}, "market1501", (256, 128)),
        ({"config": VERI}, "my/images", (224, 224)),
        ({"preprocess": '{"height": 64, "width": 48}'}, "veri", (64, 48)),
        ({"config": VERI, "preprocess": {"height": 30, "width": 20}}, None, (30, 20)),
    ],
)
def test_input_size_is_recorded_or_usual(meta: dict[str, Any], dataset: str | None, size: tuple[int, int]) -> None:
    found = Preprocessing.of(loaded(meta), dataset)
    assert (found.height, found.width) == size
    asked = Preprocessing.of(loaded(meta), dataset, height=17)
    assert (asked.height, asked.width) == (17, size[1])


def test_the_resize_is_named_and_another_one_is_refused() -> None:
    assert Preprocessing.of(loaded({})).as_json()["resize"] == "bicubic"
    with pytest.raises(CheckpointError, match="wants lanczos resizing"):
        Preprocessing.of(loaded({"preprocess": {"height": 30, "width": 20, "resize": "lanczos"}}))


@pytest.mark.parametrize("recorded", ["{", {"height": "tall"}, {"width": None}])
def test_a_damaged_record_is_the_checkpoints_error(recorded: object) -> None:
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        Preprocessing.of(loaded({"preprocess": recorded}))
