"""Learning rates: functions of where a run is, so that a resumed run needs no state for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ccreid_cli.core.config import TrainConfig


class LearningRate(Protocol):
    """A schedule. One that changes within an epoch (warm-up) uses `step`."""

    def __call__(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step, both counted from 0."""


@dataclass(frozen=True)
class StepDecay:
    """The base rate, times `factor` after every `every` epochs (Cluster Contrast, section 4.2)."""

    base: float
    every: int
    factor: float = 0.1

    def __call__(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step."""
        return self.base * self.factor ** (epoch // self.every)


def learning_rate(config: TrainConfig) -> LearningRate:
    """Return the schedule that a run's settings ask for."""
    return StepDecay(config.lr, config.step_size)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use a learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value
