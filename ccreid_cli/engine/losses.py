"""The losses of an epoch's steps, of which each process knows its own part."""

from __future__ import annotations

import math

import torch

from ccreid_cli.core.errors import DataError
from ccreid_cli.machine.distributed import Group


class EpochLosses:
    """The loss of every step of an epoch, kept on the device: writing one waits for nothing.

    Args:
        num_steps: Steps of the epoch.
        group: The processes, whose parts add up.
        saved: (num_steps,) what a checkpoint held of the epoch under way; None at its start.
    """

    def __init__(self, num_steps: int, group: Group, saved: torch.Tensor | None = None) -> None:
        self._group = group
        if saved is None or not group.is_main:  # what was saved is the sum over all processes
            self._parts = torch.zeros(num_steps, device=group.device)
        else:
            self._parts = saved.to(group.device, copy=True)

    def note(self, step: int, part: torch.Tensor) -> None:
        """Keep this process's part of the loss of a step."""
        self._parts[step] = part

    def total(self) -> torch.Tensor:
        """Return (num_steps,) float32 losses of all processes, on the CPU."""
        return self._group.sum_(self._parts.clone()).cpu()

    def mean(self, epoch: int, steps: int) -> float:
        """Return the mean loss of the first `steps` steps; a GPU is waited for.

        Raises:
            DataError: It is infinite or not a number.
        """
        mean = mean_loss(self.total()[:steps])
        if not math.isfinite(mean):
            raise DataError(
                f"the loss is not a number any more (epoch {epoch + 1}, step {steps}).",
                "Try a lower --lr, or --precision fp32. What was saved before stays.",
            )
        return mean


def mean_loss(losses: torch.Tensor) -> float:
    """Return the mean of float32 losses, summed in double precision."""
    return float(losses.double().mean())
