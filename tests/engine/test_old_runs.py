"""A run that ccreid 0.1.0 wrote, stopped in its second epoch, still evaluates, exports and resumes.

``golden/run-0.1.0.zip`` holds its settings, metrics and newest checkpoint (`tiny`'s network and images, ``--save-every
2 --eval-step 2 --deterministic``), and what 0.1.0 itself computed when nothing stopped it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.engine.checkpoint import read_checkpoint
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.engine.start import resume
from ccreid_cli.inference.embedder import load_model
from ccreid_cli.inference.evaluate import score_model
from ccreid_cli.inference.loading import ModelRequest, load_network

ARCHIVE = Path(__file__).parents[1] / "golden" / "run-0.1.0.zip"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    with zipfile.ZipFile(ARCHIVE) as file:
        file.extractall(tmp_path)
    tiny.make_dataset(tmp_path / "data" / "market1501" / "Market-1501-v15.09.15")
    return tmp_path / "run"


@pytest.fixture
def expected() -> dict[str, Any]:
    with zipfile.ZipFile(ARCHIVE) as file:
        content: dict[str, Any] = json.loads(file.read("expected.json"))
    return content


def test_it_resumes_to_what_it_would_have_become(old_run: Path, expected: dict[str, Any]) -> None:
    with tiny.watched() as watch:
        result = resume(RunFolder(old_run), {"data_dir": old_run.parent / "data"})
    assert watch.losses == pytest.approx(expected["losses"][-2:], rel=1e-4)
    assert result["last"]["mAP"] == pytest.approx(expected["result"]["last"]["mAP"], abs=1e-3)
    metrics = RunFolder(old_run).read_metrics()
    for line, old in zip(metrics, expected["metrics"], strict=True):
        assert (line["num_clusters"], line["num_outliers"]) == (old["num_clusters"], old["num_outliers"])
        assert line["loss"] == pytest.approx(old["loss"], rel=1e-4)


def test_it_evaluates(old_run: Path) -> None:
    loaded = load_network(ModelRequest(resume=str(old_run)), old_run.parent, "cpu", SilentReporter())
    found = score_model(
        loaded,
        "market1501",
        data_dir=old_run.parent / "data",
        height=None,
        width=None,
        workers=0,
        batch_size=None,
        precision="auto",
        rerank=False,
        reporter=SilentReporter(),
    )
    assert 0 < found["mAP"] <= 1 and found["num_queries"] == 8


def test_it_gives_features(old_run: Path) -> None:
    embedder = load_model(old_run, device="cpu")
    assert embedder.input_size == (32, 16)
    image = old_run.parent / "data" / "market1501" / "Market-1501-v15.09.15" / "query"
    features = embedder.embed(sorted(image.iterdir())[:2])
    assert features.shape == (2, 16)


def test_its_checkpoint_reads_as_one_of_now(old_run: Path) -> None:
    content = read_checkpoint(next((old_run / "checkpoints").glob("*.pt")))
    centroids = content["training"]["method"]["centroids"]
    assert isinstance(centroids, torch.Tensor) and centroids.shape[1] == 16
    assert "centroids" not in content["training"]
