"""The stage "step" of `ccreid bench`, and all that bench knows of training: the step, its method and its batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np
import torch

from ccreid_cli.bench.base import BASELINE_NETWORK, Bench, StageResult
from ccreid_cli.bench.synthetic import IMAGES_PER_IDENTITY, made_cameras
from ccreid_cli.engine.step import TrainStep, make_optimizer
from ccreid_cli.images.augment import draw_augmentation, normalize
from ccreid_cli.machine.device import autocast, resolve_precision
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.interface import Method
from ccreid_cli.method.registry import make_method
from ccreid_cli.method.sampling import sample_epoch
from ccreid_cli.models.reid_net import ReidNet

_LEAST_CLUSTERS = 700
"""As many as Market-1501 gives."""


def time_step(bench: Bench) -> list[StageResult]:
    """Training steps from the store: gather, augmentation, network, loss, optimizer and memory update.

    Beside it, on a batch that is on the device already, the network alone, and the baseline: float32, channels first.
    """
    config, model = bench.settings.config, bench.model
    size = bench.settings.batch_size or (config.batch_size if bench.on_gpu else min(16, config.batch_size))
    num_images = bench.images_or(4 * size, 12_936)
    step, batches = _training_step(bench, num_images, size), _batches(bench, num_images, size)
    repeats = _steps_per_run(bench)

    def run() -> None:
        model.train()
        for _ in range(repeats):
            step(next(batches))

    found = bench.measure(run)
    seconds = found.seconds / repeats
    inputs = normalize(bench.image_store(size).gather(np.arange(size), bench.device))
    network = _time_network(bench, model, inputs, bench.precision)
    ideal = 3 * bench.forward_flops() * size / bench.machine.product_rate(bench.precision)
    num_parts = step.micro_batches.count
    note = f"{100 * network / seconds:.0f} % of it the network"
    if num_parts > 1:
        note += f"; in {num_parts} micro-batches, to fit"
    return [
        StageResult(
            stage="step",
            size=f"{config.arch} {config.height}x{config.width} b={size} {bench.precision}",
            count=size,
            seconds=seconds,
            peak_bytes=found.peak_bytes,
            ceiling=f"{bench.precision} product",
            ceiling_share=ideal / seconds,
            baseline_seconds=_time_network(bench, bench.baseline_model(), inputs.contiguous(), "fp32"),
            baseline=BASELINE_NETWORK,
            parts={"network alone": network},
            note=note,
            numbers={"batch": size, "parameters": sum(value.numel() for value in model.parameters())},
        )
    ]


def _steps_per_run(bench: Bench) -> int:
    """Return the steps between two waits for the device: several on a GPU, as in training."""
    return 10 if bench.on_gpu else 1


def _training_step(bench: Bench, num_images: int, size: int) -> TrainStep:
    config = bench.settings.config
    return TrainStep(
        bench.model,
        make_optimizer(bench.model, config.lr, config.weight_decay, config.optimizer),
        bench.image_store(num_images),
        _method(bench, num_images // IMAGES_PER_IDENTITY + 1),
        precision=bench.precision,
        group=Group(device=bench.device),
        batch_size=size,
        samples_per_bn=config.samples_per_bn,
        reporter=bench.reporter,
    )


def _batches(bench: Bench, num_images: int, size: int) -> Iterator[Batch]:
    """Yield batches as an epoch draws them, without end."""
    config = bench.settings.config
    targets, cameras = torch.arange(num_images) // IMAGES_PER_IDENTITY, torch.from_numpy(made_cameras(num_images))
    drawn = sample_epoch(
        targets.numpy(),
        cameras.numpy(),
        batch_size=size,
        num_instances=min(config.num_instances, size),
        num_batches=64,
        generator=np.random.default_rng(config.seed),
    )
    for number, indices in enumerate(cycle(drawn)):
        plan = draw_augmentation(size, config.height, config.width, torch.Generator().manual_seed(number))
        chosen = torch.from_numpy(indices)
        yield Batch(indices, targets[chosen], cameras[chosen], plan)


def _method(bench: Bench, num_clusters: int) -> Method:
    """Return the run's method in an epoch with at least as many clusters as real data gives."""
    config = bench.settings.config
    random = torch.Generator().manual_seed(config.seed)
    number = max(_LEAST_CLUSTERS, num_clusters)
    rows = torch.nn.functional.normalize(torch.randn(number, bench.model.embedding_dim, generator=random))
    method = make_method(bench.model, config)
    method.begin_epoch(
        0, SplitRows(rows.to(bench.device)), torch.arange(number), torch.zeros(number, dtype=torch.int64)
    )
    return method


def _time_network(bench: Bench, model: ReidNet, inputs: torch.Tensor, precision: str) -> float:
    """Time a step on one batch that is on the device already: nothing to gather, nothing to augment."""
    config, size = bench.settings.config, len(inputs)
    resolve_precision(precision, bench.device)  # float32 without TF32, which bfloat16 before may have allowed
    optimizer = make_optimizer(model, config.lr, config.weight_decay, config.optimizer)
    method = _method(bench, 0)
    targets = torch.arange(size) // config.num_instances % _LEAST_CLUSTERS
    plan = draw_augmentation(size, config.height, config.width, torch.Generator().manual_seed(0))
    batch = Batch(np.arange(size), targets, torch.zeros_like(targets), plan)
    repeats = _steps_per_run(bench)

    def run() -> None:
        model.train()
        for _ in range(repeats):
            optimizer.zero_grad(set_to_none=True)
            with autocast(bench.device, precision):
                features = model(inputs)
            torch.autograd.backward(method.loss(features, inputs, batch))
            optimizer.step()
            method.after_step(features.detach(), batch)

    return bench.measure(run, share=0.5).seconds / repeats
