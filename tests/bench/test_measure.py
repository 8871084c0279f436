from __future__ import annotations

import mmap

import pytest
import torch
from pretended_gpu import pretended

from ccreid_cli.bench.measure import PeakMemory, measure

CPU = torch.device("cpu")


def test_peak_memory_sees_what_is_freed_again() -> None:
    # Straight from the system: an allocator may have kept as much from an earlier test.
    with PeakMemory(CPU) as memory, mmap.mmap(-1, 64 << 20) as pages:
        pages.write(bytes(1) * (64 << 20))
    if memory.extra_bytes is None:
        pytest.skip("this system does not tell")
    assert 60e6 < memory.extra_bytes < 300e6


def test_measure_takes_the_median_and_leaves_the_warm_up_out() -> None:
    ran = []
    found = measure(lambda: ran.append(0), CPU, budget=60, most=3)
    assert len(ran) == 4 and len(found.value_seconds) == 3
    ran.clear()
    assert len(measure(lambda: ran.append(0), CPU, budget=0.0).value_seconds) == len(ran) == 1
    with pretended() as gpu:
        ran.clear()
        assert len(measure(lambda: ran.append(0), gpu.device, budget=0.0).value_seconds) == 1 and len(ran) == 2
