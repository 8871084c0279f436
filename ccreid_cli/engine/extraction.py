"""Images to features: batched, on the device, split over processes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.data.augment import normalize
from ccreid_cli.data.image_source import ImageSet
from ccreid_cli.engine.device import autocast
from ccreid_cli.engine.distributed import Group
from ccreid_cli.models.fused import fuse, is_fusible
from ccreid_cli.models.reid_net import ReidNet

_IMAGES_MAPPED = 4096
"""After so many images, memory-mapped ones are let go: all of a test set's would be the larger part of the memory."""


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
) -> torch.Tensor:
    """Return the unit-length test-time features of every image of `store`, in order.

    Args:
        model: The network, on `device`. Its training mode is put back afterwards.
        store: N decoded images.
        device: Where to compute.
        precision: ``fp32`` or ``bf16``; the features are float32 either way.
        batch_size: Images at once; by default what suits the device.
        group: The processes that share the work; each gets all features.
        description: The bar's name.
        reporter: Where progress goes.
        check_stop: Called before every batch; may raise to leave early.

    Returns:
        (N, D) float32, on `device`.
    """
    group = group or Group()
    reporter = reporter or SilentReporter()
    size = checked_batch_size(batch_size, device)
    start, stop = group.bounds(len(store))
    was_training = model.training
    model.eval()
    network = model
    if device.type == "cpu" and is_fusible():
        network = fuse(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    rows = torch.empty((stop - start, model.embedding_dim), device=device)
    with reporter.task(description, stop - start, "img") as task:
        for first in range(start, stop, size):
            if check_stop:
                check_stop()
            last = min(first + size, stop)
            images = normalize(store.gather(torch.arange(first, last), device))
            with autocast(device, precision):
                rows[first - start : last - start] = network(images)
            task.advance(last - first)
            if (last - start) % _IMAGES_MAPPED < size:
                store.let_go()
    store.let_go()
    model.train(was_training)
    return group.gather_rows(rows)
