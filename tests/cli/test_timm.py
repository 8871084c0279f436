"""Networks of timm at the command line: trained, resumed, scored at two input sizes, exported and read again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.main import get_command

from ccreid_cli.cli.app import build_app
from ccreid_cli.cli.completion.answers import offers
from ccreid_cli.inference.embedder import load_model

from .conftest import Cli

NETWORKS: dict[str, dict[str, Any]] = {
    "timm:test_vit": {"optimizer": "sgd", "lr": 0.01, "drop_path": 0.2, "warmup": 1, "height": 64, "width": 32},
    "timm:test_resnet": {"optimizer": "adamw", "milestones": "1", "height": 64, "width": 32},
}


def _options(values: dict[str, Any]) -> list[str]:
    return [*tiny.options(values), "--no-report", "--progress", "none"]


def _score(cli: Cli, data: Path, *source: object) -> dict[str, Any]:
    done = cli("eval", "-d", data, *source, "--precision", "fp32", "--json", "--progress", "none")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return {name: found[name] for name in ("mAP", "rank1", "mINP")}


@pytest.fixture(scope="module", params=NETWORKS)
def logs(request: pytest.FixtureRequest, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two epochs of a network of timm."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("timm")
    tiny.train(tiny_data, folder, arch=request.param, **NETWORKS[request.param], **_pooling(request.param))
    return folder


def _pooling(arch: str) -> dict[str, Any]:
    return {"pooling_type": "class"} if "vit" in arch else {}


def test_one_file_is_scored_at_two_sizes_and_exported(cli: Cli, logs: Path, tiny_data: Path, tmp_path: Path) -> None:
    run = logs / "run"
    own = _score(cli, tiny_data, "--resume", run)
    assert own["mAP"] == pytest.approx(tiny.run_of(logs).read_result()["last"]["mAP"], abs=1e-3)
    wide = _score(cli, tiny_data, "--resume", run, "--height", 48, "--width", 48)
    assert 0 < wide["mAP"] <= 1
    written = tmp_path / "net.safetensors"
    assert cli("export", run, "--format", "safetensors", "-o", written).code == 0
    assert _score(cli, tiny_data, "--resume", written) == own
    card = json.loads(written.with_name("net.safetensors.json").read_text())
    assert card["arch"].startswith("timm:test_") and card["spec"]["height"] == 64


def test_an_exported_file_gives_the_same_features(cli: Cli, logs: Path, tmp_path: Path) -> None:
    """As ONNX: tests/inference/test_export.py."""
    file = tmp_path / "net.torchscript"
    done = cli("export", logs / "run", "--format", "torchscript", "-o", file)
    assert done.code == 0, done.err
    assert json.loads(file.with_name(f"{file.name}.json").read_text())["check"]["min_cosine"] > 0.9999


def test_a_backbone_goes_back_to_timm(cli: Cli, logs: Path, tiny_data: Path, tmp_path: Path) -> None:
    import timm
    import torch

    path = tmp_path / "backbone.pth"
    assert cli("weights", "convert", logs / "run", "--to", "torchvision", "-o", path).code == 0
    arch = tiny.run_of(logs).read_config().arch
    options = {"img_size": (64, 32)} if "vit" in arch else {}
    timm.create_model(arch.removeprefix("timm:"), num_classes=0, **options).load_state_dict(torch.load(path))
    again = tmp_path / "again"
    tiny.train(tiny_data, again, arch=arch, weights=str(path), epochs=1, iters=1, height=48, width=48, **_pooling(arch))
    assert tiny.run_of(again).read_config().height == 48
    assert load_model(again / "run").model.spec.arch == arch


def test_help_and_completion_need_no_timm(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setenv("COLUMNS", "400")
    assert "timm:NAME (pip install 'ccreid[timm]')" in cli("train", "--help").out
    assert offers(get_command(build_app()), ["train", "-a"], "timm") == [
        ("timm:", "any network of timm by its name there")
    ]
    refused = cli("train", "-d", "toy", "-a", "timm:resnet10t", "--dry-run")
    assert refused.code == 2 and "this needs the package timm" in refused.err and "ccreid[timm]" in refused.err
