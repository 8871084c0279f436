"""A running mean of the network's weights beside a method: steadier than the network after any one step.

As the teacher of Tarvainen and Valpola (arXiv 1703.01780), but nothing is learnt from it: it is what a run gives.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.interface import Method
from ccreid_cli.models.reid_net import ReidNet


class WeightAveraging:
    """Adds to a method the mean of its network's weights and batch-norm statistics, taken after every step.

    Args:
        method: What a step learns from.
        model: The network that is trained.
        decay: Share of the mean that a step keeps, between 0 and 1.
    """

    def __init__(self, method: Method, model: ReidNet, decay: float) -> None:
        self._method = method
        self._mean = copy.deepcopy(model).requires_grad_(requires_grad=False)
        self._new_share = 1 - decay
        self._num_averaged = 0
        # PyTorch's AveragedModel copies its count to the GPU for each of hundreds of tensors, and waits each time.
        pairs = list(zip(_tensors(self._mean), _tensors(model), strict=True))
        self._means = [mean for mean, _ in pairs if mean.is_floating_point()]
        self._values = [value for mean, value in pairs if mean.is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    def begin_epoch(self, epoch: int, features: SplitRows, labels: Tensor, camera_ids: Tensor) -> None:
        """Let the method start from the labels."""
        self._method.begin_epoch(epoch, features, labels, camera_ids)

    def loss(self, features: Tensor, inputs: Tensor, part: Batch) -> Tensor:
        """Return the method's loss."""
        return self._method.loss(features, inputs, part)

    def after_step(self, features: Tensor, batch: Batch) -> None:
        """Let the method take in the step, then move the mean towards the network; the first step's is the network."""
        self._method.after_step(features, batch)
        share = self._new_share if self._num_averaged else 1.0
        with torch.no_grad():
            torch._foreach_lerp_(self._means, self._values, share)
            for mean, value in self._counters:
                mean.copy_(value)
        self._num_averaged += 1

    def evaluated(self) -> ReidNet:
        """Return the network whose weights are the mean."""
        return self._mean

    def state_dict(self) -> dict[str, Any]:
        """Return the method's state and how many steps there were; a checkpoint holds the evaluated network itself."""
        return {"method": self._method.state_dict(), "num_averaged": self._num_averaged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: It does not fit the method.
        """
        self._method.load_state_dict(state["method"])
        self._num_averaged = state["num_averaged"]


def _tensors(model: ReidNet) -> list[Tensor]:
    return [value.detach() for value in chain(model.parameters(), model.buffers())]
