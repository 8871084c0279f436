"""Bytes and seconds that labels take in several processes: what the plan predicts beside what was measured.

`PYTHONPATH=tests/support python tests/measure_labels.py 256 20000,50000,100000 1,2,4`: dimensions, numbers of images,
numbers of processes. Features are made, 10 images an identity; each process has one thread. The rates that seconds are
predicted from are those of the fewest images in one process, as `bench` would measure them.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import measured_labels
import numpy as np
import tiny
import torch

from ccreid_cli.bench.plan import Rates, Workload, bytes_of_labels

STAGES = ("neighbors", "jaccard", "clustering")


def made_features(total: int, dim: int) -> torch.Tensor:
    """Unit rows, (total, dim) float32, in random order, around total / 10 centres; total is a multiple of 10."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((total // 10, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    owners = rng.permutation(np.repeat(np.arange(total // 10), 10))
    rows = centres[owners] + rng.standard_normal((total, dim), dtype=np.float32) * np.float32(0.6 / dim**0.5)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def measured(rows: torch.Tensor, world: int) -> tuple[dict[str, float], float, float]:
    """Return seconds of each stage, those of the slowest process; mean bytes received; bytes per second."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "rows.npy", rows.numpy())
        file = Path(folder) / "rows.npy"
        found = tiny.call_in_ranks(measured_labels.seconds_of_labels, world, file.parent, file, timeout=3000)
    seconds = {stage: max(part[0][stage] for part in found) for stage in STAGES}
    return seconds, sum(part[1] for part in found) / world, min(part[2] for part in found)


def predicted(work: Workload, rates: Rates, bandwidth: float) -> float:
    """Return the seconds of labels that the plan predicts: its stages, and the exchange of their bytes."""
    rows, gpus = work.num_images, work.gpus
    stages = 2 * rows**2 * work.dim / (gpus * rates.neighbors) + rows / (gpus * rates.jaccard) + rows / rates.clustering
    return stages + (sum(bytes_of_labels(work).values()) / bandwidth if gpus > 1 else 0)


def main() -> None:
    """Print one line for each number of images and processes."""
    dim = int(sys.argv[1])
    totals, worlds = (list(map(int, text.split(","))) for text in sys.argv[2:4])
    rates = None
    for total in totals:
        rows = made_features(total, dim)
        work = measured_labels.workload(rows, 1)
        for world in worlds:
            seconds, received, bandwidth = measured(rows, world)
            if rates is None:
                searched = 2 * total**2 * dim / seconds["neighbors"]
                rates = Rates(1, 1, searched, total / seconds["jaccard"], total / seconds["clustering"])
            here = replace(work, gpus=world)
            planned, bytes_planned = predicted(here, rates, bandwidth), sum(bytes_of_labels(here).values())
            took, stages = sum(seconds.values()), ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
            print(
                f"{total:,} images, {world} processes: {planned:.1f} s predicted, {took:.1f} s measured ({stages}), "
                f"{planned / took - 1:+.0%}; "
                f"{bytes_planned:,.0f} bytes predicted, {received:,.0f} counted"
                + (f", {bytes_planned / received - 1:+.2%}" if received else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
