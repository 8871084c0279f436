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


@dataclass(frozen=True)
class Milestones:
    """The base rate, times `factor` from each of `epochs` on."""

    base: float
    epochs: tuple[int, ...]
    factor: float = 0.1

    def __call__(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step."""
        return self.base * self.factor ** sum(epoch >= milestone for milestone in self.epochs)


@dataclass(frozen=True)
class WarmUp:
    """Another schedule, times a share that rises in a line from `factor` to 1 over the steps of the first epochs.

    Args:
        then: That schedule.
        epochs: How many epochs the rise takes.
        steps: Steps of an epoch.
        factor: The share at the first step.
    """

    then: LearningRate
    epochs: int
    steps: int
    factor: float

    def __call__(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step."""
        done = min(1.0, (epoch + step / self.steps) / self.epochs)
        return self.then(epoch, step) * (self.factor + (1 - self.factor) * done)


def learning_rate(config: TrainConfig) -> LearningRate:
    """Return the schedule that a run's settings ask for."""
    found: LearningRate = StepDecay(config.lr, config.step_size)
    if config.milestones:
        found = Milestones(config.lr, config.milestone_epochs())
    return WarmUp(found, config.warmup, config.iters, config.warmup_factor) if config.warmup else found


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use a learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value
