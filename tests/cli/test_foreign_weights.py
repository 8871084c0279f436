"""Files of other programs at the command line: converted, scored, trained from; or refused with advice that works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ccreid_cli.models.key_maps import rename_start, to_official
from ccreid_cli.models.reid_net import ModelSpec, ReidNet, build_model

from .conftest import SMALL, Cli, Trained

State = dict[str, Tensor]
SIZE = ("--height", 32, "--width", 16)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _at(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.fixture(scope="module")
def net() -> ReidNet:
    torch.manual_seed(0)
    return ReidNet(ModelSpec("resnet18", "avg"))


@pytest.fixture
def fastreid(net: ReidNet, tmp_path: Path) -> Path:
    path = tmp_path / "fast.pth"
    backbone, neck = dict(net.backbone.state_dict()), dict(net.neck.state_dict())
    head = {"heads.weight": torch.ones(751, 512)}
    torch.save({"model": {**_at("backbone.", backbone), **_at("heads.bottleneck.0.", neck), **head}}, path)
    return path


@pytest.fixture
def spcl(net: ReidNet, tmp_path: Path) -> Path:
    path = tmp_path / "spcl.pth.tar"
    torch.save({"state_dict": _at("module.", to_official(net.state_dict())), "epoch": 50, "best_mAP": 0.7}, path)
    return path


@pytest.fixture
def layumi(net: ReidNet, tmp_path: Path) -> Path:
    path = tmp_path / "net_last.pth"
    torch.save({**_at("model.", dict(net.backbone.state_dict())), "classifier.add_block.0.weight": torch.ones(2)}, path)
    return path


@pytest.mark.parametrize(("form", "written"), [("safetensors", "x.safetensors"), ("official", "x.pth.tar")])
def test_a_converted_file_loads_again(cli: Cli, net: ReidNet, fastreid: Path, form: str, written: str) -> None:
    done = cli("weights", "convert", fastreid, "--to", form, "-o", written)
    assert done.code == 0, done.err
    assert "fast-reid" in done.err and "heads.weight [751, 512]" in done.err
    again = build_model(net.spec, weights=written).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("form", ["safetensors", "official", "torchvision"])
def test_what_would_not_load_again_is_not_written(cli: Cli, fastreid: Path, form: str) -> None:
    content = torch.load(fastreid)
    torch.save({"model": {**content["model"], "backbone.NL_2.0.g.weight": torch.ones(1)}}, fastreid)
    refused = cli("weights", "convert", fastreid, "--to", form, "-o", "x.out")
    assert refused.code != 0 and "fast.pth" in refused.err and "NL_2" in refused.err
    assert not Path("x.out").exists()


def test_a_foreign_backbone_is_converted_to_its_release_form(cli: Cli, net: ReidNet, layumi: Path) -> None:
    refused = cli("weights", "convert", layumi, "--to", "safetensors")
    assert refused.code == 2 and "layumi" in refused.err and "--to torchvision" in refused.err
    assert cli("weights", "convert", layumi, "--to", "torchvision", "-o", "x.pth").code == 0
    found = torch.load("x.pth", weights_only=True)
    assert all(torch.equal(value, found[key]) for key, value in net.backbone.state_dict().items())


def test_maximum_pooling_is_kept_where_the_user_says_so(cli: Cli, spcl: Path) -> None:
    done = cli("weights", "convert", spcl, "--to", "safetensors", "--pooling-type", "max", "-o", "x.safetensors")
    assert done.code == 0, done.err
    assert build_model(ModelSpec("resnet18", "max"), weights="x.safetensors").spec.pooling_type == "max"


@pytest.mark.parametrize("name", ["fastreid", "spcl"])
def test_a_foreign_network_is_scored(cli: Cli, trained: Trained, name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    by_resume = cli("eval", "-d", trained.dataset, "--resume", path, *SIZE, "--json")
    by_weights = cli("eval", "-d", trained.dataset, "--weights", path, *SIZE, "--json")
    assert by_resume.code == by_weights.code == 0, by_resume.err + by_weights.err
    assert json.loads(by_resume.out)["mAP"] == json.loads(by_weights.out)["mAP"]


def test_the_advice_for_a_backbone_works(cli: Cli, trained: Trained, layumi: Path) -> None:
    refused = cli("eval", "-d", trained.dataset, "--resume", layumi, *SIZE)
    assert refused.code != 0 and "layumi" in refused.err
    advice = " ".join(refused.err.split())
    assert "ccreid eval -d DATASET --weights" in advice and "ccreid train -d DATASET --weights" in advice
    done = cli("eval", "-d", trained.dataset, "--weights", layumi, *SIZE)
    assert done.code == 0, done.err


def test_a_dry_run_shows_what_the_file_decides(cli: Cli, spcl: Path) -> None:
    done = cli("train", "-d", "market1501", "--weights", spcl, "--dry-run", "--json")
    found = json.loads(done.out)
    assert found["arch"] == {"value": "resnet18", "source": "weights file"}
    assert found["pooling_type"] == {"value": "avg", "source": "weights file"}
    assert "--arch resnet18 (not resnet50), --pooling-type avg (not gem)" in " ".join(done.err.split())


@pytest.fixture
def torchreid(tmp_path: Path) -> Path:
    state = ReidNet(ModelSpec("osnet_x0_25", "avg", 512)).state_dict()
    names = {"backbone.": "", "embedding.": "fc.0.", "neck.": "fc.1."}
    torch.save({rename_start(key, names): value for key, value in state.items()}, tmp_path / "osnet.pth")
    return tmp_path / "osnet.pth"


def test_images_are_resized_as_the_files_program_does_unless_an_option_is_typed(cli: Cli, torchreid: Path) -> None:
    start = ("train", "-d", "market1501", "--weights", torchreid, "--dry-run", "--json")
    done = cli(*start)
    assert json.loads(done.out)["resize"] == {"value": "linear", "source": "weights file"}
    assert "resized as torchreid's OSNet resizes them: --resize linear" in " ".join(done.err.split())
    typed = cli(*start, "--resize", "bicubic")
    assert json.loads(typed.out)["resize"] == {"value": "bicubic", "source": "flag"} and "linear" not in typed.err


def test_a_run_records_how_its_images_are_resized(cli: Cli, trained: Trained, torchreid: Path) -> None:
    small = SMALL[SMALL.index("--height") :]  # without network and weights
    few = ("--epochs", 1, "--iters", 1, "--k1", 4, "--k2", 2, "--eps", 0.9, "--no-report", "--logs-dir", "logs")
    done = cli("train", "-d", trained.dataset, "--weights", torchreid, *small, *few, "--name", "small", "--json")
    assert done.code == 0, done.err
    scored = cli("eval", "--resume", "logs/small", "--json", "--device", "cpu")
    assert "32 x 16, linear, fp32" in scored.err
    assert json.loads(scored.out)["mAP"] == pytest.approx(json.loads(done.out)["last"]["mAP"], abs=1e-6)


def test_only_a_typed_option_contradicts_a_file(cli: Cli, spcl: Path, layumi: Path) -> None:
    refused = cli("train", "-d", "toy", "--weights", spcl, "--pooling-type", "gem", "--dry-run")
    assert refused.code == 2 and "--pooling-type gem (the file: avg)" in refused.err
    assert "--arch" not in refused.err
    agreed = cli("train", "-d", "toy", "--weights", spcl, "-a", "resnet18", "--dry-run", "--json")
    assert json.loads(agreed.out)["arch"]["source"] == "flag"
    wrong = cli("train", "-d", "toy", "--weights", layumi, "-a", "resnet50", "--dry-run")
    assert wrong.code != 0 and "--arch resnet18" in " ".join(wrong.err.split())


def test_a_training_from_a_foreign_file_has_its_network(cli: Cli, trained: Trained, fastreid: Path) -> None:
    small = SMALL[SMALL.index("--height") :]  # without network and weights
    few = ("--epochs", 1, "--iters", 1, "--k1", 4, "--k2", 2, "--eps", 0.9, "--no-report", "--name", "foreign")
    places = ("-d", trained.dataset, "--logs-dir", "logs")
    done = cli("train", *places, "--weights", fastreid, *small, *few)
    assert done.code == 0, done.err
    said = " ".join(done.err.split())
    assert said.count("looks like a file of fast-reid") == 1 and said.count("--pooling-type avg (not gem)") == 1
    recipe = Path("logs/foreign/recipe.toml").read_text()
    assert 'arch = "resnet18"' in recipe and 'pooling_type = "avg"' in recipe
    environment = "".join(path.read_text() for path in Path("logs/foreign").glob("*.json"))
    assert "weights file" in environment
    again = cli("train", *places, "--init-from", "foreign", *small, *few[:-1], "again", "--dry-run", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["pooling_type"]["value"] == "avg"
