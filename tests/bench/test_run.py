from __future__ import annotations

import json
import mmap
from pathlib import Path

import baseline
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from ccreid_cli.bench import measure
from ccreid_cli.bench import run as bench
from ccreid_cli.bench import stages as bench_stages
from ccreid_cli.bench.base import BenchSettings, StageResult
from ccreid_cli.bench.plan import (
    Rates,
    Workload,
    bytes_per_epoch,
    bytes_per_step,
    memory_per_gpu,
    plan_recipe,
    rates_from_results,
    scale_batch,
    seconds_per_epoch,
)
from ccreid_cli.bench.run import project_epoch, read_results, run_bench
from ccreid_cli.bench.synthetic import made_cameras, made_features, write_images
from ccreid_cli.cli import bench as command
from ccreid_cli.cli import output
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.pseudo_labels.pipeline import ClusterSettings, pseudo_labels

CONFIG = TrainConfig(arch="tiny", height=32, width=16, precision="fp32", device="cpu", k1=8, k2=3, eps=0.5)
SETTINGS = BenchSettings(CONFIG, 64, 16, dim=16, num_queries=30, num_gallery=90, budget=0.02)
CPU = torch.device("cpu")
RATES = Rates(extract=1000, step=100, neighbors=1e12, jaccard=10_000, clustering=50_000, step_bytes=1e6)


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure._PRODUCT_SIDE, "cpu", 64)
    monkeypatch.setattr(measure, "_COPIED_BYTES", 1 << 16)


def test_every_stage_gives_its_rows() -> None:
    found = run_bench(["all"], SETTINGS)
    rows = {row.stage: row for row in found["results"]}
    assert list(rows) == ["store build", "store read", "extract", "labels", "step", "eval"]
    for row in rows.values():
        assert not row.error
        assert row.seconds > 0 and row.rate == pytest.approx(row.count / row.seconds)
        assert row.ceiling_share is None or row.ceiling_share > 0
    assert rows["labels"].parts.keys() == {"neighbors", "jaccard", "clustering"}
    assert rows["step"].count == 16 and rows["extract"].count == 64 and rows["eval"].count == 30
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


def test_made_features_are_unit_rows_with_overlapping_identities() -> None:
    features, ids = made_features(3000, 64)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3000))
    assert torch.equal(features, made_features(3000, 64)[0])
    found = pseudo_labels(features, ClusterSettings(eps=0.5))
    assert 0.1 < found.num_outliers / 3000 < 0.7
    assert 30 < found.num_clusters < 176  # of 176 identities


