"""The one interface between the training loop and what it learns from.

The trainer and the step know no memory, loss or teacher: they call a `Method`. A new loss with its own memory is one
file beside `cluster_contrast` and one row in `registry.METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.method.batch import Batch
from ccreid_cli.models.reid_net import ReidNet


class Method(Protocol):
    """What a training run learns from. Every process of a run holds one, and all hold the same values.

    Order of the calls: `begin_epoch`; then per step `loss` for each part of the batch that this process computes, the
    backward pass and the optimizer's step, and `after_step`. A run that is resumed within an epoch calls
    `load_state_dict` instead of `begin_epoch`.
    """

    def begin_epoch(self, epoch: int, features: SplitRows, labels: Tensor, camera_ids: Tensor) -> None:
        """Start an epoch from its pseudo-labels.

        Args:
            epoch: Counted from 0.
            features: (N, D) float32 unit rows of all training images, split over the processes.
            labels: (N,) int64 cluster of each image, 0 to C-1; -1 for outliers.
            camera_ids: (N,) int64 camera of each image.
        """

    def loss(self, features: Tensor, inputs: Tensor, part: Batch) -> Tensor:
        """Return the mean loss of a part of the batch, a float32 scalar; nothing is changed.

        The step weighs each part by its share of the batch. What a term must know of the batch as a whole is in
        ``part.whole``.

        Args:
            features: (b, D) the network's output for the part, not normalised.
            inputs: (b, 3, H, W) augmented and normalised images.
            part: The images' targets, cameras and rows.
        """

    def after_step(self, features: Tensor, batch: Batch) -> None:
        """Take in a step after the optimizer's: move memories, or a teacher.

        Args:
            features: (B, D) the network's output for the whole batch of all processes, detached.
            batch: The whole batch.
        """

    def evaluated(self) -> ReidNet:
        """Return the network that is scored, saved and exported; the one that is trained makes the labels."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, at any step: tensors and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state that `state_dict` gave.

        Raises:
            ValueError: It does not fit this method.
        """


MethodFactory = Callable[[ReidNet, TrainConfig], Method]
"""Makes a method for a network on its device and a run's settings."""
