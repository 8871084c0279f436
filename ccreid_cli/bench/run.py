"""`ccreid bench`: how fast each stage of training is here, and how long a whole epoch would take.

The stages call the functions that training calls, on made inputs of a given size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ccreid_cli.bench.base import Bench, BenchSettings, StageResult, check_sizes
from ccreid_cli.bench.stages import time_evaluation, time_extraction, time_labels, time_store
from ccreid_cli.bench.training_step import time_step
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError, DeviceError, UsageError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.machine.device import is_out_of_memory

Stage = Callable[[Bench], list[StageResult]]

STAGES: dict[str, Stage] = {
    "store": time_store,
    "extract": time_extraction,
    "labels": time_labels,
    "step": time_step,
    "eval": time_evaluation,
}
"""What can be measured, in the order of an epoch."""


def run_bench(names: Sequence[str], settings: BenchSettings, reporter: Reporter | None = None) -> dict[str, Any]:
    """Measure stages one after another.

    Args:
        names: Of `STAGES`; ``all`` for all of them.
        settings: What to measure.
        reporter: Where progress goes.

    Returns:
        ``machine`` (device and ceilings), ``results`` (one `StageResult` per row) and ``epoch`` (see `project_epoch`).

    Raises:
        UsageError: There is no such stage, or a setting is out of range.
        DeviceError: The device cannot be used.
    """
    reporter = reporter or SilentReporter()
    check_sizes(settings)
    for name in names:
        if name not in {*STAGES, "all"}:
            hint = f"{did_you_mean(name, STAGES)} Stages: {', '.join(STAGES)}, all."
            raise UsageError(f'there is no stage "{name}" to measure.', hint.strip())
    bench = Bench(settings, reporter)
    chosen = [name for name in STAGES if name in names or "all" in names]
    results = [result for name in chosen for result in _guarded(name, STAGES[name], bench)]
    machine = {
        "device": str(bench.device),
        "reason": bench.choice.reason,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **bench.machine.as_json(),
    }
    return {"machine": machine, "results": results, "epoch": project_epoch(results, settings.config)}


def _guarded(name: str, stage: Stage, bench: Bench) -> list[StageResult]:
    """Measure a stage; one that does not fit into memory becomes a row that says so."""
    bench.reporter.message(f"measuring {name}")
    message = ""
    try:
        return stage(bench)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = "out of memory; try a smaller -n or -b"
    except DeviceError as error:
        message = f"{error.message} {error.hint or ''}".strip()
    bench.forget_model()  # after the except block: the error holds the tensors of the failed stage
    if bench.on_gpu:
        torch.cuda.empty_cache()
    return [StageResult(name, error=message)]


def project_epoch(results: Sequence[StageResult], config: TrainConfig) -> dict[str, float]:
    """Predict an epoch of a recipe from what was measured at other sizes.

    Extraction and steps scale with the images, labels by `scale_labels`, evaluation with queries × gallery. The sizes
    are the published ones of the recipe's dataset.

    Args:
        results: What was measured. Where a stage was measured at several sizes, the largest counts.
        config: The recipe.

    Returns:
        Seconds of ``extract``, ``labels`` and ``train`` of an epoch and ``evaluate`` of an evaluation, as far as
        measured; with all of them also ``epoch`` (evaluations spread over the epochs) and ``run``.
    """
    measured = {result.stage: result for result in results if not result.error}
    sizes = published_sizes(config)
    if sizes is None:
        return {}
    num_train, num_queries, num_gallery = sizes
    seconds: dict[str, float] = {}
    if extract := measured.get("extract"):
        seconds["extract"] = num_train / extract.rate
    if labels := measured.get("labels"):
        seconds["labels"] = scale_labels(labels, num_train)
    if step := measured.get("step"):
        seconds["train"] = config.iters * config.batch_size / step.rate
    if extract and (evaluation := measured.get("eval")):
        pairs = evaluation.numbers["queries"] * evaluation.numbers["gallery"]
        scoring = evaluation.seconds * num_queries * num_gallery / pairs
        seconds["evaluate"] = (num_queries + num_gallery) / extract.rate + scoring
    if len(seconds) == 4:
        num_evaluations = -(-config.epochs // config.eval_step)
        once = seconds["extract"] + seconds["labels"] + seconds["train"]
        seconds["run"] = once * config.epochs + num_evaluations * seconds["evaluate"]
        seconds["epoch"] = seconds["run"] / config.epochs
    return seconds


def scale_labels(labels: StageResult, num_images: int) -> float:
    """Predict the seconds of pseudo-labels for N images from those for n: neighbours grow with N², the rest with N."""
    scale = num_images / labels.count
    neighbors = labels.parts.get("neighbors", 0.0)
    return neighbors * scale**2 + (labels.seconds - neighbors) * scale


def published_sizes(config: TrainConfig) -> tuple[int, int, int] | None:
    """Return the training, query and gallery images of the recipe's dataset, when they are published."""
    if config.dataset not in CATALOG:
        return None
    train, query, gallery = (counts.num_images for counts in CATALOG[config.dataset].counts)
    return (train, query, gallery) if train and query and gallery else None


def read_results(path: Path) -> list[StageResult]:
    """Read back what `ccreid bench --json` printed, for example on another machine.

    Raises:
        DataError: The file is missing or is something else.
    """
    hint = "Make it with `ccreid bench all --json > FILE`."
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["results"]
        names = {one.name for one in fields(StageResult)}
        return [StageResult(**{name: value for name, value in row.items() if name in names}) for row in rows]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no result of `ccreid bench`.", hint) from error
