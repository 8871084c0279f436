"""Cluster Contrast with inter-camera proxies: a cluster as each camera sees it pulls in its images from all others.

After the camera variant of PPLR (Cho et al., CVPR 2022), with every proxy of the own cluster as a positive and moving
proxies. Their weight follows the share of images in clusters that several cameras see: in a weak network most clusters
are one camera's own, and their proxies would only tighten them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.cluster_contrast import ClusterContrast
from ccreid_cli.method.memory import ClusterMemory, cluster_centroids
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.pseudo_labels.cameras import cross_camera_share

TEMPERATURE = 0.07
MOMENTUM = 0.2
NUM_NEGATIVES = 50
"""Most similar proxies of other clusters that a feature is compared with."""


class CameraContrast(ClusterContrast):
    """Adds to the loss of Cluster Contrast one against the proxies of (cluster, camera) pairs.

    With a single camera there are no proxies, and it is Cluster Contrast.

    Args:
        model: The network, on its device.
        config: As for `ClusterContrast`, and the proxies' weight.
    """

    def __init__(self, model: ReidNet, config: TrainConfig) -> None:
        super().__init__(model, config)
        self._proxies: CameraProxies | None = None

    def begin_epoch(self, epoch: int, features: SplitRows, labels: Tensor, camera_ids: Tensor) -> None:
        """Start centroids and proxies from the clusters."""
        super().begin_epoch(epoch, features, labels, camera_ids)
        self._proxies = None
        if self.config.proxy_weight > 0 and len(torch.unique(camera_ids)) > 1:
            self._proxies = CameraProxies.of(features, labels, camera_ids)

    def loss(self, features: Tensor, inputs: Tensor, part: Batch) -> Tensor:
        """Add the proxies' loss, weighed."""
        loss = super().loss(features, inputs, part)
        if self._proxies is None:
            return loss
        weight = self.config.proxy_weight * self._proxies.share
        return loss + weight * self._proxies.loss(features, part.targets)

    def after_step(self, features: Tensor, batch: Batch) -> None:
        """Move centroids and proxies towards the batch."""
        super().after_step(features, batch)
        if self._proxies is not None:
            self._proxies.update(features, batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the centroids, and the proxies where there are any."""
        proxies = {} if self._proxies is None else {"proxies": self._proxies.state_dict()}
        return {**super().state_dict(), **proxies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: It does not fit the features.
        """
        super().load_state_dict({key: value for key, value in state.items() if key != "proxies"})
        device = next(self.model.parameters()).device
        self._proxies = CameraProxies.restored(state["proxies"], device) if "proxies" in state else None


class CameraProxies:
    """One unit vector per (cluster, camera) pair that has images: their mean feature, moved by every image.

    Args:
        vectors: (P, D) unit rows.
        numbers: (C, cameras) int64 row of each pair, on the CPU; -1 for pairs without images.
        share: Of the clustered images, those in clusters that several cameras see.
    """

    def __init__(self, vectors: Tensor, numbers: Tensor, share: float) -> None:
        self.share = share
        self._memory = ClusterMemory(vectors, TEMPERATURE, MOMENTUM)
        self._numbers = numbers
        self._cluster_of = torch.nonzero(numbers >= 0)[:, 0].to(vectors.device)  # pairs are numbered in this order

    @classmethod
    def of(cls, features: SplitRows, labels: Tensor, camera_ids: Tensor) -> CameraProxies:
        """Make them from the features (N, D), clusters (N,) and cameras (N,) of all training images."""
        numbers, rows = _number_pairs(labels, camera_ids)
        share = cross_camera_share(labels.numpy(), camera_ids.numpy())
        return cls(cluster_centroids(features, rows), numbers, share)

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> CameraProxies:
        """Return those that `state_dict` described."""
        return cls(state["vectors"].to(device), state["numbers"], state["share"])

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what they do."""
        return {"vectors": self._memory.centroids.clone(), "numbers": self._numbers, "share": self.share}

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each feature, with equal weight on every proxy of its cluster, against the hardest others.

        Args:
            raw: (b, D) features, normalised here.
            targets: (b,) int64 clusters.

        Returns:
            The mean, a float32 scalar.
        """
        with torch.autocast(raw.device.type, enabled=False):
            features = functional.normalize(raw.to(torch.float32), dim=1)
            logits = features @ self._memory.centroids.t() / TEMPERATURE
            own = targets.to(raw.device, non_blocking=raw.is_cuda)[:, None] == self._cluster_of
            others = logits.masked_fill(own, float("-inf"))
            hardest = others.topk(min(NUM_NEGATIVES, others.shape[1]), dim=1).values
            positives = logits.masked_fill(~own, float("-inf"))
            total = torch.logsumexp(torch.cat([positives, hardest], dim=1), dim=1)
            mean_positive = torch.where(own, logits, 0.0).sum(dim=1) / own.sum(dim=1)
            return (total - mean_positive).mean()

    def update(self, features: Tensor, batch: Batch) -> None:
        """Move the proxy of each image's cluster and camera towards the image, one image after another.

        Args:
            features: (B, D) of the whole batch, not normalised.
            batch: Their clusters and cameras.
        """
        self._memory.update(features, self._numbers[batch.targets, batch.camera_ids])


def _number_pairs(labels: Tensor, camera_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Number the (cluster, camera) pairs that have images, cluster by cluster.

    Returns:
        (C, cameras) int64 numbers, -1 for pairs without images; and (N,) the number of each image, -1 for outliers.
    """
    num_cameras = int(camera_ids.max()) + 1
    clustered = labels >= 0
    pairs = labels * num_cameras + camera_ids
    present, numbers = np.unique(pairs[clustered].numpy(), return_inverse=True)
    table = torch.full((int(labels.max()) + 1, num_cameras), -1, dtype=torch.int64)
    table.view(-1)[torch.from_numpy(present)] = torch.arange(len(present))
    rows = torch.full_like(labels, -1)
    rows[clustered] = torch.from_numpy(numbers.reshape(-1))
    return table, rows
