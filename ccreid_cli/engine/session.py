"""What training and evaluation share: the decoded images, the network on its device, and scoring it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.data.image_source import ImageFiles, ImageSet
from ccreid_cli.data.image_store import ImageStore, open_store
from ccreid_cli.data.splits import ReidDataset, Split
from ccreid_cli.data.upkeep import CACHE_FOLDER
from ccreid_cli.engine.device import resolve_precision, step_seconds
from ccreid_cli.engine.distributed import Group, is_first_of_machine, launched_world, local_world, spans_machines
from ccreid_cli.engine.evaluator import Evaluation
from ccreid_cli.engine.extraction import extract_features
from ccreid_cli.engine.host_memory import keep_freed_memory
from ccreid_cli.engine.sharded_store import ShardedStore
from ccreid_cli.engine.shared_evaluation import evaluate_together
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.pseudo_labels.sparse_rows import free_gpu_bytes


@dataclass(frozen=True)
class ImageSettings:
    """How images are read.

    Attributes:
        height: Rows of a decoded image.
        width: Columns of a decoded image.
        workers: Threads that decode.
        cache_folder: Where decoded images are kept between runs; None keeps them in memory only.
        sharded: Whether each of several processes decodes and holds its share only.
    """

    height: int
    width: int
    workers: int
    cache_folder: Path | None
    sharded: bool = False


def image_settings(height: int, width: int, workers: int, data_dir: Path, *, sharded: bool = False) -> ImageSettings:
    """Return the settings with the cache in the data directory and no more workers than processors."""
    return ImageSettings(height, width, min(workers, os.cpu_count() or 1), data_dir / CACHE_FOLDER, sharded)


def is_sharded(wanted: bool | None) -> bool:
    """Resolve `TrainConfig.shard_images`: by default images are sharded where several machines train."""
    return spans_machines() if wanted is None else wanted


def open_split(split: Split, settings: ImageSettings, group: Group, reporter: Reporter) -> ImageSet:
    """Decode a split once, or open what an earlier run decoded.

    Rank 0 decodes and the others then read its cache; or, sharded, each process decodes its share.
    """
    return open_paths(split.paths, settings, group, reporter)


def open_paths(paths: list[Path], settings: ImageSettings, group: Group, reporter: Reporter) -> ImageSet:
    """As `open_split`, for a list of images.

    Raises:
        DataError: There are no images, or some are broken.
    """
    if not paths:
        raise DataError("there are no images to read.", "`ccreid data verify` shows what a dataset holds.")
    if settings.sharded and group.world > 1:
        return _open_share(paths, settings, group, reporter)
    if settings.sharded and launched_world() > 1:  # one of many, by itself, when they have trained: it holds a share
        return ImageFiles(paths, settings.height, settings.width, settings.workers)
    if group.world == 1:
        return _read(paths, settings, reporter)

    def read() -> ImageStore:
        return _read(paths, settings, reporter)

    # First the main process, then one on each machine that does not share its disk, then all from the cache.
    group.on_main(lambda: len(read()))
    store = read() if is_first_of_machine() else None
    group.barrier()
    return store or read()


def _open_share(paths: list[Path], settings: ImageSettings, group: Group, reporter: Reporter) -> ShardedStore:
    """Let every process decode its share of the images, those of one machine with its share of the threads."""
    start, stop = group.bounds(len(paths))
    threads = max(1, settings.workers // local_world())
    local = _read(paths[start:stop], replace(settings, workers=threads), reporter)
    group.barrier()  # however long others decode; the error of one who finds broken images reaches all here
    return ShardedStore(local, len(paths), group)


def _read(paths: list[Path], settings: ImageSettings, reporter: Reporter) -> ImageStore:
    return open_store(
        paths,
        settings.height,
        settings.width,
        cache_folder=settings.cache_folder,
        workers=settings.workers,
        reporter=reporter,
    )


def keep_on_device(store: ImageSet, device: torch.device, share: float = 0.3) -> bool:
    """Keep the images that this process holds on a CUDA device when they take at most `share` of its free memory.

    Returns:
        Whether they are there now.
    """
    if device.type != "cuda":
        return False
    return store.to_device(device, int(share * free_gpu_bytes(device)))


def probe_precision(request: str, model: ReidNet, device: torch.device, height: int, width: int) -> str:
    """Return ``fp32`` or ``bf16``: as asked, or what `resolve_precision` finds fastest for this network."""
    images = torch.randn(16, 3, height, width, device=device).to(memory_format=torch.channels_last)
    return resolve_precision(request, device, lambda precision: step_seconds(model, images, precision))


def place(model: ReidNet, device: torch.device) -> ReidNet:
    """Move a network to its device, in the channels-last layout that convolutions are fastest in.

    On Apple's GPUs it stays in plain order: see `ReidNet.forward`.
    """
    if device.type == "cpu":
        keep_freed_memory()
    memory_format = torch.contiguous_format if device.type == "mps" else torch.channels_last
    return model.to(device).to(memory_format=memory_format)


@dataclass
class TestSet:
    """Query and gallery of a dataset, decoded on first use."""

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
        batch_size: int | None = None,
        check_stop: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unit features (Q, D) of the query and (G, D) of the gallery."""
        rows = extract_features(
            model,
            self.store,
            device=device,
            precision=precision,
            batch_size=batch_size,
            group=self.group,
            description="extract test set",
            reporter=self.reporter,
            check_stop=check_stop,
        )
        num_query = len(self.dataset.query)
        return rows[:num_query], rows[num_query:]

    def score(
        self,
        model: ReidNet,
        device: torch.device,
        precision: str,
        *,
        rerank: bool = False,
        batch_size: int | None = None,
        check_stop: Callable[[], None] | None = None,
    ) -> Evaluation:
        """Extract the test set's features and compute mAP, CMC and mINP, the same in every process."""
        query, gallery = self.features(model, device, precision, batch_size=batch_size, check_stop=check_stop)
        return evaluate_together(query, gallery, self.dataset, self.group, device=device, rerank=rerank)
