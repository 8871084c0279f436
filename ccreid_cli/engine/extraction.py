"""Images to features: batched, on the device, split over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ccreid_cli.core.errors import DeviceError, UsageError
from ccreid_cli.core.reporter import Reporter, SilentReporter, Task
from ccreid_cli.images.augment import normalize
from ccreid_cli.images.sharded_store import ShardedStore
from ccreid_cli.images.source import ImageSet, ImageSource
from ccreid_cli.machine.device import autocast, unless_out_of_memory
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.models.batch_norm import batch_statistics, bn_chunks, count_statistics, with_statistics
from ccreid_cli.models.fused import fuse, is_fusible
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.pseudo_labels.cameras import LEAST_IMAGES

_STATISTICS_IMAGES = 512
"""Of a camera with more, its batch-norm statistics are taken from so many."""
_STATISTICS_BATCH = 64
"""The most images that are normalised together for them."""
_IMAGES_MAPPED = 4096
"""After so many images their memory-mapped pages are released: a whole test set's would be most of the memory used."""


def default_batch_size(device: torch.device) -> int:
    """Return a batch for inference: large on a GPU, small enough for the caches of a CPU."""
    return 512 if device.type == "cuda" else 64


def checked_batch_size(batch_size: int | None, device: torch.device) -> int:
    """Return the batch that was asked for, or what suits the device.

    Raises:
        UsageError: It is less than one image.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"a batch of {batch_size} images cannot be computed.", "Use a --batch-size of at least 1.")
    return batch_size or default_batch_size(device)


@torch.inference_mode()
def prepared(model: ReidNet, device: torch.device, precision: str) -> nn.Module:
    """Return what computes a network's features fastest: on a CPU a fused copy of it as it is now, else itself."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return fuse(model, dtype) if device.type == "cpu" and is_fusible(dtype) else model


@torch.inference_mode()
def extract_features(
    model: ReidNet,
    store: ImageSet,
    *,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int | None = None,
    group: Group | None = None,
    description: str = "extract",
    reporter: Reporter | None = None,
    check_stop: Callable[[], None] | None = None,
    network: nn.Module | None = None,
) -> SplitRows:
    """Compute the unit-length test-time features of every image of `store`, in order.

    Args:
        model: The network, on `device`. Its training mode is put back afterwards.
        store: N decoded images.
        device: Where to compute.
        precision: ``fp32`` or ``bf16``; the features are float32 either way.
        batch_size: Images at once; by default what suits the device.
        group: The processes that share the work, and hold the features.
        description: The bar's name.
        reporter: Where progress goes.
        check_stop: Called before every batch; may raise to leave early.
        network: What `prepared` made of `model`, where more images follow: for a few, making it takes longer than they.

    Returns:
        (N, D) float32, on `device`; on the CPU where that has no room for them. Which images a process computes may
        differ from those whose features it then holds.

    Raises:
        DeviceError: Not even one image fits into the device's memory. A batch that does not is halved.
    """
    group = group or Group()
    size = checked_batch_size(batch_size, device)
    numbers = torch.arange(*_share(store, size, group))
    work = _Extraction(
        store, numbers, model.embedding_dim, device, precision, size, group, reporter or SilentReporter()
    )
    with _evaluating(model), work.counted(description, check_stop):
        work.compute(network or prepared(model, device, precision), numbers)
    return work.features()


@torch.inference_mode()
def extract_by_camera(
    model: ReidNet,
    store: ImageSet,
    camera_ids: NDArray[np.int64],
    *,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int | None = None,
    group: Group | None = None,
    reporter: Reporter | None = None,
    check_stop: Callable[[], None] | None = None,
) -> SplitRows:
    """As `extract_features`, but batch norms take the statistics of images of the image's own camera.

    What a camera does to all of its images (light, colours, background) is thus taken out in every layer. Sources: Li
    et al., "Revisiting Batch Normalization for Practical Domain Adaptation", arXiv 1603.04779; a camera as a domain of
    its own: Zhuang et al., "Rethinking the Distribution Gap of Person Re-identification with Camera-based Batch
    Normalization", ECCV 2020. A camera of fewer than `LEAST_IMAGES`, or that is not known, takes those of all images.

    Args:
        model: The network, on `device`; afterwards it is as it was.
        store: N decoded images.
        camera_ids: (N,) camera of each image, negative where unknown.
        device: Where to compute.
        precision: ``fp32`` or ``bf16``; the features are float32 either way.
        batch_size: Images at once; by default what suits the device.
        group: The processes that share the work, and hold the features.
        reporter: Where progress goes.
        check_stop: Called before every batch; may raise to leave early.

    Returns:
        (N, D) float32 unit rows.

    Raises:
        DeviceError: The 64 images of a camera's statistics, or a single image later, do not fit into memory.
    """
    group, reporter = group or Group(), reporter or SilentReporter()
    parts = _parts_by_camera(camera_ids)
    with _evaluating(model):
        samples = [part.sample for part in parts]
        with reporter.task("camera statistics", sum(map(len, samples)), "img") as task:
            statistics = _mean_statistics(model, store, samples, device, precision, group, task, check_stop)
        size = checked_batch_size(batch_size, device)
        batches = [(place, batch) for place, part in enumerate(parts) for batch in torch.split(part.numbers, size)]
        if isinstance(store, ShardedStore):
            start, stop = group.bounds(len(store))
            batches = [(place, batch[(batch >= start) & (batch < stop)]) for place, batch in batches]
        else:
            batches = batches[slice(*group.bounds(len(batches)))]
        numbers = torch.cat([torch.empty(0, dtype=torch.int64), *(batch for _, batch in batches)]).sort()[0]
        work = _Extraction(store, numbers, model.embedding_dim, device, precision, size, group, reporter)
        with work.counted("extract", check_stop):
            for place, those in groupby(batches, itemgetter(0)):
                with with_statistics(model, statistics[place]):
                    network = prepared(model, device, precision)
                    for _, batch in those:
                        work.compute(network, batch)
    return work.features()


