"""`ccreid bench --plan`: an epoch on many GPUs and many images, predicted from what one process does here.

Bytes are counted exactly as `engine.step` and `pseudo_labels` share the work; seconds follow from measured rates and
the `ASSUMPTIONS`, which every prediction lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ccreid_cli.bench.base import StageResult
from ccreid_cli.bench.run import published_sizes
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import UsageError
from ccreid_cli.machine.split_rows import COLUMNS_PER_BLOCK

ASSUMPTIONS = (
    "every GPU is as fast as the device that was measured; waiting for one another is not counted",
    "exchanges run at the bandwidth given, one direction at a time, and never overlap with computing",
    "the batch holds at least one batch-norm chunk per GPU, and grows with the GPUs where it does not",
    "an epoch draws each image as often as the recipe does on its own dataset",
    "features, neighbours, sparse rows and decoded images are split over the GPUs",
    "rows are in random order",
)

_ENTRY = 8
"""Bytes of an entry of a sparse row: column and value, int32."""
_ADAM = 16
"""Bytes of a parameter: weight, gradient and Adam's two moments, float32."""


@dataclass(frozen=True)
class Rates:
    """What one process does on one device.

    Attributes:
        extract: Images per second, features for labelling.
        step: Images per second, training.
        neighbors: FLOP/s of the neighbour search, 2·N²·D counted, selection included.
        jaccard: Images per second of the sparse Jaccard distance.
        clustering: Images per second of DBSCAN.
        step_bytes: Memory of a step's activations, per image.
    """

    extract: float
    step: float
    neighbors: float
    jaccard: float
    clustering: float
    step_bytes: float = 0.0


@dataclass(frozen=True)
class Workload:
    """What is to be trained, on how many GPUs.

    Attributes:
        num_images: N, training images.
        gpus: W, one process each.
        dim: D, width of the features.
        batch_size: B, images of a step over all GPUs.
        iters: Steps of an epoch.
        parameters: P, trainable numbers of the network.
        height: Rows of an image.
        width: Columns of an image.
        k1: Neighbours per image.
        k2: Neighbours that weights are averaged over.
        reciprocal: Members of a k-reciprocal set, on average.
        expanded: Members of an expanded k-reciprocal set, on average (real features of a first epoch: 13 to 20).
        averaged: Members after averaging over k2 neighbours (real features of a first epoch: 85).
        bandwidth: Bytes per second that a process sends and receives.
    """

    num_images: int
    gpus: int
    dim: int = 2048
    batch_size: int = 256
    iters: int = 200
    parameters: int = 23_510_000
    height: int = 256
    width: int = 128
    k1: int = 30
    k2: int = 6
    reciprocal: float = 10.0
    expanded: float = 20.0
    averaged: float = 85.0
    bandwidth: float = 50e9

    def __post_init__(self) -> None:
        for name in ("num_images", "gpus", "dim", "batch_size", "iters", "bandwidth"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name.replace('_', ' ')} must be more than 0, not {getattr(self, name)}.")

    @property
    def others(self) -> float:
        """The share of anything evenly split that the other processes hold: (W - 1) / W."""
        return (self.gpus - 1) / self.gpus


def bytes_per_step(work: Workload) -> dict[str, float]:
    """Count the bytes that a process receives in one step.

    - gradients: a ring all-reduce passes 2·(W-1)/W·4P bytes through every process;
    - batch features, for the memory update: the others' rows, (W-1)/W·B·4D;
    - images: with the store sharded by rank, the images of its share that others hold, (W-1)/W·B/W·3HW (at most: one
      that repeats in the share comes once).

    The running statistics of batch norm, some hundred kB, are left out.
    """
    return {
        "gradients": 2 * work.others * 4 * work.parameters,
        "batch features": work.others * work.batch_size * 4 * work.dim,
        "images": work.others * work.batch_size / work.gpus * 3 * work.height * work.width,
    }


