"""The stages of `ccreid bench`, each beside the straightforward way where that is cheap to have."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from ccreid_cli.bench.base import Bench, StageResult
from ccreid_cli.bench.measure import Measurement, measure
from ccreid_cli.bench.synthetic import (
    IMAGES_PER_IDENTITY,
    made_cameras,
    made_features,
    made_images,
    write_images,
)
from ccreid_cli.core.words import plural
from ccreid_cli.engine.extraction import default_batch_size, extract_features
from ccreid_cli.engine.labelling import cluster_settings
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.engine.step import TrainStep, make_optimizer
from ccreid_cli.images.augment import draw_augmentation, normalize
from ccreid_cli.images.opening import keep_on_device
from ccreid_cli.images.store import ImageStore, open_store
from ccreid_cli.machine.device import autocast
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.ranks import threads_per_process
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.interface import Method
from ccreid_cli.method.registry import METHODS
from ccreid_cli.method.sampling import sample_epoch
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.pseudo_labels.neighbors import fastest_dtype
from ccreid_cli.pseudo_labels.pipeline import PseudoLabels, pseudo_labels

_READ_BATCH = 256
_LEAST_CLUSTERS = 700
"""Centroids of a memory as on Market-1501."""
_PLAIN_QUERIES = 100
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def time_labels(bench: Bench) -> list[StageResult]:
    """Pseudo-labels of features: of those given, else of made ones; with `growth` also of a part of them."""
    settings = bench.settings
    features, size = settings.features, settings.features_name
    if features is None:
        num_images = settings.num_images or (64_000 if settings.growth else 12_936)
        features, _ = made_features(num_images, settings.dim, device=bench.device if bench.on_gpu else None)
        size = "made features"
    else:
        features = features[: settings.num_images].to(bench.device)
    parts = (8, 4, 2, 1) if settings.growth else (1,)
    return [_time_labels(bench, features[: len(features) // part].contiguous(), size) for part in parts]


def _time_labels(bench: Bench, features: torch.Tensor, name: str) -> StageResult:
    settings = cluster_settings(bench.settings.config)
    total, dim = features.shape
    found = measure(
        lambda: pseudo_labels(features, settings, device=bench.device), bench.device, budget=bench.settings.budget
    )
    labels: PseudoLabels = found.value
    precision = _PRECISIONS[fastest_dtype(bench.device if bench.on_gpu else torch.device("cpu"))]
    ideal = 2 * total**2 * dim / bench.machine.product_rate(precision)
    timed: list[PseudoLabels] = [value for _, value in found.value_seconds]
    return StageResult(
        "labels",
        f"{total:,} x {dim:,} {name}",
        total,
        found.seconds,
        found.peak_bytes,
        f"{precision} product",
        ideal / found.seconds,
        parts={part: statistics.median(one.seconds[part] for one in timed) for part in labels.seconds},
        note=f"{plural(labels.num_clusters, 'cluster')}, {100 * labels.num_outliers / total:.0f} % outliers",
        numbers={"dim": dim},
    )


def time_step(bench: Bench) -> list[StageResult]:
    """Training steps from the store: gather, augmentation, network, loss, optimizer and memory update.

    Beside it, on a batch that lies on the device already, the network alone, and the straightforward way: float32,
    channels first.
    """
    config, model, device = bench.settings.config, bench.model, bench.device
    size = bench.settings.batch_size or (config.batch_size if bench.on_gpu else min(16, config.batch_size))
    num_images = bench.images_or(4 * size, 12_936)
    precision = bench.precision
    run, steps_per_run, step = _training(bench, num_images, size)
    found = measure(run, device, budget=bench.settings.budget)
    seconds = found.seconds / steps_per_run
    store = ImageStore(made_images(size, config.height, config.width))
    inputs = normalize(store.gather(np.arange(size), device))
    resident = _time_network(bench, model, inputs, precision)
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    ideal = 3 * _forward_flops(bench) * size / bench.machine.product_rate(precision)
    return [
        StageResult(
            "step",
            f"{config.arch} {config.height}x{config.width} b={size} {precision}",
            size,
            seconds,
            found.peak_bytes,
            f"{precision} product",
            ideal / seconds,
            _time_network(bench, plain, inputs.contiguous(), "fp32"),
            "fp32 channels first, network alone",
            {"network alone": resident},
            f"{100 * resident / seconds:.0f} % of it the network"
            + (f"; in {step.micro_batches.count} parts, to fit" if step.micro_batches.count > 1 else ""),
            {"batch": size, "parameters": sum(value.numel() for value in model.parameters())},
        )
    ]


def _training(bench: Bench, num_images: int, size: int) -> tuple[Callable[[], None], int, TrainStep]:
    """Return an action that trains for some steps, how many, and what it trains with."""
    config, model, device = bench.settings.config, bench.model, bench.device
    store = ImageStore(made_images(num_images, config.height, config.width))
    keep_on_device(store, device)
    step = TrainStep(
        model,
        make_optimizer(model, config.lr, config.weight_decay),
        store,
        _method(bench, num_images // IMAGES_PER_IDENTITY + 1),
        precision=bench.precision,
        group=Group(device=device),
        batch_size=size,
        samples_per_bn=config.samples_per_bn,
        reporter=bench.reporter,
    )
    targets = torch.arange(num_images) // IMAGES_PER_IDENTITY
    cameras = torch.from_numpy(made_cameras(num_images))
    batches = sample_epoch(
        targets.numpy(),
        cameras.numpy(),
        batch_size=size,
        num_instances=min(config.num_instances, size),
        num_batches=64,
        generator=np.random.default_rng(config.seed),
    )
    numbers, rows = count(), cycle(batches)
    # A GPU is waited for after several steps only, as in training.
    steps_per_run = 10 if bench.on_gpu else 1

    def run() -> None:
        model.train()
        for _ in range(steps_per_run):
            indices = next(rows)
            generator = torch.Generator().manual_seed(next(numbers))
            plan = draw_augmentation(size, config.height, config.width, generator)
            chosen = torch.from_numpy(indices)
            step(Batch(indices, targets[chosen], cameras[chosen], plan))

    return run, steps_per_run, step


def _method(bench: Bench, num_clusters: int) -> Method:
    """Return the run's method as it is in an epoch with at least as many clusters as real data gives."""
    config = bench.settings.config
    random = torch.Generator().manual_seed(config.seed)
    number = max(_LEAST_CLUSTERS, num_clusters)
    rows = torch.nn.functional.normalize(torch.randn(number, bench.model.embedding_dim, generator=random))
    method = METHODS["cluster-contrast"].load()(bench.model, config)
    method.begin_epoch(0, rows.to(bench.device), torch.arange(number), torch.zeros(number, dtype=torch.int64))
    return method