@dataclass(frozen=True)
class _Part:
    """Images that share their batch-norm statistics.

    Attributes:
        numbers: (n,) int64, ascending.
        sample: (m,) those that the statistics are taken from.
    """

    numbers: torch.Tensor
    sample: torch.Tensor


def _parts_by_camera(camera_ids: NDArray[np.int64]) -> list[_Part]:
    cameras, counts = np.unique(camera_ids[camera_ids >= 0], return_counts=True)
    common = cameras[counts >= LEAST_IMAGES]
    found = [torch.from_numpy(np.flatnonzero(camera_ids == camera)) for camera in common]
    parts = [_Part(numbers, _evenly(numbers)) for numbers in found]
    rest = torch.from_numpy(np.flatnonzero(~np.isin(camera_ids, common)))
    return [*parts, _Part(rest, _evenly(torch.arange(len(camera_ids))))] if len(rest) else parts


def _evenly(numbers: torch.Tensor) -> torch.Tensor:
    """Return at most `_STATISTICS_IMAGES` of some images, as far from one another as can be."""
    count = min(len(numbers), _STATISTICS_IMAGES)
    return numbers[torch.arange(count) * len(numbers) // max(1, count)]


def _mean_statistics(
    model: ReidNet,
    store: ImageSet,
    samples: list[torch.Tensor],
    device: torch.device,
    precision: str,
    group: Group,
    task: Task,
    check_stop: Callable[[], None] | None,
) -> torch.Tensor:
    """Return the batch-norm statistics of each sample of images, (samples, S): means over its batches.

    The batches are the same ones for any number of processes, which compute them in turns; neighbours, which often show
    one object, go to different batches.
    """
    cuts = [len(bn_chunks(len(sample), _STATISTICS_BATCH)) for sample in samples]
    batches = [sample[first::cut] for sample, cut in zip(samples, cuts, strict=True) for first in range(cut)]
    own = [torch.empty((0, count_statistics(model)), device=device)]
    for first in range(0, len(batches), group.world):
        if check_stop:
            check_stop()
        turn = batches[first : first + group.world]
        images: ImageSource = store
        if isinstance(store, ShardedStore):
            sizes = [len(batch) for batch in turn] + [0] * (group.world - len(turn))
            images = store.exchange(torch.cat(turn).numpy(), sizes)
        if group.rank < len(turn):
            own.append(_statistics_of(model, images, turn[group.rank], device, precision)[None])
        store.release_pages()
        task.advance(sum(map(len, turn)))
    order = [place for rank in range(group.world) for place in range(rank, len(batches), group.world)]
    rows = group.gather_rows(torch.cat(own))[torch.tensor(order).argsort().to(device)]
    return torch.stack([part.mean(dim=0) for part in torch.split(rows, cuts)])


def _statistics_of(
    model: ReidNet, images: ImageSource, numbers: torch.Tensor, device: torch.device, precision: str
) -> torch.Tensor:
    def compute() -> torch.Tensor:
        batch = normalize(images.gather(numbers, device))
        with autocast(device, precision):
            return batch_statistics(model, lambda: model(batch))

    found = unless_out_of_memory(compute)
    if found is None:
        raise DeviceError(
            f"{len(numbers)} images at once, for the statistics of a camera, do not fit into the memory of {device}.",
            "Use --precision bf16, a smaller --height and --width, or leave --camera-batch-norm out.",
        )
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Leave training mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _Extraction:
    """The features of the images that one process computes, as they are computed.

    Args:
        store: N decoded images.
        numbers: (n,) int64, ascending: those that this process computes.
        dim: Length of a feature.
        device: Where to compute.
        precision: ``fp32`` or ``bf16``.
        batch_size: Images at once. What does not fit into memory is halved.
        group: All processes.
        reporter: Where progress goes.
    """

    def __init__(
        self,
        store: ImageSet,
        numbers: torch.Tensor,
        dim: int,
        device: torch.device,
        precision: str,
        batch_size: int,
        group: Group,
        reporter: Reporter,
    ) -> None:
        self._store, self._numbers, self._device, self._precision = store, numbers, device, precision
        self._size, self._group, self._reporter = batch_size, group, reporter
        self._rows = _room(len(numbers), dim, device, may_move=group.world == 1)
        self._task: Task | None = None
        self._check_stop: Callable[[], None] | None = None
        self._mapped = 0

    @contextmanager
    def counted(self, description: str, check_stop: Callable[[], None] | None) -> Iterator[None]:
        """Show how many images are computed.

        Args:
            description: The bar's name.
            check_stop: Called before every batch; may raise to leave early.
        """
        with self._reporter.task(description, len(self._numbers), "img") as self._task:
            self._check_stop = check_stop
            yield
        self._store.release_pages()

    def compute(self, network: nn.Module, numbers: torch.Tensor) -> None:
        """Compute some of the images, batch by batch.

        Args:
            network: What gives their features.
            numbers: (m,) int64, ascending: which.

        Raises:
            DeviceError: Not even one image fits into the device's memory.
        """
        first = 0
        while first < len(numbers):
            if self._check_stop:
                self._check_stop()
            batch = numbers[first : first + self._size]
            images = self._filled(batch)
            features = unless_out_of_memory(partial(self._features_of, network, images))
            if features is None:
                self._size = _smaller(len(images), self._device, self._reporter)
                continue
            self._put(batch, features[: len(batch)])
            if self._task:
                self._task.advance(len(batch))
            self._mapped += len(batch)
            if self._mapped >= _IMAGES_MAPPED:
                self._store.release_pages()
                self._mapped = 0
            first += len(batch)

    def _filled(self, batch: torch.Tensor) -> torch.Tensor:
        """Repeat the last image of a batch that is not full, where cuDNN would time its algorithms anew for its size.

        That takes seconds, and an epoch has a last batch of every camera; the images of a batch take milliseconds.
        """
        is_timed = self._device.type == "cuda" and torch.backends.cudnn.benchmark
        if not is_timed or len(self._store) < self._size:
            return batch
        return torch.cat([batch, batch[-1:].expand(self._size - len(batch))])

    def _put(self, numbers: torch.Tensor, features: torch.Tensor) -> None:
        places = torch.searchsorted(self._numbers, numbers)
        first, last = int(places[0]), int(places[-1]) + 1
        if last - first == len(places):
            self._rows[first:last] = features  # nothing is copied to a GPU, which would be waited for
        else:
            self._rows[places.to(self._rows.device)] = features.to(self._rows)

    def _features_of(self, network: nn.Module, numbers: torch.Tensor) -> torch.Tensor:
        images = normalize(self._store.gather(numbers, self._device))
        with autocast(self._device, self._precision):
            features: torch.Tensor = network(images)
        return features

    def features(self) -> SplitRows:
        """Return the features of all images, split over the processes; all call it together."""
        numbers = self._numbers.to(self._rows.device)
        return SplitRows.collected(self._rows, numbers, len(self._store), self._group)


def _share(store: ImageSet, batch_size: int, group: Group) -> tuple[int, int]:
    """Return which images this process computes: whole batches, the same ones for any number of processes.

    Others may round otherwise. Where each process holds its share of the images only, it computes that.
    """
    if isinstance(store, ShardedStore):
        return group.bounds(len(store))
    first, last = group.bounds(-(-len(store) // batch_size))
    return batch_size * first, min(batch_size * last, len(store))


def _room(count: int, dim: int, device: torch.device, *, may_move: bool) -> torch.Tensor:
    """Return memory for `count` features: on the device, or, if they `may_move`, on the CPU where they do not fit."""
    rows = unless_out_of_memory(lambda: torch.empty((count, dim), device=device)) if may_move else None
    return torch.empty((count, dim), device="cpu" if may_move else device) if rows is None else rows


def _smaller(size: int, device: torch.device, reporter: Reporter) -> int:
    """Return half of a batch that did not fit.

    Raises:
        DeviceError: It was a single image.
    """
    if size == 1:
        raise DeviceError(
            f"not even one image at a time fits into the memory of {device}.",
            "Use --precision bf16, a smaller --height and --width, or another --device.",
        )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reporter.warning(f"{size} images do not fit into memory at once: going on with {size // 2} (same features).")
    return size // 2