def test_written_images_are_like_the_real_ones(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    assert paths == sorted(paths) and len(paths) == 3
    assert all(1500 < path.stat().st_size < 4000 for path in paths)


def test_peak_memory_sees_what_is_freed_again() -> None:
    # Straight from the system: an allocator may have kept as much from an earlier test.
    with measure.PeakMemory(CPU) as memory, mmap.mmap(-1, 64 << 20) as pages:
        pages.write(bytes(1) * (64 << 20))
    if memory.extra_bytes is None:
        pytest.skip("this system does not tell")
    assert 60e6 < memory.extra_bytes < 300e6


def test_measure_takes_the_median_and_leaves_the_warm_up_out() -> None:
    ran = []
    found = measure.measure(lambda: ran.append(0), CPU, budget=60, most=3)
    assert found.runs == len(ran) == 4 and len(found.value_seconds) == 3
    assert measure.measure(lambda: None, CPU, budget=0.0).runs == 1


def test_baseline_labels_are_the_same() -> None:
    features = np.load(Path(__file__).parents[1] / "golden" / "jaccard_labels.npz")["features"]
    for eps in (0.4, 0.6):
        ours = pseudo_labels(features, ClusterSettings(eps=eps)).labels
        np.testing.assert_array_equal(baseline.label(features, eps), ours)


def test_baseline_scores_are_the_same() -> None:
    features, ids = made_features(300, 32)
    cams, rows = made_cameras(300), features.numpy()
    ours = evaluate_features(rows[:60], ids[:60].numpy(), cams[:60], rows[60:], ids[60:].numpy(), cams[60:])
    looped = bench_stages.baseline_average_precision(rows[:60], ids.numpy(), cams, rows[60:])
    np.testing.assert_allclose(looped, ours.average_precision, atol=1e-6)


# The plan ------------------------------------------------------------------------------------------------------------


def test_one_process_exchanges_nothing() -> None:
    alone = Workload(1000, 1)
    assert sum(bytes_per_step(alone).values()) == 0
    assert sum(bytes_per_epoch(alone).values()) == 0


def test_bytes_that_move() -> None:
    work = Workload(
        1000, 4, dim=8, batch_size=64, parameters=10, height=4, width=2, k1=5, expanded=3, averaged=7, pairs=2
    )
    assert bytes_per_step(work) == {
        "gradients": 2 * 3 / 4 * 40,
        "batch features": 3 / 4 * 64 * 32,
        "images": 3 / 4 * 16 * 24,
    }
    assert bytes_per_epoch(work) == {
        "features": 750 * 32,
        "neighbours": 750 * 20,
        "sparse rows": 750 * (8 * 10 + 16),
        "near pairs": 750 * 24,
        "labels": 8000,
    }


def test_memory_is_linear_in_the_images() -> None:
    small, large = (memory_per_gpu(Workload(size, 8), RATES) for size in (1_000_000, 10_000_000))
    assert large["labelling"] == pytest.approx(10 * small["labelling"])
    assert large["store"] == pytest.approx(10 * small["store"])
    assert small["store"] == 1_000_000 / 8 * 256 * 128 * 3
    assert small["steps"] == 16 * 23_510_000 + 1e6 * 256 / 8
    assert small["labelling"] > 1_000_000 * (4 + 2) * 2048


def test_seconds_of_an_epoch() -> None:
    seconds = seconds_per_epoch(Workload(100_000, 4, dim=100, batch_size=256, iters=10), RATES)
    assert seconds["extract"] == 25
    assert seconds["neighbours"] == pytest.approx(2 * 1e10 * 100 / 4e12)
    assert seconds["jaccard"] == 2.5
    assert seconds["clustering"] == 2  # in one process
    assert seconds["train"] == 6.4
    assert seconds["epoch"] == pytest.approx(sum(value for name, value in seconds.items() if name != "epoch"))


def test_more_gpus_need_a_larger_batch() -> None:
    few = scale_batch(Workload(1_000_000, 2), samples_per_bn=64, draws_per_image=4)
    assert (few.batch_size, few.iters) == (256, 15_625)
    many = scale_batch(Workload(1_000_000, 64), samples_per_bn=64, draws_per_image=4)
    assert (many.batch_size, many.iters) == (4096, 977)
    assert scale_batch(Workload(1_000_000, 64), samples_per_bn=64, draws_per_image=4, iters=5).iters == 5


def test_rates_come_from_the_results() -> None:
    parts = {"neighbors": 2.0, "jaccard": 0.5, "clustering": 0.1}
    results = [
        StageResult("extract", count=100, seconds=1.0),
        StageResult("labels", count=1000, seconds=2.6, parts=parts, numbers={"dim": 64}),
        StageResult("step", count=16, seconds=0.5, peak_bytes=3200, numbers={"batch": 16, "parameters": 5}),
    ]
    rates = rates_from_results(results)
    assert rates == Rates(100, 32, 2 * 1e6 * 64 / 2, 2000, 10_000, 200)
    plans = plan_recipe(TrainConfig(), results, rates, [1e6, 1e7], [8, 64], 50e9)
    assert [(plan["images"], plan["gpus"]) for plan in plans] == [
        (1_000_000, 8),
        (1_000_000, 64),
        (10_000_000, 8),
        (10_000_000, 64),
    ]
    with pytest.raises(UsageError, match="extract"):
        rates_from_results(results[1:])


@pytest.mark.parametrize("change", [{"num_images": 0}, {"gpus": 0}, {"bandwidth": 0.0}])
def test_impossible_plans_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="more than 0"):
        Workload(**{"num_images": 10, "gpus": 1, **change})  # type: ignore[arg-type]  # floats are welcome


# The command ---------------------------------------------------------------------------------------------------------


def _run(*arguments: str) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    small = ["-a", "tiny", "--height", "32", "--width", "16", "--device", "cpu", "--precision", "fp32", "--dim", "16"]
    output.talk.cache_clear()  # whatever terminal an earlier test made up
    output._results.cache_clear()
    result = CliRunner().invoke(app, ["bench", *arguments, *small, "--budget", "0.02", "--progress", "none"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def test_command_and_plan(tmp_path: Path) -> None:
    shown = _run("store", "labels", "-n", "64")
    for word in ("store build", "labels", "of ceiling", "ceilings measured here", "predicted for market1501"):
        assert word in shown
    written = tmp_path / "bench.json"
    written.write_text(_run("all", "-n", "64", "-b", "16", "--queries", "20", "--gallery", "60", "--json"))
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
