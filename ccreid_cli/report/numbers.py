"""Values of records that may be damaged, metrics as arrays, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Metrics = Iterable[Mapping[str, Any]]

STAGES = ("extract", "neighbors", "jaccard", "clustering", "train", "evaluate")
"""Stages of an epoch that are shown one by one; the rest is ``other``."""


def number(value: object) -> float:
    """Return a finite number as it is, anything else as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if math.isfinite(value) else math.nan


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping as it is, anything else that a damaged record may hold as an empty one."""
    return value if isinstance(value, Mapping) else {}


def series(metrics: Metrics, key: str) -> NDArray[np.float64]:
    """Return one metric over the epochs, NaN where a line does not have it."""
    return np.array([number(line.get(key)) for line in metrics], dtype=np.float64)


def epoch_numbers(metrics: Metrics) -> NDArray[np.float64]:
    """Return the epochs' numbers, from 1."""
    return series(metrics, "epoch") + 1


def stage_seconds(metrics: Metrics) -> dict[str, NDArray[np.float64]]:
    """Return the seconds of every stage over the epochs, in the order of `STAGES`; stages that took none are left out.

    Stages outside `STAGES` (the memory, saving) are summed as ``other``.
    """
    lines = [as_mapping(line.get("seconds")) for line in metrics]
    stages = {name: np.nan_to_num(series(lines, name)) for name in STAGES}
    rest = [sum(number(value) for name, value in line.items() if name not in STAGES) for line in lines]
    stages["other"] = np.nan_to_num(np.array(rest, dtype=np.float64))
    return {name: values for name, values in stages.items() if values.any()}


def total_seconds(metrics: Metrics) -> float:
    """Return the time of all epochs."""
    return float(sum(values.sum() for values in stage_seconds(metrics).values()))


def count(value: float | None) -> str:
    """Return a whole number with separators, a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{round(value):,}"


def decimal(value: float | None, digits: int = 1) -> str:
    """Return a number with so many decimals, a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Return a time as ``48 s``, ``6 min 40 s`` or ``2 h 44 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
