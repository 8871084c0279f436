"""Bytes that processes receive for labels: what the plan predicts beside what the kernel counted.

`PYTHONPATH=tests/support python tests/measure_wire.py 20000 256 2 4`: images, dimensions, numbers of processes.
Features are made, 10 images an identity.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny
import torch
import wire_in_ranks

from ccreid_cli.bench.plan import bytes_of_labels


def made_features(total: int, dim: int) -> torch.Tensor:
    """Unit rows, (total, dim) float32, in random order, around total / 10 centres; total is a multiple of 10."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((total // 10, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    owners = rng.permutation(np.repeat(np.arange(total // 10), 10))
    rows = centres[owners] + rng.standard_normal((total, dim)) * (0.6 / dim**0.5)
    return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def main() -> None:
    """Print one line for each number of processes."""
    total, dim, *worlds = map(int, sys.argv[1:])
    rows = made_features(total, dim)
    work = wire_in_ranks.workload(rows, 1)
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            found = tiny.call_in_ranks(wire_in_ranks.received_for_labels, world, Path(folder), rows, 0)
        counted = sum(labels for labels, _ in found) / world
        planned = sum(bytes_of_labels(replace(work, gpus=world)).values())
        print(
            f"{world} processes: {planned:,.0f} bytes predicted, {counted:,.0f} counted, {planned / counted - 1:+.2%}"
        )


if __name__ == "__main__":
    main()
