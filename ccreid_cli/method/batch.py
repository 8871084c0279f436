"""What one training step of all processes learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ccreid_cli.images.augment import AugmentPlan


@dataclass(frozen=True)
class Batch:
    """A batch, or a part of one.

    Attributes:
        indices: (B,) rows of the training images.
        targets: (B,) int64 pseudo-label of each image, on the CPU.
        camera_ids: (B,) int64 camera of each image, on the CPU.
        plan: The augmentation of the B images.
        seed: What random layers start from.
        whole: The batch that this is a part of; None for a whole batch.
    """

    indices: NDArray[np.int64]
    targets: Tensor
    camera_ids: Tensor
    plan: AugmentPlan
    seed: int = 0
    whole: Batch | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def slice(self, start: int, stop: int) -> Batch:
        """Return the images [start, stop) as a part of this batch."""
        return Batch(
            self.indices[start:stop],
            self.targets[start:stop],
            self.camera_ids[start:stop],
            self.plan.slice(start, stop),
            self.seed,
            self.whole or self,
        )
