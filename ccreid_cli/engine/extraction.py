"""Images to features: batched, on the device, split over processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ccreid_cli.core.errors import DeviceError, UsageError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.images.augment import normalize
from ccreid_cli.images.sharded_store import ShardedStore
from ccreid_cli.images.source import ImageSet
from ccreid_cli.machine.device import autocast, unless_out_of_memory
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.models.fused import fuse, is_fusible
from ccreid_cli.models.reid_net import ReidNet

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
    reporter = reporter or SilentReporter()
    size = checked_batch_size(batch_size, device)
    start, stop = _share(store, size, group)
    was_training = model.training
    model.eval()
    network = network or prepared(model, device, precision)
    rows = _room(stop - start, model.embedding_dim, device, may_move=group.world == 1)
    first = start
    with reporter.task(description, stop - start, "img") as task:
        while first < stop:
            if check_stop:
                check_stop()
            last = min(first + size, stop)
            compute = partial(_features_of, network, store, first, last, device, precision)
            features = unless_out_of_memory(compute)
            if features is None:
                size = _smaller(last - first, device, reporter)
                continue
            rows[first - start : last - start] = features
            task.advance(last - first)
            if (last - start) % _IMAGES_MAPPED < size:
                store.release_pages()
            first = last
    store.release_pages()
    model.train(was_training)
    return SplitRows.collected(rows, start, len(store), group)


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


def _features_of(
    network: nn.Module, store: ImageSet, first: int, last: int, device: torch.device, precision: str
) -> torch.Tensor:
    images = normalize(store.gather(torch.arange(first, last), device))
    with autocast(device, precision):
        features: torch.Tensor = network(images)
    return features


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