def _time_network(bench: Bench, model: ReidNet, inputs: torch.Tensor, precision: str) -> float:
    """Time steps of a network on one batch that is there already: no images to fetch, none to augment."""
    config = bench.settings.config
    optimizer = make_optimizer(model, config.lr, config.weight_decay)
    method, size = _method(bench, 0), len(inputs)
    targets = torch.arange(size) // config.num_instances % _LEAST_CLUSTERS
    plan = draw_augmentation(size, config.height, config.width, torch.Generator().manual_seed(0))
    batch = Batch(np.arange(size), targets, torch.zeros_like(targets), plan)
    repeats = 10 if bench.on_gpu else 1

    def run() -> None:
        model.train()
        for _ in range(repeats):
            optimizer.zero_grad(set_to_none=True)
            with autocast(bench.device, precision):
                features = model(inputs)
            torch.autograd.backward(method.loss(features, inputs, batch))
            optimizer.step()
            method.after_step(features.detach(), batch)

    return measure(run, bench.device, budget=bench.settings.budget / 2).seconds / repeats


@torch.no_grad()
def _forward_flops(bench: Bench) -> float:
    """Count the floating-point operations of the network for one image; a training step takes three times as many."""
    config, model = bench.settings.config, bench.model.eval()
    images = torch.zeros(1, 3, config.height, config.width, device=bench.device)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return float(counter.get_total_flops())


def time_extraction(bench: Bench) -> list[StageResult]:
    """Features of the images of a store; beside it the network in float32, channels first."""
    config, model, device = bench.settings.config, bench.model, bench.device
    num_images = bench.images_or(128, 12_936)
    size = min(bench.settings.batch_size or default_batch_size(device), num_images)
    precision = bench.precision
    store = ImageStore(made_images(num_images, config.height, config.width))
    keep_on_device(store, device)
    found = measure(
        lambda: extract_features(model, store, device=device, precision=precision, batch_size=size),
        device,
        budget=bench.settings.budget,
    )
    ideal = _forward_flops(bench) * num_images / bench.machine.product_rate(precision)
    return [
        StageResult(
            "extract",
            f"{config.arch} {config.height}x{config.width}, {num_images:,} images, b={size} {precision}",
            num_images,
            found.seconds,
            found.peak_bytes,
            f"{precision} product",
            ideal / found.seconds,
            _time_plain_inference(bench, store, size) * num_images / size,
            "fp32 channels first, network alone",
        )
    ]


