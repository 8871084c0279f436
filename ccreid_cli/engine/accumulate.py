"""Accumulating over micro-batches and processes: batch-norm statistics and, where every bit counts, gradients.

Sums are in double precision and rounded once, so that they do not depend on which process computes which micro-batch.
An Apple GPU has single precision only; it trains alone.
"""

from __future__ import annotations

import torch
from torch import nn

from ccreid_cli.machine.distributed import Group


class RunningStatistics:
    """Accumulates running statistics: after a step they are the mean over its batch-norm chunks, however it was cut.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._all = list(model.buffers())
        self._before = [value.clone() for value in self._all]
        self._moving = [value for value in self._all if value.is_floating_point()]
        self._sums = _zeros(self._moving)

    def remember(self) -> None:
        """Note the statistics before a step."""
        torch._foreach_copy_(self._before, self._all)

    def undo(self) -> None:
        """Go back to before the step, whatever micro-batches of it are done."""
        self.begin_micro_batch()
        for total in self._sums:
            total.zero_()

    def begin_micro_batch(self) -> None:
        """Start every micro-batch from the same statistics."""
        torch._foreach_copy_(self._all, self._before)

    def end_micro_batch(self, weight: float) -> None:
        """Add a micro-batch's statistics; `weight` is its share of the whole step of all processes."""
        for value, total in zip(self._moving, self._sums, strict=True):
            total.add_(value, alpha=weight)

    def finish(self, group: Group) -> None:
        """Take the mean over the micro-batches of all processes."""
        _add_up(self._sums, self._moving, group)


class Gradients:
    """Sums gradients to the same bits, whichever process computed which micro-batch.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [value for value in model.parameters() if value.requires_grad]
        self._sums = _zeros(self._parameters)

    def clear(self) -> None:
        """Forget the micro-batches so far."""
        for total in self._sums:
            total.zero_()

    def end_micro_batch(self) -> None:
        """Add the gradients of a micro-batch, and make room for those of the next."""
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            if parameter.grad is not None:
                total.add_(parameter.grad)
                parameter.grad = None

    def finish(self, group: Group) -> None:
        """Give every process the sum."""
        for parameter in self._parameters:
            parameter.grad = torch.empty_like(parameter)
        _add_up(self._sums, [value.grad for value in self._parameters if value.grad is not None], group)


def _zeros(like: list[torch.Tensor] | list[nn.Parameter]) -> list[torch.Tensor]:
    return [torch.zeros(value.shape, dtype=_widest_dtype(value.device), device=value.device) for value in like]


def _widest_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _add_up(sums: list[torch.Tensor], results: list[torch.Tensor], group: Group) -> None:
    """Write the sums over all processes to `results`, and start anew."""
    if not sums:
        return
    flat = group.sum_(torch.cat([total.reshape(-1) for total in sums]))
    parts = torch.split(flat, [total.numel() for total in sums])
    for total, part, result in zip(sums, parts, results, strict=True):
        result.copy_(part.view(total.shape))
        total.zero_()
