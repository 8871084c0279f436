"""What a training takes over from the file it starts from: network, input size and resize, unless they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.engine.adopting import adopt_weights_file
from ccreid_cli.engine.checkpoint import save_checkpoint
from ccreid_cli.engine.settings import ResolvedConfig, resolve_config
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

OWN = {"height": 96, "width": 48, "resize": "linear"}


class Messages(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def run_of(folder: Path, preprocess: Any, spec: ModelSpec | None = None) -> Path:
    spec = spec or ModelSpec(tiny.NAME)
    torch.manual_seed(0)
    path = folder / "last.pt"
    save_checkpoint(path, {"model": ReidNet(spec).state_dict(), "spec": dict(vars(spec)), "preprocess": preprocess})
    return path


def adopted(path: Path, said: Messages | None = None, **flags: Any) -> ResolvedConfig:
    resolved = resolve_config({"dataset": "veri", "weights": str(path), **flags}, {})
    return adopt_weights_file(resolved, said or SilentReporter())


@pytest.mark.parametrize("form", [dict, json.dumps])
def test_a_run_gives_its_input_size_and_resize(form: Any, tmp_path: Path) -> None:
    said = Messages()
    found = adopted(run_of(tmp_path, form(OWN)), said)
    assert {name: getattr(found.config, name) for name in OWN} == OWN  # not the 224x224 of VeRi's recipe
    assert {found.sources[name] for name in OWN} == {"weights file"}
    assert (
        "last.pt says which images it takes: --height 96 (not 224), --width 48 (not 224), --resize linear"
        in " ".join(said.messages)
    )


def test_what_is_typed_stays(tmp_path: Path) -> None:
    found = adopted(run_of(tmp_path, OWN), height=64, resize="bicubic")
    assert (found.config.height, found.config.width, found.config.resize) == (64, 48, "bicubic")
    assert found.sources["height"] == "flag"


def test_the_whole_description_of_the_network_is_taken_over(tmp_path: Path) -> None:
    spec = ModelSpec(tiny.NAME, "max", 5, relu=True, with_pooled=True)
    config = adopted(run_of(tmp_path, OWN, spec)).config
    assert (config.arch, config.pooling_type, config.features) == (tiny.NAME, "max", 5)
    assert config.neck_relu and config.with_pooled


def test_a_file_that_says_nothing_changes_no_images(tmp_path: Path) -> None:
    assert adopted(run_of(tmp_path, None)).config.height == 224


def test_a_size_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"last\.pt: height = -3"):
        adopted(run_of(tmp_path, {"height": -3, "width": 48}))
