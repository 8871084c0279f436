"""Reports on runs as they are found on disk: whole, unfinished, without images, with hostile names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.engine.checkpoint import save_checkpoint
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.models.reid_net import ModelSpec, build_model
from ccreid_cli.report import records
from ccreid_cli.report.gather import SECTIONS, write_report
from ccreid_cli.report.records import published_scores
from ccreid_cli.report.sources import Notes, Sources, read_records

HOSTILE = "<script>document.title=1<"
EVALUATION = {"mAP": 0.5, "mINP": 0.25, "rank1": 0.75, "rank5": 0.875, "rank10": 1.0}
COUNTS = {"num_queries": 8, "num_queries_skipped": 0}


class Listener(SilentReporter):
    """A reporter that keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def _draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 32), (shade, 255 - shade, 90)).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four identities of hostile folders, two cameras: 24 training, 8 query and 16 gallery images."""
    root = tmp_path_factory.mktemp("images")
    for split, each in (("train", 3), ("query", 1), ("gallery", 2)):
        for person in range(4):
            for camera in (1, 2):
                for shot in range(each):
                    name = f"{person + 1:04d}_c{camera}_{shot:04d}{HOSTILE}.png"
                    _draw(root / split / name, 20 + 55 * person + 5 * camera + shot)
    return root


def _run(folder: Path, images: Path, epochs_done: int = 2, **changes: Any) -> RunFolder:
    values = {"dataset": str(images), "data_dir": folder, "height": 32, "width": 16, "arch": "mobilenet_v2"}
    config = TrainConfig(**{**values, "epochs": 2, "k1": 6, "k2": 2, "workers": 0, "precision": "fp32", **changes})
    run = RunFolder(folder / f"run{HOSTILE}")
    run.create(config, {"host": HOSTILE, "packages": {"torch": "2"}, "started": "2026-01-02T00:00:00", "recipe": None})
    lines = [
        {"epoch": epoch, "loss": 2.0, "num_clusters": 4, "num_outliers": 1, "seconds": {"train": 1.0}, **EVALUATION}
        for epoch in range(epochs_done)
    ]
    run.write_metrics(lines)
    return run


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = _run(tmp_path_factory.mktemp("logs"), images)
    spec = ModelSpec("mobilenet_v2")
    torch.manual_seed(0)
    model = build_model(spec, weights="none")
    content = {"model": model.state_dict(), "spec": dict(vars(spec)), "preprocess": {"height": 32, "width": 16}}
    content |= {"config": run.read_config().to_json(), "training": {"epoch": 2}}
    save_checkpoint(run.checkpoints / "last.pt", content)
    run.write_result({"last": {"epoch": 1, **EVALUATION, **COUNTS}, "best": {"epoch": 0, **EVALUATION, "mAP": 0.625}})
    return run


@pytest.fixture
def listener() -> Listener:
    return Listener()


def test_a_finished_run(finished: RunFolder, listener: Listener) -> None:
    path = write_report(finished, device="cpu", reporter=listener)
    text = path.read_text(encoding="utf-8")
    assert path == finished.path / "report.html"
    assert listener.warnings == []
    assert path.stat().st_size < 1_000_000
    assert HOSTILE not in text
    assert text.count("&lt;script&gt;document.title=1&lt;") > 20
    for word in ("Worst queries", "Biggest clusters", "CMC curve", "Distances", "✓ right", "– junk", "cam 1", "62.5"):
        assert word in text, word


def test_without_images_there_is_no_picture_but_every_curve(finished: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder(tmp_path / "moved")
    shutil.copytree(finished.path, moved.path)
    moved.write_environment({"dataset": {"fingerprint": "0"}})
    text = write_report(moved, tmp_path / "new" / "r.html", device="cpu", with_images=False).read_text("utf-8")
    assert "<img" not in text
    assert "images of the dataset" not in text
    assert "CMC curve" in text
    assert "Worst queries" not in text
    assert "are not those the run was trained on" in text


def test_scores_tell_last_from_best(finished: RunFolder) -> None:
    found = records.results(read_records(finished, Notes(SilentReporter()), with_images=False))
    assert found is not None
    assert [(score.kind, score.detail, score.mean_ap) for score in found.scores] == [
        ("last", "epoch 2", 50.0),
        ("best", "epoch 1", 62.5),
    ]
    assert (found.num_queries, found.num_queries_skipped) == (8, 0)


def test_an_unfinished_run_without_a_checkpoint(images: Path, tmp_path: Path, listener: Listener) -> None:
    run = _run(tmp_path, images, epochs_done=1)
    text = write_report(run, device="cpu", reporter=listener).read_text("utf-8")
    assert "unfinished: 1 of 2 epochs" in text
    assert "Left out: " in text
    assert "no last checkpoint yet" in text
    assert "50.0" in text
    assert len(listener.warnings) == 1


def test_images_that_are_gone_cost_only_the_pictures(finished: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder(tmp_path / "moved")
    shutil.copytree(finished.path, moved.path)
    config = moved.read_config()
    moved.write_config(replace(config, dataset=str(tmp_path / "nowhere")))
    text = write_report(moved, device="cpu").read_text("utf-8")
    assert "nowhere does not exist" in text
    assert "Time per epoch" in text
    assert "<img" not in text


def test_bare_crops_show_clusters_only(finished: RunFolder, tmp_path: Path) -> None:
    for shot in range(12):
        _draw(tmp_path / "crops" / f"shot{shot}.png", 10 * shot)
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    run.write_config(replace(run.read_config(), dataset=str(tmp_path / "crops")))
    run.write_metrics([{"epoch": 0, "loss": 1.0, "num_clusters": 2, "num_outliers": 0, "seconds": {}}])
    (run.path / "result.json").unlink()
    text = write_report(run, device="cpu").read_text("utf-8")
    assert "has no query and gallery" in text
    assert "CMC curve" not in text
    assert "<img" in text
    assert "purity" not in text


def test_a_section_that_fails_costs_only_itself(
    finished: RunFolder, tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sources: Sources) -> None:
        raise DataError("no gallery today")

    for key in ("retrieval", "clusters"):
        monkeypatch.setitem(SECTIONS, key, fail)
    text = write_report(finished, tmp_path / "r.html", device="cpu", reporter=listener).read_text("utf-8")
    assert listener.warnings == ["report: no gallery today"] * 2
    assert text.count("Left out: no gallery today") == 2
    assert 'id="retrieval"' not in text
    assert 'id="training"' in text


def test_no_run_and_damaged_records(tmp_path: Path, images: Path) -> None:
    with pytest.raises(DataError, match="not the folder of a run"):
        write_report(RunFolder(tmp_path / "none"))
    run = _run(tmp_path, images, dataset=str(tmp_path / "nowhere"))
    (run.path / "environment.json").write_text("[1")
    (run.path / "result.json").write_text(json.dumps({"last": 3, "best": {"epoch": "x", "mAP": None}}))
    run.metrics_file.write_text('3\n{"epoch": 0}\n{"epoch": 1, "mAP": "high"}\n{"epo')
    assert "Results" in write_report(run, device="cpu").read_text("utf-8")


def test_published_numbers_are_those_of_dataset_and_backbone() -> None:
    config = TrainConfig(dataset="market1501", arch="resnet50")
    scores = published_scores(config, {"recipe": {"name": "market1501-nov2021"}})
    assert [(score.mean_ap, score.rank1, score.is_own) for score in scores] == [
        (82.1, 92.3, True),
        (82.6, 93.0, False),
        (83.0, 92.9, False),
    ]
    assert published_scores(replace_arch(config, "resnet18"), {}) == ()
    # A recipe for another dataset than the one trained on says nothing about this run.
    own_images = replace_arch(replace(config, dataset="./mine"), "resnet50")
    assert (
        published_scores(own_images, {"recipe": {"name": "market1501", "published": {"resnet50": [82.6, 93.0]}}}) == ()
    )
    mine = {"name": "mine.toml", "title": "Mine", "published": {"resnet50": [70.0, 80.0]}}
    (score,) = published_scores(own_images, {"recipe": mine})
    assert (score.mean_ap, score.detail, score.is_own) == (70.0, "Mine", True)


def replace_arch(config: TrainConfig, arch: str) -> TrainConfig:
    return replace(config, arch=arch)
