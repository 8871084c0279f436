"""What CONTRIBUTING.md says about additions: one row, file or field is seen in help, completion and training."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import tiny
from torch import Tensor, nn
from typer.main import get_command

from ccreid_cli.cli.app import build_app
from ccreid_cli.cli.completion.answers import offers
from ccreid_cli.core import checking, recipes
from ccreid_cli.core import config as config_module
from ccreid_cli.core.components import Component
from ccreid_cli.core.config import METHOD, TrainConfig
from ccreid_cli.core.setting import Setting
from ccreid_cli.data.catalog import CATALOG, Counts, DatasetInfo, Place, Policy
from ccreid_cli.data.layouts import FolderLayout
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.cluster_contrast import ClusterContrast
from ccreid_cli.method.registry import METHODS
from ccreid_cli.models.registry import BACKBONES, POOLINGS, BackboneRow
from ccreid_cli.pseudo_labels.clustering import Clustering
from ccreid_cli.pseudo_labels.registry import CLUSTERERS, ClustererRow

from .conftest import Cli


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", BackboneRow("two convolutions", lambda: tiny.TinyNet))
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def train(cli: Cli, tiny_data: Path, tmp_path: Path) -> Any:
    """Train two steps with one setting changed, and return the run."""

    def run(setting: str, value: object) -> RunFolder:
        logs = tmp_path / "logs"
        flags = tiny.flags(tiny_data, logs, epochs=1, iters=2)
        done = cli("train", *tiny.options({**flags, setting: value}), "--no-report", "--progress", "none")
        assert done.code == 0, done.err
        return RunFolder(logs / "run")

    return run


def _offered(*words: str) -> list[str]:
    return [value for value, _ in offers(get_command(build_app()), words[:-1], words[-1])]


def test_dataset(cli: Cli, train: Any, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = DatasetInfo(
        name="my-city",
        title="My city",
        places=(Place("", FolderLayout()),),
        cameras=(1, 2),
        counts=(Counts(48, 6), Counts(8, 4), Counts(16, 4)),
        policy=Policy.FREE,
        terms="None.",
        homepage="",
    )
    monkeypatch.setitem(CATALOG, "my-city", row)
    shutil.copytree(tiny_data, tmp_path / "logs" / "data" / "my-city")
    assert "my-city" in cli("train", "--help").out
    assert _offered("train", "-d", "my") == _offered("data", "fetch", "my") == ["my-city"]
    assert train("dataset", "my-city").read_config().dataset == "my-city"


def test_backbone(cli: Cli, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "two-layers", BackboneRow("two convolutions", lambda: tiny.TinyNet))
    assert "two-layers" in cli("eval", "--help").out
    assert _offered("train", "-a", "two") == ["two-layers"]
    assert train("arch", "two-layers").read_config().arch == "two-layers"
    assert "two-layers" not in cli("weights", "list").out  # nobody has released weights
    assert 'did you mean "two-layers"' in cli("train", "-d", "toy", "-a", "two-layer").err


class Median(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        pooled: Tensor = maps.flatten(2).median(dim=2).values
        return pooled


def test_pooling(cli: Cli, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLINGS, "median", Component("the median", lambda: Median))
    assert "median" in cli("extract", "--help").out
    assert _offered("train", "--pooling-type", "me") == ["median"]
    assert train("pooling_type", "median").read_config().pooling_type == "median"


def in_four(table: Any, *others: Any) -> Clustering:
    return Clustering(np.arange(len(table), dtype=np.int64) % 4)


def test_clusterer(cli: Cli, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLUSTERERS, "in-four", ClustererRow("four clusters", lambda: in_four, {"min_samples": 9}))
    page = cli("cluster", "--help").out
    assert "in-four" in page and "Default: 4; in-four 9." in page
    assert _offered("bench", "--cluster", "in") == ["infomap", "in-four"]
    run = train("cluster", "in-four")
    assert run.read_metrics()[0]["num_clusters"] == 4
    assert run.read_config().min_samples == 9


class HalfLoss(ClusterContrast):
    def loss(self, features: Tensor, inputs: Tensor, part: Batch) -> Tensor:
        return super().loss(features, inputs, part) / 2


def test_method(cli: Cli, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "half-loss", Component("half the loss", lambda: HalfLoss))
    assert "half-loss" in cli("train", "--help").out
    assert _offered("train", "--method", "ha") == ["half-loss"]
    run = train("method", "half-loss")
    assert run.read_config().method == "half-loss"
    half = run.read_metrics()[0]["loss"]
    shutil.rmtree(run.path)
    assert half == pytest.approx(train("method", "cluster-contrast").read_metrics()[0]["loss"] / 2, rel=0.1)


def test_recipe(cli: Cli, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "FOLDER", shutil.copytree(recipes.FOLDER, tmp_path / "recipes"))
    (recipes.FOLDER / "my-paper.toml").write_text('[about]\ntitle = "Mine"\n[train]\ndataset = "toy"\ntemp = 0.2\n')
    assert "my-paper" in cli("recipes").out
    assert _offered("train", "--recipe", "my") == ["my-paper"]
    assert train("recipe", "my-paper").read_config().temp == 0.2


@dataclass(frozen=True)
class WithMargin(TrainConfig):
    """What one more field of `TrainConfig` makes of it."""

    margin: Annotated[float, Setting("Margin of the loss.", METHOD, ge=0)] = 0.3


def test_setting(cli: Cli, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (config_module, checking):
        monkeypatch.setattr(module, "TrainConfig", WithMargin)
    assert "Margin of the loss. Default: 0.3." in cli("train", "--help").out
    assert _offered("train", "--marg") == ["--margin"]
    assert "margin = -1.0: it should be greater than or equal to 0" in cli("train", "-d", "toy", "--margin", -1).err
    run = train("margin", 0.5)
    assert "margin = 0.5\n" in (run.path / "recipe.toml").read_text()
    assert "--margin cannot change" in cli("train", "--resume", run.path, "--margin", 0.6).err
