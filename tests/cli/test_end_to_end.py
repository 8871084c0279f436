"""The main job through the command line: train, evaluate, cluster and score on real files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from ccreid_cli.cli import app

SIZE = ["--height", 64, "--width", 32]
EVALUATION_KEYS = {"mAP", "mINP", "rank1", "rank5", "rank10", "num_queries", "num_queries_skipped"}


def ccreid(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, Any]:
    """Run a command with --json in this process and return what it printed on stdout."""
    monkeypatch.setattr("sys.argv", ["ccreid", *map(str, arguments), "--json"])
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        app.main()
    out, err = capfd.readouterr()
    assert left.value.code in (0, None), err
    result: dict[str, Any] = json.loads(out)
    return result


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_training_on_the_toy_dataset(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = ["-d", "toy", "-a", tiny.NAME]
    untrained = ccreid(capfd, monkeypatch, "eval", *network, "--weights", "none", *SIZE)
    short = ["--epochs", 2, "--iters", 60, "-b", 64, "--lr", 0.01, "--name", "toy"]
    result = ccreid(capfd, monkeypatch, "train", *network, *short)
    assert result["last"]["mAP"] > untrained["mAP"] + 0.05  # the recipe's own network is trained, and scored, in CI
    assert result["last"].keys() >= EVALUATION_KEYS and result["best"].keys() >= EVALUATION_KEYS
    assert result["best"]["mAP"] >= result["last"]["mAP"]
    lines = [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    for stage in ("extract", "neighbors", "jaccard", "clustering", "train", "evaluate"):
        spent = sum(line["seconds"].get(stage, 0.0) for line in lines)
        assert result["seconds"][stage] == pytest.approx(spent, abs=0.01)
    run = Path(result["run"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(2))
    assert all({"loss", "num_clusters", "num_outliers", "seconds"} <= line.keys() for line in lines)
    assert lines[-1].keys() >= EVALUATION_KEYS
    again = ccreid(capfd, monkeypatch, "eval", "--resume", "logs/toy")
    assert again["mAP"] == pytest.approx(result["last"]["mAP"], abs=1e-6)
    assert (run / "report.html").stat().st_size < 10_000_000
    environment = json.loads((run / "environment.json").read_text())
    assert {"packages", "device", "git_commit", "dataset"} <= environment.keys()


def test_cluster_and_score_of_any_features(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    ids = np.repeat(np.arange(20), 8)
    cams = np.tile(np.arange(4), 40)
    features = rng.normal(size=(20, 32))[ids] * 3 + rng.normal(size=(160, 32)) * 0.3
    np.savez("all.npz", features=features * rng.uniform(0.1, 9, size=(160, 1)), ids=ids, cams=cams)
    options = ["--k1", 10, "--k2", 3, "--eps", 0.6, "-o", "out/labels.npz"]
    result = ccreid(capfd, monkeypatch, "cluster", "all.npz", *options)
    assert (result["num_samples"], result["num_clusters"], result["num_outliers"]) == (160, 20, 0)
    assert result["seconds"] > 0
    labels = np.load("out/labels.npz")["labels"]
    assert len(set(zip(ids, labels, strict=True))) == 20
    auto = ccreid(capfd, monkeypatch, "cluster", "all.npz", *options[:4], "--eps", "auto")
    assert auto["num_clusters"] == 20 and auto["eps"] in [trial["eps"] for trial in auto["trials"]]
    assert f"eps {auto['eps']:g}: " in auto["why"]
    monkeypatch.setattr("ccreid_cli.pseudo_labels.pipeline.LEAST_ROWS", 100)
    near = ccreid(capfd, monkeypatch, "cluster", "all.npz", *options[:6], "--neighbors", "approximate", "--recall", 0.9)
    assert near["num_clusters"] == 20 and near["neighbor_recall"] > 0.8 and near["agreement_with_exact"] > 0.9
    np.savez("q.npz", features=features[::8], ids=ids[::8], cams=cams[::8])
    scores = ccreid(capfd, monkeypatch, "score", "--query", "q.npz", "--gallery", "all.npz")
    assert scores["mAP"] == pytest.approx(1.0) and scores["num_queries"] == 20
    reranked = ccreid(capfd, monkeypatch, "score", "--query", "q.npz", "--gallery", "all.npz", "--rerank")
    assert reranked["rank1"] == pytest.approx(1.0)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_market_mini_learns_from_real_images(
    shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(shared / "data" / "market-mini.zip") as archive:
        archive.extractall(tmp_path / "data" / "market1501")
    weights = shared / "weights" / "mobilenet_v2_imagenet.pth"
    network = ["-d", "market1501", "-a", "mobilenet_v2", "--weights", weights]
    untrained = ccreid(capfd, monkeypatch, "eval", *network, "--height", 128, "--width", 64)
    assert untrained["mAP"] == pytest.approx(0.096, abs=0.005)  # the reference's own figure
    for file in (tmp_path / "data").rglob("*.jpg"):  # a third of the people is enough to learn from, and to score
        if int(file.name.split("_")[0]) % 3:
            file.unlink()
    batches = ["-b", 64, "--num-instances", 8, "--iters", 8, "--lr", 7e-4, "--epochs", 1, "--eps", 0.5, "--no-report"]
    result = ccreid(capfd, monkeypatch, "train", *network, *SIZE, *batches, "--name", "mini")
    assert result["last"]["mAP"] > 0.085  # 0.073 where the steps change nothing, 0.094 now


@pytest.mark.gpu
def test_the_toy_recipe_learns_on_a_gpu(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result = ccreid(capfd, monkeypatch, "train", "-d", "toy", "--device", "cuda", "--name", "gpu")
    assert result["last"]["mAP"] > 0.85
