"""Seconds, peak memory, and the highest speeds that this machine reaches."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccreid_cli.machine.host_memory import return_freed_memory
from ccreid_cli.machine.stopwatch import synchronize

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
COPIED_BYTES = 256 << 20
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices that a product is measured with, by kind of device."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PeakMemory:
    """Context manager that measures the peak memory of a block, above what was in use at its start.

    On CUDA what PyTorch allocated; elsewhere the resident memory of the process. Memory that the allocator keeps after
    earlier work is returned to the system first; where the allocator cannot, it counts as in use.

    Args:
        device: Where the block computes.

    Attributes:
        extra_bytes: The result; None where the system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._before = 0
        self.extra_bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            return_freed_memory()
            self._before = _resident_bytes(reset_peak=True)
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated(self._device) if self._on_gpu else _peak_resident_bytes()
        self.extra_bytes = max(0, peak - self._before) if peak else None


def _resident_bytes(*, reset_peak: bool) -> int:
    """Return the resident memory of now; with `reset_peak` the high-water mark starts again here, where it can."""
    if reset_peak:
        try:
            _RESET.write_text("5")
        except OSError:
            return _peak_resident_bytes()  # the mark cannot be lowered: count from it
    return _status("VmRSS") or _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    """Return the high-water mark of the resident memory; 0 where the system does not tell."""
    found = _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else int(found.split()[1]) * 1024


@dataclass(frozen=True)
class Measurement:
    """The times of an action that was repeated.

    Attributes:
        seconds: Median over the runs after the first, which warms up; of the first where there are no others.
        peak_bytes: Peak memory of the first run above what was in use before; None where not known.
        value: Result of the last run.
        value_seconds: Seconds and result of every counted run.
    """

    seconds: float
    peak_bytes: int | None
    value: Any
    value_seconds: list[tuple[float, Any]] = field(default_factory=list, repr=False)


def measure(action: Callable[[], Any], device: torch.device, *, budget: float = 8.0, most: int = 5) -> Measurement:
    """Run an action once to warm up, then repeat it up to `most` times or until `budget` seconds have passed.

    On a GPU it is repeated once at least: the first run loads kernels and times cuDNN's algorithms, for seconds.

    Args:
        action: What to time.
        device: Where it computes; every run ends with a `synchronize`.
        budget: Seconds after which no other run begins.
        most: Counted runs at most.
    """
    started = time.perf_counter()
    with PeakMemory(device) as memory:
        value = action()
        synchronize(device)
    warm_up = (time.perf_counter() - started, value)
    counted: list[tuple[float, Any]] = []
    least = 1 if device.type == "cuda" else 0
    while len(counted) < least or (len(counted) < most and time.perf_counter() - started < budget):
        begin = time.perf_counter()
        value = action()
        synchronize(device)
        counted.append((time.perf_counter() - begin, value))
    timed = counted or [warm_up]
    seconds = statistics.median(seconds for seconds, _ in timed)
    return Measurement(seconds, memory.extra_bytes, value, timed)


def best_seconds(action: Callable[[], Any], device: torch.device, *, budget: float = 1.0) -> float:
    """Return the fastest of the runs that fit into `budget` seconds, at least three, after one that warms up."""
    action()
    synchronize(device)
    started, taken = time.perf_counter(), list[float]()
    while len(taken) < 3 or time.perf_counter() - started < budget:
        begin = time.perf_counter()
        action()
        synchronize(device)
        taken.append(time.perf_counter() - begin)
    return min(taken)


class Machine:
    """The speed of a device at the simplest large operations: the ceilings that stages are compared with.

    Args:
        device: Where to measure; each ceiling is measured when first asked for.
        budget: Seconds of each measurement.
    """

    def __init__(self, device: torch.device, budget: float = 1.0) -> None:
        self.device = device
        self.budget = budget
        self._products: dict[str, float] = {}
        self._copy: float | None = None

    def product_rate(self, precision: str) -> float:
        """Return FLOP/s of a large matrix product in ``fp32``, ``bf16`` or ``fp16``; two for each multiply-add.

        In float32 on the CPU the better of the two libraries that are used: torch's and NumPy's.
        """
        if precision not in self._products:
            side = PRODUCT_SIDE.get(self.device.type, 2048)
            matrix = torch.randn(side, side, device=self.device).to(_DTYPES[precision])
            seconds = best_seconds(lambda: matrix @ matrix, self.device, budget=self.budget)
            if self.device.type == "cpu" and precision == "fp32":
                array = matrix.numpy()
                seconds = min(seconds, best_seconds(lambda: np.matmul(array, array), self.device, budget=self.budget))
            self._products[precision] = 2 * side**3 / seconds
        return self._products[precision]

    def copy_rate(self) -> float:
        """Return bytes/s of a large copy within the device's memory, read and written bytes both counted."""
        if self._copy is None:
            source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=self.device)
            target = torch.empty_like(source)
            self._copy = 2 * COPIED_BYTES / best_seconds(lambda: target.copy_(source), self.device, budget=self.budget)
        return self._copy

    def as_json(self) -> dict[str, Any]:
        """Return what was measured so far."""
        products = {name: round(rate / 1e9, 1) for name, rate in self._products.items()}
        copy = None if self._copy is None else round(self._copy / 1e9, 2)
        return {"matrix_product_gflops": products, "copy_gb_per_second": copy}
