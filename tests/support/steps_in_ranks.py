"""What tests run in one process or several: training steps on fixed batches, and exchanges between processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import third_clusterer
import tiny
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.engine import extraction
from ccreid_cli.engine.step import TrainStep, make_optimizer
from ccreid_cli.images.augment import draw_augmentation
from ccreid_cli.images.sharded_store import ShardedStore
from ccreid_cli.images.store import ImageStore
from ccreid_cli.machine import ring
from ccreid_cli.machine.distributed import Group, process_group
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.cluster_contrast import ClusterContrast
from ccreid_cli.models.reid_net import ModelSpec, ReidNet
from ccreid_cli.pseudo_labels import neighbors, overlap
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.density import dbscan
from ccreid_cli.pseudo_labels.jaccard import near_pairs, reciprocal_weights
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.overlap import Pairs
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels
from ccreid_cli.pseudo_labels.registry import CLUSTERERS

CPU = torch.device("cpu")
CLUSTERS = 5


class Fixed:
    """A network, a method, images and a way to train on them, the same each time."""

    def __init__(
        self,
        group: Group | None = None,
        *,
        batch_size: int = 24,
        samples_per_bn: int = 8,
        dropout: float = 0.0,
        exact: bool = False,
        sharded: bool = False,
        reporter: Reporter | None = None,
        device: torch.device | None = None,
    ) -> None:
        random = np.random.default_rng(3)
        torch.manual_seed(5)
        self.model = ReidNet(ModelSpec("tiny", dropout=dropout), samples_per_bn).train()
        images = random.integers(0, 256, (60, 32, 16, 3), dtype=np.uint8)
        if device is not None:
            self.model.to(device)
        group = group or Group()
        self.store = share_of(images, group) if sharded else ImageStore(images)
        centroids = torch.nn.functional.normalize(torch.randn(CLUSTERS, 16), dim=1)
        self.method = ClusterContrast(self.model, TrainConfig())
        self.method.load_state_dict({"centroids": centroids})
        self.batch_size = batch_size
        self.step = TrainStep(
            self.model,
            make_optimizer(self.model, 1e-3, 5e-4),
            self.store,
            self.method,
            precision="fp32",
            group=group,
            batch_size=batch_size,
            samples_per_bn=samples_per_bn,
            reporter=reporter or SilentReporter(),
            exact=exact,
        )

    def batch(self, number: int) -> Batch:
        random = np.random.default_rng(number)
        targets = torch.from_numpy(random.integers(0, CLUSTERS, self.batch_size))
        plan = draw_augmentation(self.batch_size, 32, 16, torch.Generator().manual_seed(number))
        cameras = torch.zeros_like(targets)
        return Batch(random.integers(0, 60, self.batch_size), targets, cameras, plan, seed=number)

    def train(self, steps: int = 1) -> dict[str, Any]:
        """Return losses (this process's parts), the gradients of the last step, weights, statistics and memory."""
        # The last step announces what does not come: a run that stops, or begins another epoch.
        losses = [float(self.step(self.batch(number), self.batch(number + 1).indices)) for number in range(steps)]
        gradients = {
            name: value.grad.clone() for name, value in self.model.named_parameters() if value.grad is not None
        }
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        centroids = self.method.state_dict()["centroids"]
        return {"losses": losses, "gradients": gradients, "state": state, "centroids": centroids}


def share_of(images: np.ndarray[Any, np.dtype[np.uint8]], group: Group) -> ShardedStore:
    """Return a store of the images of which this process holds its share, and nothing else."""
    start, stop = group.bounds(len(images))
    return ShardedStore(ImageStore(images[start:stop].copy()), len(images), group)


def extract_by_camera(
    state: dict[str, Tensor], images: NDArray[np.uint8], cameras: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Return the features of all images where every process has all of them, and where each has its share."""
    model = ReidNet(ModelSpec("tiny"))
    model.load_state_dict(state)
    with process_group(CPU, 60) as group:
        stores = (ImageStore(images), share_of(images, group))
        whole, shared = (
            extraction.extract_by_camera(model, store, cameras, device=CPU, group=group).gathered() for store in stores
        )
        return whole, shared


def train_in_group(options: dict[str, Any], steps: int = 1) -> dict[str, Any]:
    with process_group(CPU, 30) as group:
        return Fixed(group, **options).train(steps)


def exchange(rows_per_rank: list[int]) -> dict[str, Any]:
    """Exchange uneven pieces in every way that there is."""
    with process_group(CPU, 30) as group:
        count = rows_per_rank[group.rank]
        rows = torch.full((count, 3), float(group.rank)) + torch.arange(count)[:, None] / 10
        result = {
            "rows": group.gather_rows(rows),
            "known": group.gather_rows(rows, rows_per_rank),
            "array": group.gather_array(rows.numpy()[:, 0].astype(np.int32)),
            "maximum": group.maximum(group.rank * 7),
            "sum": group.sum_(torch.tensor([group.rank + 1])),
            "main": group.on_main(lambda: {"from": group.rank}),
            "broadcast": group.broadcast(f"rank {group.rank}"),
            "bounds": [group.bounds(7, rank) for rank in range(group.world)],
        }
        group.barrier()
    return result


def labels_in_group(features: Tensor, settings: ClusterSettings) -> Any:
    """Return labels, or the error's words; the clusterer "third" is there too."""
    CLUSTERERS["third"] = third_clusterer.ROW
    try:
        with process_group(CPU, 30) as group:
            return pseudo_labels(features, settings, group=group).labels
    except DataError as error:
        return error.message


def labels_of_shares(features: Tensor, settings: ClusterSettings, piece_bytes: int = 1 << 12) -> Any:
    """As `labels_in_group`, each process with its share of the features alone; rows travel in small pieces."""
    neighbors._CPU_BLOCK_BYTES = piece_bytes
    small_pieces()
    try:
        with process_group(CPU, 30) as group:
            start, stop = group.bounds(len(features))
            return pseudo_labels(features[start:stop].clone(), settings, total=len(features), group=group).labels
    except DataError as error:
        return error.message


def small_pieces() -> None:
    """Let weights travel and be worked on in pieces that are small against those of a test."""
    overlap._LEAST_ENTRIES, ring._RANGES_AT_ONCE = 100, 7


def pairs_in_group(features: Any, k1: int, k2: int, most: float) -> Any:
    """Return the near pairs that this process finds, which has only its share of the features."""
    small_pieces()
    with process_group(CPU, 30) as group:
        start, stop = group.bounds(len(features))
        table = FeatureTable(features[start:stop], group=group, total=len(features), block_bytes=1 << 10)
        return near_pairs(table, *reciprocal_weights(table, *table.nearest(k1), k1, k2), most)


def clusters_in_group(pairs: Pairs, owners: Any, total: int) -> Any:
    with process_group(CPU, 30) as group:
        here = owners == group.rank
        own = Pairs(pairs.rows[here], pairs.columns[here], pairs.distances[here])
        return dbscan(own, total, 0.5, 2, group=group)


def evaluation_in_group(query: Tensor, gallery: Tensor, dataset: Any) -> Any:
    from ccreid_cli.engine.shared_scores import evaluate_together

    with process_group(CPU, 30) as group:
        return evaluate_together(query, gallery, dataset, group, device=CPU)


def train_with_timeout(data: Path, logs: Path, seconds: float) -> Any:
    """Return the error and how long it took; rank 1 stops answering at its third step."""
    import os
    import signal
    import time

    from ccreid_cli.core.errors import CcreidError
    from ccreid_cli.engine import start as training

    def freeze(number: int) -> None:
        if number == 3 and os.environ["RANK"] == "1":
            frozen.append(time.monotonic())
            time.sleep(seconds + 2)

    frozen: list[float] = []
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begin = time.monotonic()
    try:
        with tiny.watched(freeze):
            training.train(tiny.resolved(data, logs), timeout=seconds)
    except CcreidError as error:
        return type(error).__name__, error.message, time.monotonic() - begin
    return None
