from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer.testing import CliRunner

from ccreid_cli.bench import measure
from ccreid_cli.bench import run as bench
from ccreid_cli.bench.base import BenchSettings, StageResult
from ccreid_cli.bench.run import project_epoch, read_results, run_bench
from ccreid_cli.bench.synthetic import made_features
from ccreid_cli.cli import output
from ccreid_cli.cli.app import build_app
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.models.registry import BACKBONES, BackboneRow

CONFIG = TrainConfig(arch="tiny", height=32, width=16, precision="fp32", device="cpu", k1=8, k2=3, eps=0.5)
SETTINGS = BenchSettings(CONFIG, 64, 16, dim=16, num_queries=30, num_gallery=90, budget=0.02)


@pytest.fixture(autouse=True)
def _small_network_and_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", BackboneRow("two convolutions", lambda: tiny.TinyNet))
    monkeypatch.setitem(measure.PRODUCT_SIDE, "cpu", 64)
    monkeypatch.setattr(measure, "COPIED_BYTES", 1 << 16)


def _run(*arguments: str) -> str:
    small = ["-a", "tiny", "--height", "32", "--width", "16", "--device", "cpu", "--precision", "fp32", "--dim", "16"]
    output.talk.cache_clear()  # whatever terminal an earlier test made up
    output._results.cache_clear()
    result = CliRunner().invoke(build_app(), ["bench", *arguments, *small, "--budget", "0.02", "--progress", "none"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@cache
def printed() -> dict[str, Any]:
    """What `ccreid bench all --json` prints, of small sizes."""
    sizes = ["-n", "64", "-b", "16", "--queries", "30", "--gallery", "90"]
    found: dict[str, Any] = json.loads(_run("all", *sizes, "--json"))
    return found


def test_every_stage_gives_its_rows() -> None:
    found = printed()
    rows = {row["stage"]: row for row in found["results"]}
    assert list(rows) == ["store build", "store read", "extract", "labels", "step", "eval"]
    for row in rows.values():
        assert not row["error"]
        assert row["seconds"] > 0 and row["rate"] == pytest.approx(row["count"] / row["seconds"])
        assert row["ceiling_share"] is None or row["ceiling_share"] > 0
    for name in ("store read", "extract", "step", "eval"):
        assert rows[name]["ratio"] == pytest.approx(rows[name]["baseline_seconds"] / rows[name]["seconds"])
        assert rows[name]["baseline"]
    assert rows["labels"]["parts"].keys() == {"neighbors", "jaccard", "clustering"}
    assert rows["step"]["count"] == 16 and rows["extract"]["count"] == 64 and rows["eval"]["count"] == 30
    assert {"extract", "labels", "train", "evaluate", "epoch", "run"} == found["epoch"].keys()
    assert found["machine"]["matrix_product_gflops"].keys() >= {"fp32"}


def test_growth_measures_four_sizes() -> None:
    settings = BenchSettings(CONFIG, 320, dim=16, growth=True, budget=0.02)
    rows = run_bench(["labels"], settings)["results"]
    assert [row.count for row in rows] == [40, 80, 160, 320]


def test_given_features_are_measured() -> None:
    features, _ = made_features(100, 16)
    (row,) = run_bench(["labels"], BenchSettings(CONFIG, features=features, features_name="mine", budget=0.02))[
        "results"
    ]
    assert row.size == "100 x 16 mine"


def test_a_stage_without_memory_is_a_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> list[StageResult]:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setitem(bench.STAGES, "extract", fails)
    rows = run_bench(["extract", "labels"], SETTINGS)["results"]
    assert rows[0].stage == "extract" and "out of memory" in rows[0].error
    assert not rows[1].error


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> list[StageResult]:
        raise RuntimeError("shapes differ")

    monkeypatch.setitem(bench.STAGES, "extract", fails)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run_bench(["extract"], SETTINGS)


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [(["lables"], SETTINGS, "lables"), (["labels"], BenchSettings(CONFIG, 1), "-n is 1")],
)
def test_what_cannot_be_measured_is_refused(stages: list[str], settings: BenchSettings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_bench(stages, settings)


def test_the_epoch_is_scaled_from_the_sizes_measured() -> None:
    config = TrainConfig(dataset="market1501", batch_size=256, iters=200, epochs=50, eval_step=10)
    results = [
        StageResult("extract", count=100, seconds=1.0),
        StageResult("labels", count=6468, seconds=3.0, parts={"neighbors": 2.0, "jaccard": 0.7, "clustering": 0.3}),
        StageResult("step", count=16, seconds=0.5),
        StageResult("eval", count=1684, seconds=1.0, numbers={"queries": 1684, "gallery": 15913}),
    ]
    seconds = project_epoch(results, config)
    assert seconds["extract"] == pytest.approx(129.36)
    assert seconds["labels"] == pytest.approx(4 * 2 + 2 * 1)
    assert seconds["train"] == pytest.approx(200 * 256 / 32)
    assert seconds["evaluate"] == pytest.approx((3368 + 15913) / 100 + 2)
    once = seconds["extract"] + seconds["labels"] + seconds["train"]
    assert seconds["run"] == pytest.approx(50 * once + 5 * seconds["evaluate"])
    failed = [StageResult("extract", error="out of memory"), *results[1:]]
    assert project_epoch(failed, config).keys() == {"labels", "train"}
    assert project_epoch(results, TrainConfig(dataset="images/of/mine")) == {}


def test_a_table_on_a_terminal() -> None:
    shown = _run("labels", "-n", "64")
    for word in ("labels", "of ceiling", "ceilings measured here", "predicted for market1501"):
        assert word in shown


def test_a_plan_from_measured_rates(tmp_path: Path) -> None:
    written = tmp_path / "bench.json"
    written.write_text(json.dumps(printed()))
    assert {row.stage for row in read_results(written)} >= {"extract", "labels", "step"}
    shown = _run("--plan", "--rates", str(written), "--images", "1e6", "--gpus", "64")
    assert "1,000,000 img, 64 GPU" in shown and "assumed:" in shown
    plan = json.loads(_run("--plan", "--rates", str(written), "--json"))
    assert len(plan["plans"]) == 4 and plan["assumptions"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"results": [3]}'])
def test_other_files_are_no_rates(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(DataError, match="no result"):
        read_results(tmp_path / "other.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "none.json")