def bytes_per_epoch(work: Workload) -> dict[str, float]:
    """Count the bytes that a process receives once an epoch: what labels need, and columns for the centroids.

    - columns: of the features, those whose means this process computes, in whole blocks, from the others' rows,
      (W-1)/W·N·4·D/W or a block. The centroids, one row for a cluster, are left out.
    """
    blocks = math.ceil(work.dim / COLUMNS_PER_BLOCK)
    columns = min(work.dim, COLUMNS_PER_BLOCK * math.ceil(blocks / work.gpus))
    return {"columns": work.others * work.num_images * 4 * columns, **bytes_of_labels(work)}


def bytes_of_labels(work: Workload) -> dict[str, float]:
    """Count the bytes that a process receives for labels.

    - features: all rows pass by twice, 2·(W-1)/W·N·4D;
    - neighbours: those of its rows that others have among their own, (W-1)/W·N/W·8·k1;
    - sets: of the distinct rows among `reciprocal` of each of its N/W rows, 4·(k1/2 + 1) bytes and a request of 4;
    - sparse rows: of the distinct rows among k2 of each, 8·expanded bytes, a length and a request; then, to compare
      them, those of half of the others, W/2·N/W·(8·averaged + 8);
    - labels: five sums or minima over 8N bytes, each 2·(W-1)/W of them: how common each column is, neighbours of each
      image, two rounds of components, images at the border.

    Rows are taken to be in random order: of N rows, N/W·d asked for at random find N·(1 - exp(-d/W)) distinct ones.
    """
    rows, share = work.num_images * work.others, work.num_images / work.gpus
    half = round(work.k1 / 2) + 1
    sets, averaged = (1 - math.exp(-count / work.gpus) for count in (work.reciprocal, work.k2 - 1))
    return {
        "features passing": 2 * rows * 4 * work.dim,
        "neighbours": share * work.others * 8 * work.k1,
        "sets": rows * sets * (4 * half + 4),
        "sparse rows": rows * averaged * (_ENTRY * work.expanded + 8)
        + work.gpus // 2 * share * (_ENTRY * work.averaged + 8),
        "labels": 5 * 2 * rows * 8,
    }


def memory_per_gpu(work: Workload, rates: Rates) -> dict[str, float]:
    """Count the bytes that a process holds at its worst moments.

    - labelling: of its share, N/W rows: features, and room for pieces of the others' (2·4D), neighbours (16·k1) and
      averaged sparse rows, with the room to put them together (12·averaged); a table of 16 rows over all columns (64N)
      and 40N of counts and labels;
    - steps: the network and Adam (16P) and what a step of B/W images needs, as measured;
    - store: its shard of the decoded images (N/W·3HW), in the machine's memory or on its disk.
    """
    rows, share = work.num_images, work.num_images / work.gpus
    return {
        "labelling": rows * 104 + share * (8 * work.dim + 16 * work.k1 + 12 * work.averaged),
        "steps": _ADAM * work.parameters + rates.step_bytes * work.batch_size / work.gpus,
        "store": share * 3 * work.height * work.width,
    }


def seconds_per_epoch(work: Workload, rates: Rates) -> dict[str, float]:
    """Predict the seconds of an epoch.

    - extract: N / (W·rate);
    - neighbours: 2·N²·D / (W·rate): the one stage that grows with N²;
    - jaccard: N / (W·rate);
    - clustering: N / rate: its arrays are as long in every process;
    - train: iters·B / (W·rate);
    - exchange: the bytes of an epoch and of all its steps / bandwidth.
    """
    rows, gpus = work.num_images, work.gpus
    moved = sum(bytes_per_epoch(work).values()) + work.iters * sum(bytes_per_step(work).values())
    seconds = {
        "extract": rows / (gpus * rates.extract),
        "neighbours": 2 * rows**2 * work.dim / (gpus * rates.neighbors),
        "jaccard": rows / (gpus * rates.jaccard),
        "clustering": rows / rates.clustering,
        "train": work.iters * work.batch_size / (gpus * rates.step),
        "exchange": moved / work.bandwidth,
    }
    return {**seconds, "epoch": sum(seconds.values())}


