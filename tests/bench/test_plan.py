from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import measured_labels
import numpy as np
import oracles
import pytest
import tiny
import torch

from ccreid_cli.bench.base import StageResult
from ccreid_cli.bench.plan import (
    Rates,
    Workload,
    bytes_of_labels,
    bytes_per_epoch,
    bytes_per_step,
    memory_per_gpu,
    plan_recipe,
    rates_from_results,
    scale_batch,
    seconds_per_epoch,
)
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import UsageError

RATES = Rates(extract=1000, step=100, neighbors=1e12, jaccard=10_000, clustering=50_000, step_bytes=1e6)


def test_one_process_exchanges_nothing() -> None:
    alone = Workload(1000, 1)
    assert sum(bytes_per_step(alone).values()) == 0
    assert sum(bytes_per_epoch(alone).values()) == 0


def test_bytes_that_move() -> None:
    work = Workload(
        1000, 4, dim=8, batch_size=64, parameters=10, height=4, width=2, k1=5, reciprocal=2, expanded=3, averaged=7
    )
    assert bytes_per_step(work) == {
        "gradients": 2 * 3 / 4 * 40,
        "batch features": 3 / 4 * 64 * 32,
        "images": 3 / 4 * 16 * 24,
    }
    found = bytes_per_epoch(work)
    assert found["columns"] == 750 * 32  # one block of columns
    assert bytes_per_epoch(replace(work, dim=256))["columns"] == 750 * 4 * 64
    assert found["neighbours"] == 250 * 0.75 * 8 * 5
    assert found["sets"] == pytest.approx(750 * (1 - math.exp(-2 / 4)) * (4 * 3 + 4))
    assert found["sparse rows"] == pytest.approx(750 * (1 - math.exp(-5 / 4)) * (8 * 3 + 8) + 2 * 250 * (8 * 7 + 8))
    assert found["labels"] == 10 * 750 * 8
    assert bytes_of_labels(work)["features passing"] == 2 * 750 * 32


@pytest.mark.skipif(sys.platform != "linux", reason="counts by Linux's tcp_info")
def test_bytes_of_labels_are_those_on_the_wire(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = torch.from_numpy(oracles.unit_rows(rng, 1000, 64, clusters=100))
    counted = tiny.call_in_ranks(measured_labels.received_for_labels, 2, tmp_path, rows, 1_000_000)
    assert [known for _, known in counted] == pytest.approx([1_000_000] * 2, rel=0.002)
    planned = sum(bytes_of_labels(measured_labels.workload(rows, 2)).values())
    assert sum(labels for labels, _ in counted) / 2 == pytest.approx(planned, rel=0.02)


def test_memory_is_linear_in_the_images() -> None:
    small, large = (memory_per_gpu(Workload(size, 8), RATES) for size in (1_000_000, 10_000_000))
    assert large["labelling"] == pytest.approx(10 * small["labelling"])
    assert large["store"] == pytest.approx(10 * small["store"])
    assert small["store"] == 1_000_000 / 8 * 256 * 128 * 3
    assert small["steps"] == 16 * 23_510_000 + 1e6 * 256 / 8
    assert small["labelling"] > 1_000_000 / 8 * 4 * 2048


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