@torch.inference_mode()
def _time_plain_inference(bench: Bench, store: ImageStore, size: int) -> float:
    """Time one batch."""
    model = copy.deepcopy(bench.model).to(memory_format=torch.contiguous_format).eval()
    images = normalize(store.gather(np.arange(size), bench.device)).contiguous()
    return measure(lambda: model(images), bench.device, budget=bench.settings.budget / 2).seconds


def time_evaluation(bench: Bench) -> list[StageResult]:
    """MAP and CMC from made features; beside it, on the CPU, a loop over some queries that sorts the gallery."""
    settings = bench.settings
    num_queries, num_gallery = settings.num_queries, settings.num_gallery
    total = num_queries + num_gallery
    features, identities = made_features(total, settings.dim, device=bench.device if bench.on_gpu else None)
    ids, cams = identities.cpu().numpy(), made_cameras(total)
    query = (features[:num_queries], ids[:num_queries], cams[:num_queries])
    gallery = (features[num_queries:], ids[num_queries:], cams[num_queries:])
    found = measure(
        lambda: evaluate_features(*query, *gallery, device=bench.device), bench.device, budget=settings.budget
    )
    looped = min(num_queries, _PLAIN_QUERIES)
    arrays = [side.cpu().numpy() for side in (query[0][:looped], gallery[0])]
    plain = measure(
        lambda: plain_average_precision(arrays[0], ids, cams, arrays[1]),
        torch.device("cpu"),
        budget=settings.budget / 4,
    )
    ideal = 2 * num_queries * num_gallery * settings.dim / bench.machine.product_rate("fp32")
    return [
        StageResult(
            "eval",
            f"{num_queries:,} queries x {num_gallery:,} gallery x {settings.dim:,}",
            num_queries,
            found.seconds,
            found.peak_bytes,
            "fp32 product",
            ideal / found.seconds,
            plain.seconds * num_queries / looped,
            f"one query after another, on the CPU ({looped} timed)",
            numbers={"queries": num_queries, "gallery": num_gallery},
        )
    ]


def plain_average_precision(
    query: NDArray[np.float32], ids: NDArray[np.int64], cams: NDArray[np.int64], gallery: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Score queries one after another by sorting the whole gallery: the straightforward way.

    Args:
        query: (Q, D) unit rows.
        ids: Identities of at least the Q queries first, and of the gallery last.
        cams: Cameras likewise.
        gallery: (G, D) unit rows.

    Returns:
        (Q,) average precision, NaN for a query without a match.
    """
    scores = query @ gallery.T
    gallery_ids, gallery_cams = ids[-len(gallery) :], cams[-len(gallery) :]
    result = np.full(len(query), np.nan)
    for number, row in enumerate(scores):
        order = np.argsort(-row)
        same = gallery_ids[order] == ids[number]
        matches = same[~(same & (gallery_cams[order] == cams[number]))]
        if matches.any():
            result[number] = (np.cumsum(matches) / np.arange(1, len(matches) + 1))[matches].mean()
    return result


def time_store(bench: Bench) -> list[StageResult]:
    """Decode and resize JPEG files into a cache once; open it again and read every image in random order."""
    config, device = bench.settings.config, bench.device
    num_images = bench.images_or(2000, 12_936)
    workers = threads_per_process(1)
    with tempfile.TemporaryDirectory(prefix="ccreid-bench-") as name:
        folder = Path(name)
        paths, numbers = write_images(folder, num_images), count()

        def open_in(place: Path) -> ImageStore:
            return open_store(paths, config.height, config.width, cache_folder=place, workers=workers)

        def read() -> None:
            store = open_in(folder / "0")
            order = torch.from_numpy(np.random.default_rng(config.seed).permutation(num_images))
            for rows in torch.split(order, _READ_BATCH):
                store.gather(rows, device)

        build = measure(lambda: open_in(folder / str(next(numbers))), device, budget=bench.settings.budget, most=2)
        found = measure(read, device, budget=bench.settings.budget)
    return _store_results(bench, num_images, workers, build, found)


def _store_results(
    bench: Bench, num_images: int, workers: int, build: Measurement, read: Measurement
) -> list[StageResult]:
    height, width = bench.settings.config.height, bench.settings.config.width
    size = f"{num_images:,} images to {height}x{width}"
    num_bytes = num_images * height * width * 3
    per_core = num_images / build.seconds / workers
    return [
        StageResult(
            "store build",
            size,
            num_images,
            build.seconds,
            build.peak_bytes,
            note=f"{per_core:,.0f} img/s per core ({workers})",
        ),
        StageResult(
            "store read",
            size,
            num_images,
            read.seconds,
            read.peak_bytes,
            "copy",
            2 * num_bytes / bench.machine.copy_rate() / read.seconds,
            build.seconds,
            "decoding again",
            note="second epoch, opening included",
        ),
    ]
