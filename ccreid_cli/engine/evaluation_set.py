"""Query and gallery of a dataset: decoded once, scored on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.data.file_names import tracklet_of
from ccreid_cli.data.splits import ReidDataset, Split
from ccreid_cli.engine.extraction import extract_by_camera, extract_features
from ccreid_cli.engine.retrieval_scores import Evaluation
from ccreid_cli.engine.shared_scores import evaluate_together
from ccreid_cli.images.opening import ImageSettings, open_paths
from ccreid_cli.images.source import ImageSet
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.models.batch_norm import count_statistics
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.pseudo_labels.cameras import normalize_pair_by_camera, num_known
from ccreid_cli.pseudo_labels.pooling import pool_rows


@dataclass
class EvaluationSet:
    """Query and gallery images, decoded on first use."""

    dataset: ReidDataset
    images: ImageSettings
    group: Group
    reporter: Reporter
    _store: ImageSet | None = None

    def open(self) -> None:
        """Decode the images now, so that a broken one is found before hours of training."""
        _ = self.store

    @property
    def store(self) -> ImageSet:
        """The query images, then the gallery images."""
        if self._store is None:
            paths = [*self.dataset.query.paths, *self.dataset.gallery.paths]
            self._store = open_paths(paths, self.images, self.group, self.reporter)
        return self._store

    def features(
        self,
        model: ReidNet,
        device: torch.device,
        precision: str,
        *,
        camera_batch_norm: bool = False,
        batch_size: int | None = None,
        check_stop: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unit features (Q, D) of the query and (G, D) of the gallery; for the arguments see `score`."""
        extract: Callable[..., SplitRows] = partial(extract_features, model, self.store, description="extract test set")
        if camera_batch_norm:
            extract = partial(extract_by_camera, model, self.store, self._cameras_for(model))
        rows = extract(
            device=device,
            precision=precision,
            batch_size=batch_size,
            group=self.group,
            reporter=self.reporter,
            check_stop=check_stop,
        ).gathered()
        num_query = len(self.dataset.query)
        return rows[:num_query], rows[num_query:]

    def _cameras_for(self, model: ReidNet) -> NDArray[np.int64]:
        """Return the cameras of query and gallery, (Q + G,), whose statistics the network's batch norms are to take.

        Raises:
            UsageError: Fewer than two cameras are known, or the network has no batch norms.
        """
        cameras = np.concatenate([split.known_camera_ids() for split in (self.dataset.query, self.dataset.gallery)])
        if num_known(cameras) < 2:
            raise UsageError(
                "--camera-batch-norm needs test images of at least two known cameras.",
                "Score without it: there are no cameras to tell apart.",
            )
        if not count_statistics(model.backbone):
            raise UsageError(f"--camera-batch-norm: {model.spec.arch} has no batch norms.", "Use --camera-norm.")
        return cameras

    def score(
        self,
        model: ReidNet,
        device: torch.device,
        precision: str,
        *,
        rerank: bool = False,
        camera_norm: bool = False,
        camera_batch_norm: bool = False,
        tracklets: bool = False,
        batch_size: int | None = None,
        check_stop: Callable[[], None] | None = None,
    ) -> Evaluation:
        """Extract the test set's features and compute mAP, CMC and mINP, the same in every process.

        Args:
            model: The network.
            device: Where it is.
            precision: ``fp32`` or ``bf16``.
            rerank: Rank by k-reciprocal re-ranked distances.
            camera_norm: Standardise the features within each camera first, by the gallery's statistics.
            camera_batch_norm: Let batch norms take the statistics of the test images of each image's camera.
            tracklets: Compare the mean feature of each tracklet of the query with those of the gallery, as MARS is
                scored; an image in none counts for itself.
            batch_size: Images at once; None for what suits the device.
            check_stop: Called now and then; raises where the run should stop.

        Raises:
            UsageError: `camera_norm` or `camera_batch_norm` with fewer than two known cameras, or the latter without
                batch norms.
            DataError: `tracklets` without any.
        """
        query, gallery = self.features(
            model,
            device,
            precision,
            camera_batch_norm=camera_batch_norm,
            batch_size=batch_size,
            check_stop=check_stop,
        )
        if camera_norm:
            cameras = self.dataset.query.known_camera_ids(), self.dataset.gallery.known_camera_ids()
            query, gallery = normalize_pair_by_camera(query, cameras[0], gallery, cameras[1])
        dataset = self.dataset
        if tracklets:
            dataset, query, gallery = _by_tracklet(dataset, query, gallery)
        return evaluate_together(query, gallery, dataset, self.group, device=device, rerank=rerank)


def _by_tracklet(
    dataset: ReidDataset, query: torch.Tensor, gallery: torch.Tensor
) -> tuple[ReidDataset, torch.Tensor, torch.Tensor]:
    """Return one image for each tracklet of query and gallery, and the mean feature of its images.

    Raises:
        DataError: There are no tracklets.
    """
    places = [_tracklet_places(split) for split in (dataset.query, dataset.gallery)]
    first = [np.unique(groups, return_index=True)[1] for groups in places]
    if len(first[0]) == len(dataset.query) and len(first[1]) == len(dataset.gallery):
        raise DataError(f"{dataset.name} has no tracklets.", "A manifest names them in a column tracklet.")
    chosen = replace(dataset, query=dataset.query.select(first[0]), gallery=dataset.gallery.select(first[1]))
    return chosen, pool_rows(SplitRows(query), places[0]).own, pool_rows(SplitRows(gallery), places[1]).own


def _tracklet_places(split: Split) -> NDArray[np.int64]:
    """Number the tracklets of a split by their first images, (N,); an image in none is one of its own."""
    named = split.tracks.tracklets if split.tracks else [tracklet_of(Path(name).name) for name in split.names]
    keys = [(named[image], split.identities[image]) if named[image] else image for image in range(len(split))]
    places: dict[object, int] = {}
    return np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
