from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ccreid_cli.core.errors import CheckpointError
from ccreid_cli.models.key_maps import from_official, strip_wrappers, to_official, to_torchvision
from ccreid_cli.models.reid_net import ModelSpec, ReidNet
from ccreid_cli.models.weight_files import spec_from_state

SMALL_COPY = Path(__file__).parents[1] / "golden" / "state_dict_shapes_resnet50_gem.json"
OFFICIAL = [
    ("resnet50/gem", ModelSpec("resnet50")),
    ("resnet50/avg", ModelSpec("resnet50", "avg")),
    ("resnet50/max", ModelSpec("resnet50", "max")),
    ("resnet101/gem", ModelSpec("resnet101")),
    ("resnet152/gem", ModelSpec("resnet152")),
    ("resnet_ibn50a/gem", ModelSpec("resnet_ibn50a")),
    ("resnet_ibn101a/gem", ModelSpec("resnet_ibn101a")),
    ("resnet50/gem/features256", ModelSpec("resnet50", num_features=256)),
]


def _check_one_to_one(shapes: dict[str, list[int]], spec: ModelSpec) -> None:
    official = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    ours = ReidNet(spec, initialize_backbone=False).state_dict()
    renamed = from_official({f"module.{key}": value for key, value in official.items()})
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in ours.items()}
    assert {k: list(v.shape) for k, v in to_official(ours).items()} == shapes
    found = spec_from_state(official)
    # Nothing in the tensors tells maximum from average pooling.
    assert found == (ModelSpec("resnet50", "avg") if spec.pooling_type == "max" else spec)


def test_official_resnet50_maps_one_to_one() -> None:
    _check_one_to_one(json.loads(SMALL_COPY.read_text())["resnet50/gem"], ModelSpec("resnet50"))


@pytest.mark.shared
@pytest.mark.parametrize(("name", "spec"), OFFICIAL)
def test_every_official_model_maps_one_to_one(name: str, spec: ModelSpec, golden: Path) -> None:
    _check_one_to_one(json.loads((golden / "state_dict_shapes.json").read_text())[name], spec)


def _meta(*keys: str) -> dict[str, Tensor]:
    return {key: torch.empty(1, device="meta") for key in keys}


def test_wrappers_are_stripped_only_where_every_key_has_them() -> None:
    assert list(strip_wrappers(_meta("module.a", "module.b.module.c"))) == ["a", "b.module.c"]
    assert list(strip_wrappers(_meta("module._orig_mod.a"))) == ["a"]
    assert list(strip_wrappers(_meta("module.a", "b"))) == ["module.a", "b"]
    assert strip_wrappers({}) == {}


def test_unknown_official_keys_keep_their_names() -> None:
    assert list(from_official(_meta("base.0.weight", "base.9.weight"))) == ["backbone.conv1.weight", "base.9.weight"]


def test_mixed_names_are_refused() -> None:
    with pytest.raises(CheckpointError, match="mixes"):
        from_official(_meta("base.0.weight", "backbone.conv1.weight"))


def test_only_resnets_have_an_official_form() -> None:
    with pytest.raises(CheckpointError, match="only ResNets") as caught:
        to_official(_meta("backbone.features.0.0.weight", "neck.weight"))
    assert caught.value.hint is not None and "--to safetensors" in caught.value.hint


def test_torchvision_form_is_the_backbone_alone() -> None:
    assert list(to_torchvision(_meta("backbone.conv1.weight", "pooling.p", "neck.weight"))) == ["conv1.weight"]
    with pytest.raises(CheckpointError, match="no backbone"):
        to_torchvision(_meta("neck.weight"))
