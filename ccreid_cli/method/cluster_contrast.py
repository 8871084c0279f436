"""Cluster Contrast as published: one memory with a centroid per cluster (Dai et al., arXiv 2103.11568)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.memory import ClusterMemory, cluster_centroids
from ccreid_cli.models.reid_net import ReidNet


class ClusterContrast:
    """Compares every feature with the centroids of all clusters, and moves the centroids after each step.

    Args:
        model: The network, on its device.
        config: Temperature, momentum and update rule of the memory.

    Attributes:
        memory: The centroids of the epoch under way; None before the first.
    """

    def __init__(self, model: ReidNet, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.memory: ClusterMemory | None = None

    def begin_epoch(self, epoch: int, features: SplitRows, labels: Tensor, camera_ids: Tensor) -> None:
        """Start the memory from the mean feature of each cluster."""
        self.memory = self._memory_of(cluster_centroids(features, labels))

    def loss(self, features: Tensor, inputs: Tensor, part: Batch) -> Tensor:
        """Cross entropy of the similarities to all centroids (equation 2)."""
        return self._started().loss(features, part.targets)

    def after_step(self, features: Tensor, batch: Batch) -> None:
        """Move the centroids towards the batch (equation 3)."""
        self._started().update(features, batch.targets)

    def evaluated(self) -> ReidNet:
        """Return the network that is trained."""
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Return the centroids; nothing before the first epoch."""
        return {} if self.memory is None else {"centroids": self.memory.centroids.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the centroids of `state_dict`.

        Raises:
            ValueError: They are not a matrix of the features' width.
        """
        if not state:
            self.memory = None
            return
        centroids = state.get("centroids")
        width = self.model.embedding_dim
        if not isinstance(centroids, Tensor) or centroids.shape[1:] != (width,):
            raise ValueError(f"the memory must be a tensor `centroids` of width {width}")
        self.memory = self._memory_of(centroids)

    def _memory_of(self, centroids: Tensor) -> ClusterMemory:
        config, device = self.config, next(self.model.parameters()).device
        return ClusterMemory(
            centroids.to(device), temperature=config.temp, momentum=config.momentum, use_hard=config.use_hard
        )

    def _started(self) -> ClusterMemory:
        if self.memory is None:
            raise RuntimeError("begin_epoch or load_state_dict comes first")
        return self.memory
