from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from ccreid_cli.core.errors import CheckpointError, DataError, UsageError
from ccreid_cli.models.file_forms import EXPORT_SUFFIXES, export_weights
from ccreid_cli.models.key_maps import to_official
from ccreid_cli.models.reid_net import ModelSpec, ReidNet, build_model
from ccreid_cli.models.weight_files import read_weights

SPEC = ModelSpec("resnet18", "max", 16, 0.2)


@pytest.fixture(scope="module")
def model() -> ReidNet:
    torch.manual_seed(0)
    return ReidNet(SPEC)


def test_official_form_is_what_the_official_code_resumes_from(model: ReidNet, tmp_path: Path) -> None:
    path = tmp_path / f"out{EXPORT_SUFFIXES['official']}"
    export_weights(model.state_dict(), SPEC, path, "official", epoch=50)
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"state_dict", "epoch", "best_mAP"} and content["epoch"] == 50
    expected = {f"module.{key}": value for key, value in to_official(model.state_dict()).items()}
    assert content["state_dict"].keys() == expected.keys()
    assert all(torch.equal(content["state_dict"][key], value) for key, value in expected.items())
    assert read_weights(path).kind == "official"


def test_safetensors_form_comes_back_whole(model: ReidNet, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    export_weights(model.to(memory_format=torch.channels_last).state_dict(), SPEC, path, "safetensors", epoch=7)
    file = read_weights(path)
    assert (file.kind, file.spec, file.meta["epoch"]) == ("ccreid", SPEC, "7")
    again = build_model(SPEC, weights=str(path)).state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_torchvision_form_fits_torchvision(model: ReidNet, tmp_path: Path) -> None:
    path = tmp_path / "out.pth"
    export_weights(model.state_dict(), SPEC, path, "torchvision")
    problems = resnet18().load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert problems.unexpected_keys == [] and problems.missing_keys == ["fc.weight", "fc.bias"]
    assert build_model(ModelSpec("resnet18"), weights=str(path)).embedding is None


def test_a_form_that_cannot_hold_the_network_leaves_no_file(tmp_path: Path) -> None:
    spec = ModelSpec("mobilenet_v2")
    with pytest.raises(CheckpointError, match="only ResNets"):
        export_weights(ReidNet(spec).state_dict(), spec, tmp_path / "out.pth.tar", "official")
    assert list(tmp_path.iterdir()) == []


def test_trackers_get_an_osnet_under_torchreids_names(tmp_path: Path) -> None:
    spec = ModelSpec("osnet_x0_25", "avg", 512, relu=True)
    model, path = ReidNet(spec), tmp_path / "osnet.pth"
    export_weights(model.state_dict(), spec, path, "torchreid")
    names = torch.load(path, weights_only=True).keys()
    assert {key.split(".")[0] for key in names} == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc"}
    file = read_weights(path)
    assert file.kind == "torchreid" and file.spec == spec
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in file.state_dict.items())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ModelSpec("osnet_x0_25", "avg", 512), "trained without the ReLU"),
        (ModelSpec("osnet_x0_25", "gem", 512, relu=True), "average pooling, --features 512"),
        (ModelSpec("resnet18", "avg", 512, relu=True), "for OSNet"),
    ],
)
def test_what_torchreid_computes_otherwise_is_refused(spec: ModelSpec, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        export_weights({}, spec, tmp_path / "out.pth", "torchreid")
    assert list(tmp_path.iterdir()) == []


FORMS = sorted(set(EXPORT_SUFFIXES) - {"torchreid"})


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_as_readable_as_any_other(model: ReidNet, tmp_path: Path, form: str) -> None:
    (tmp_path / "any").touch()
    export_weights(model.state_dict(), SPEC, tmp_path / "out", form)
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_said(model: ReidNet, tmp_path: Path, no_room: None, form: str) -> None:
    with pytest.raises(DataError, match="could not write"):
        export_weights(model.state_dict(), SPEC, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_unknown_form_gets_a_suggestion(model: ReidNet, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export_weights(model.state_dict(), SPEC, tmp_path / "x", "offical")
    assert caught.value.hint == 'did you mean "official"?'
