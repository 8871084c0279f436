"""The batches of an epoch: a pure function of the settings, the labels and (epoch, step)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.images.augment import draw_augmentation
from ccreid_cli.machine.device import derived_seed
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.sampling import sample_epoch


class EpochBatches:
    """Draws every batch of one epoch, the same in every process and after every resume.

    Args:
        config: The run's settings.
        labels: (N,) int64 pseudo-labels, -1 for outliers.
        camera_ids: (N,) int64 cameras of the images.
        epoch: From 0.
    """

    def __init__(self, config: TrainConfig, labels: torch.Tensor, camera_ids: torch.Tensor, epoch: int) -> None:
        self._config, self._labels, self._camera_ids, self._epoch = config, labels, camera_ids, epoch
        self._rows = sample_epoch(
            labels.numpy(),
            camera_ids.numpy(),
            batch_size=config.batch_size,
            num_instances=config.num_instances,
            num_batches=config.iters,
            use_cameras=config.use_cameras,
            generator=np.random.default_rng(derived_seed("sample", config.seed, epoch)),
        )

    def indices_of(self, number: int) -> NDArray[np.int64] | None:
        """Return the images of a step's batch, (B,) their rows; None past the last step."""
        return self._rows[number] if number < len(self._rows) else None

    def __getitem__(self, number: int) -> Batch:
        """Return the batch of a step, with its augmentation and the seed of random layers."""
        config, indices = self._config, self._rows[number]
        step = (config.seed, self._epoch, number)
        generator = torch.Generator().manual_seed(derived_seed("augment", *step))
        plan = draw_augmentation(len(indices), config.height, config.width, generator, config.colour_jitter)
        rows = torch.from_numpy(indices)
        return Batch(indices, self._labels[rows], self._camera_ids[rows], plan, derived_seed("network", *step))