def scale_batch(work: Workload, *, samples_per_bn: int, draws_per_image: float, iters: int | None = None) -> Workload:
    """Give every GPU a batch-norm chunk, and an epoch as many steps as its images ask for.

    Args:
        work: With the recipe's batch size.
        samples_per_bn: Images that share batch-norm statistics; B becomes at least W of these chunks.
        draws_per_image: How often an epoch draws an image.
        iters: Steps of an epoch instead.
    """
    batch_size = max(work.batch_size, work.gpus * samples_per_bn)
    steps = iters or max(1, round(draws_per_image * work.num_images / batch_size))
    return replace(work, batch_size=batch_size, iters=steps)


def rates_from_results(results: Sequence[StageResult]) -> Rates:
    """Take the rates from what `run_bench` measured; of a stage measured at several sizes, the largest.

    Raises:
        UsageError: `extract`, `labels` or `step` is missing, or failed.
    """
    found = {result.stage: result for result in results if not result.error}
    missing = [name for name in ("extract", "labels", "step") if name not in found]
    if missing:
        raise UsageError(
            f"a plan needs measurements of extract, labels and step; without result: {', '.join(missing)}.",
            "`ccreid bench all --json > bench.json`, then `ccreid bench --plan --rates bench.json`.",
        )
    labels, step = found["labels"], found["step"]
    parts = labels.parts
    return Rates(
        extract=found["extract"].rate,
        step=step.rate,
        neighbors=2 * labels.count**2 * labels.numbers["dim"] / parts["neighbors"],
        jaccard=_rate(labels.count, parts.get("jaccard", 0.0)),  # which Infomap does without
        clustering=_rate(labels.count, parts.get("clustering", 0.0)),
        step_bytes=(step.peak_bytes or 0) / step.numbers["batch"],
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else math.inf


def predict(work: Workload, rates: Rates) -> dict[str, Any]:
    """Return everything about one number of images and GPUs: bytes moved, memory, seconds, and the batch and steps."""
    return {
        "images": work.num_images,
        "gpus": work.gpus,
        "batch_size": work.batch_size,
        "iters": work.iters,
        "bytes_per_step": bytes_per_step(work),
        "bytes_per_epoch": bytes_per_epoch(work),
        "memory_per_gpu": memory_per_gpu(work, rates),
        "seconds": seconds_per_epoch(work, rates),
    }


def plan_recipe(
    config: TrainConfig,
    measured: Sequence[StageResult],
    rates: Rates,
    images: Sequence[float],
    gpus: Sequence[int],
    bandwidth: float,
) -> list[dict[str, Any]]:
    """Predict a recipe at every number of images on every number of GPUs.

    Args:
        config: The recipe; its own dataset tells how often an epoch draws an image.
        measured: What the rates come from; tells the widths of features and network.
        rates: Measured rates.
        images: Numbers of training images.
        gpus: Numbers of GPUs.
        bandwidth: Bytes per second of a process.

    Returns:
        What `predict` returns, one for each pair.
    """
    for value in images:
        if not 1 <= value < math.inf:
            raise UsageError(f"--images {value:g} is no number of images.", "Example: --images 1e6.")
    found = {result.stage: result for result in measured if not result.error}
    sizes = published_sizes(config)
    draws = config.iters * config.batch_size / (sizes[0] if sizes else 12_936)
    plans = []
    for num_images, num_gpus in product(images, gpus):
        work = Workload(
            num_images=int(num_images),
            gpus=num_gpus,
            dim=int(found["labels"].numbers["dim"]),
            batch_size=config.batch_size,
            iters=config.iters,
            parameters=int(found["step"].numbers["parameters"]),
            height=config.height,
            width=config.width,
            k1=config.k1,
            k2=config.k2,
            bandwidth=bandwidth,
        )
        scaled = scale_batch(work, samples_per_bn=config.samples_per_bn, draws_per_image=draws)
        plans.append(predict(scaled, rates))
    return plans
