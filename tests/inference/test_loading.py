from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ccreid_cli.core.errors import CheckpointError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.inference.loading import LoadedModel, ModelRequest, Preprocessing, load_network
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


def test_position_embeddings_say_for_which_images_they_are() -> None:
    file = loaded({})
    file.model.spec = replace(file.model.spec, height=384, width=128)
    assert Preprocessing.of(file, "market1501").height == 384
    assert Preprocessing.of(replace(file, path=None), "market1501").height == 256  # starting weights follow the dataset


def test_starting_weights_say_that_they_are_not_the_released_network(tmp_path: Path) -> None:
    net = ReidNet(ModelSpec("resnet18", "avg", 8))
    head = {f"fc.0.{kind}": getattr(net.embedding, kind) for kind in ("weight", "bias")}
    head |= {f"fc.1.{name}": value for name, value in net.neck.state_dict().items()}
    path = tmp_path / "t.pth"
    torch.save({**net.backbone.state_dict(), **head}, path)
    said: dict[str, str] = {}
    for kind in ("weights", "resume"):
        reporter = Messages()
        found = load_network(ModelRequest(**{kind: str(path)}), tmp_path, "cpu", reporter)
        said[kind] = " ".join(reporter.messages)
        assert found.model.spec.relu == (kind == "resume")
    assert (
        f"without the ReLU at the end of torchreid's ResNet with a head (resnet50_fc512)'s head; `--resume {path}`"
        in (said["weights"])
    )
    assert "ReLU" not in said["resume"]
