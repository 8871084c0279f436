"""The memory of Cluster Contrast: one unit vector per cluster, compared with every feature of a batch.

Source: Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification", arXiv 2103.11568, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ccreid_cli.machine.split_rows import SplitRows


class ClusterMemory:
    """Centroids of the clusters, the contrastive loss against them, and their momentum update.

    Centroids are float32 and are no parameters: the optimizer does not see them, only `update` changes them.

    Args:
        centroids: (C, D) unit rows, one per cluster. Kept as float32 on the device they are on.
        temperature: Divides the similarities in the loss.
        momentum: Share of the old centroid that an update keeps, 0 to 1.
        use_hard: Update a cluster once per batch, with its least similar sample, not with every sample.
    """

    def __init__(
        self, centroids: Tensor, temperature: float = 0.05, momentum: float = 0.1, use_hard: bool = False
    ) -> None:
        self.centroids = centroids.detach().to(torch.float32, copy=True)
        self.temperature = temperature
        self.momentum = momentum
        self.use_hard = use_hard

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of the similarities to all centroids, divided by the temperature (equation 2).

        Computed in float32 under autocast too. The memory is not changed; call `backward` before `update`.

        Args:
            raw: (B, D) features, normalised here.
            targets: (B,) int64 cluster of each row.

        Returns:
            The mean loss, a float32 scalar.
        """
        with torch.autocast(raw.device.type, enabled=False):
            features = functional.normalize(raw.to(torch.float32), dim=1)
            logits = features @ self.centroids.t() / self.temperature
            return functional.cross_entropy(logits, targets.to(raw.device, non_blocking=raw.is_cuda))

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        """Move centroids towards a batch's features, in place; call it after the optimizer's step.

        Every sample in batch order: ``c <- normalise(momentum * c + (1 - momentum) * f)`` (equation 3). Samples of
        different clusters commute, so the k-th samples of all clusters are applied at once. With `use_hard` only the
        sample of each cluster that is least similar to its centroid before the update counts (the first of equals).

        Args:
            features: (B, D) features of the whole batch, of all processes; normalised here.
            targets: (B,) int64 cluster of each row. Given on the CPU, nothing waits for the GPU.
        """
        if len(targets) == 0:
            return
        device = self.centroids.device
        features = functional.normalize(features.to(device, torch.float32), dim=1)
        ranks = _ranks_within_clusters(targets)
        sizes = torch.bincount(ranks).tolist()  # waits for a GPU that holds the targets
        order = ranks.argsort(stable=True)
        targets, order = (value.to(device, non_blocking=device.type == "cuda") for value in (targets, order))
        if not self.use_hard:
            for round_ in torch.split(order, sizes):
                self._blend(features[round_], targets[round_])
            return
        similarities = (features * self.centroids[targets]).sum(dim=1)
        if device.type == "mps":
            similarities = similarities.cpu()  # Apple's sort of whole numbers is wrong in places (pytorch #155560)
        by_similarity = similarities.argsort(stable=True)
        clusters = targets.to(by_similarity.device)[by_similarity]
        hardest = by_similarity[_by_rank(clusters)[: sizes[0]]].to(device)
        self._blend(features[hardest], targets[hardest])

    def _blend(self, features: Tensor, clusters: Tensor) -> None:
        """Update distinct `clusters` (R,) with one unit feature (R, D) each."""
        moved = self.momentum * self.centroids[clusters] + (1 - self.momentum) * features
        self.centroids.index_copy_(0, clusters, functional.normalize(moved, dim=1))


def _ranks_within_clusters(targets: Tensor) -> Tensor:
    """Return (B,) how many earlier samples of the batch have the same cluster."""
    ordered, order = targets.sort(stable=True)
    positions = torch.arange(len(targets), device=targets.device)
    starts = torch.searchsorted(ordered, ordered)
    return torch.empty_like(positions).index_copy_(0, order, positions - starts)


def _by_rank(targets: Tensor) -> Tensor:
    """Return (B,) positions in the batch: the first sample of every cluster, then the second of every cluster, ..."""
    return _ranks_within_clusters(targets).argsort(stable=True)


def cluster_centroids(features: SplitRows, labels: Tensor) -> Tensor:
    """Return the normalised mean of each cluster's features; the same bits on every run and in every process.

    Args:
        features: (N, D) features.
        labels: (N,) int64 cluster of each row, 0 to C-1 without gaps; -1 (outlier) rows are left out.

    Returns:
        (C, D) float32 unit rows on the features' device.

    Raises:
        ValueError: Lengths differ, there is no cluster, or a cluster number has no rows.
    """
    place = features.own.device
    labels = labels.cpu() if place.type == "mps" else labels.to(place)  # Apple's GPUs have no double precision
    if labels.shape != (features.total,):
        raise ValueError(f"{features.total} features but {len(labels)} labels")
    counts = torch.bincount(labels[labels >= 0])
    if len(counts) == 0 or bool((counts == 0).any()):
        raise ValueError("labels must be 0 to C-1 without gaps, with at least one cluster")
    order = labels.argsort(stable=True)[-int(counts.sum()) :]

    def means(columns: Tensor) -> Tensor:
        rows = columns.to(labels.device)[order].to(torch.float64)
        return torch.segment_reduce(rows, "mean", lengths=counts)  # in the order of the rows

    found = features.by_columns(means, len(counts), torch.float64)
    return found.with_own(functional.normalize(found.own, dim=1).to(torch.float32)).gathered().to(place)
