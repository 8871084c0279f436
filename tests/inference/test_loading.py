from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ccreid_cli.core.errors import CheckpointError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.inference.loading import LoadedModel, Preprocessing
from ccreid_cli.models.programs import PROGRAMS
from ccreid_cli.models.reid_net import ModelSpec, ReidNet


class Messages(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


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


def test_the_resize_is_the_one_asked_for_else_recorded_else_the_programs() -> None:
    recorded = loaded({"preprocess": {"resize": "opencv"}})
    foreign, said = replace(loaded({}), program=PROGRAMS["torchreid"]), Messages()
    assert Preprocessing.of(recorded).resize == "opencv"
    assert Preprocessing.of(recorded, resize="linear").resize == "linear"
    assert Preprocessing.of(foreign, resize="bicubic", reporter=said).resize == "bicubic" and not said.messages
    assert Preprocessing.of(foreign, reporter=said).resize == "linear"
    assert "resized (linear) as torchreid's OSNet" in said.messages[0] and "--resize" in said.messages[0]
    with pytest.raises(UsageError, match='no resize "nearest"'):
        Preprocessing.of(foreign, resize="nearest")


@pytest.mark.parametrize("recorded", ["{", {"height": "tall"}, {"width": None}])
def test_a_damaged_record_is_the_checkpoints_error(recorded: object) -> None:
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        Preprocessing.of(loaded({"preprocess": recorded}))
