"""The stages of `ccreid bench` but the training step, each beside a baseline where that is cheap to have."""

from __future__ import annotations

import statistics
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.bench.base import BASELINE_NETWORK, Bench, StageResult
from ccreid_cli.bench.measure import measure
from ccreid_cli.bench.synthetic import made_cameras, made_features, write_images
from ccreid_cli.core.words import plural
from ccreid_cli.engine.extraction import default_batch_size, extract_features
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.images.augment import normalize
from ccreid_cli.images.store import ImageStore, open_store
from ccreid_cli.machine.device import resolve_precision
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.ranks import threads_per_process
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.neighbors import fastest_dtype
from ccreid_cli.pseudo_labels.pipeline import PseudoLabels, pseudo_labels

_READ_BATCH = 256
_BASELINE_QUERIES = 100
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
    settings = ClusterSettings.of(bench.settings.config)
    total, dim = features.shape
    group = Group(device=bench.device)
    found = bench.measure(lambda: pseudo_labels(features, settings, group=group))
    labels: PseudoLabels = found.value
    precision = _PRECISIONS[fastest_dtype(bench.device if bench.on_gpu else torch.device("cpu"))]
    ideal = 2 * total**2 * dim / bench.machine.product_rate(precision)
    timed: list[PseudoLabels] = [value for _, value in found.value_seconds]
    return StageResult(
        stage="labels",
        size=f"{total:,} x {dim:,} {name}",
        count=total,
        seconds=found.seconds,
        peak_bytes=found.peak_bytes,
        ceiling=f"{precision} product",
        ceiling_share=ideal / found.seconds,
        parts={part: statistics.median(one.seconds[part] for one in timed) for part in labels.seconds},
        note=f"{plural(labels.num_clusters, 'cluster')}, {100 * labels.num_outliers / total:.0f} % outliers",
        numbers={"dim": dim},
    )


def time_extraction(bench: Bench) -> list[StageResult]:
    """Features of the images of a store; beside it the network in float32, channels first."""
    config, device = bench.settings.config, bench.device
    num_images = bench.images_or(128, 12_936)
    size = min(bench.settings.batch_size or default_batch_size(device), num_images)
    store, precision = bench.image_store(num_images), bench.precision
    found = bench.measure(
        lambda: extract_features(bench.model, store, device=device, precision=precision, batch_size=size)
    )
    ideal = bench.forward_flops() * num_images / bench.machine.product_rate(precision)
    return [
        StageResult(
            stage="extract",
            size=f"{config.arch} {config.height}x{config.width}, {num_images:,} images, b={size} {precision}",
            count=num_images,
            seconds=found.seconds,
            peak_bytes=found.peak_bytes,
            ceiling=f"{precision} product",
            ceiling_share=ideal / found.seconds,
            baseline_seconds=_time_baseline_inference(bench, store, size) * num_images / size,
            baseline=BASELINE_NETWORK,
        )
    ]


@torch.inference_mode()
def _time_baseline_inference(bench: Bench, store: ImageStore, size: int) -> float:
    """Time one batch."""
    resolve_precision("fp32", bench.device)  # without TF32, which bfloat16 before may have allowed
    model = bench.baseline_model().eval()
    images = normalize(store.gather(np.arange(size), bench.device)).contiguous()
    return bench.measure(lambda: model(images), share=0.5).seconds


def time_evaluation(bench: Bench) -> list[StageResult]:
    """MAP and CMC from made features; beside it, on the CPU, a loop over some queries that sorts the gallery."""
    settings = bench.settings
    num_queries, num_gallery = settings.num_queries, settings.num_gallery
    total = num_queries + num_gallery
    features, identities = made_features(total, settings.dim, device=bench.device if bench.on_gpu else None)
    ids, cams = identities.cpu().numpy(), made_cameras(total)
    query = (features[:num_queries], ids[:num_queries], cams[:num_queries])
    gallery = (features[num_queries:], ids[num_queries:], cams[num_queries:])
    found = bench.measure(lambda: evaluate_features(*query, *gallery, device=bench.device))
    looped = min(num_queries, _BASELINE_QUERIES)
    few, rows = features[:looped].cpu().numpy(), features[num_queries:].cpu().numpy()
    baseline = measure(
        lambda: baseline_average_precision(few, ids, cams, rows), torch.device("cpu"), budget=settings.budget / 4
    )
    ideal = 2 * num_queries * num_gallery * settings.dim / bench.machine.product_rate("fp32")
    return [
        StageResult(
            stage="eval",
            size=f"{num_queries:,} queries x {num_gallery:,} gallery x {settings.dim:,}",
            count=num_queries,
            seconds=found.seconds,
            peak_bytes=found.peak_bytes,
            ceiling="fp32 product",
            ceiling_share=ideal / found.seconds,
            baseline_seconds=baseline.seconds * num_queries / looped,
            baseline=f"one query after another, on the CPU ({looped} timed)",
            numbers={"queries": num_queries, "gallery": num_gallery},
        )
    ]


def baseline_average_precision(
    query: NDArray[np.float32], ids: NDArray[np.int64], cams: NDArray[np.int64], gallery: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Score queries one after another by sorting the whole gallery.

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
            size = config.height, config.width
            return open_store(paths, *size, cache_folder=place, workers=workers, resize=config.resize)

        def read_all() -> None:
            store = open_in(folder / "0")
            order = torch.from_numpy(np.random.default_rng(config.seed).permutation(num_images))
            for rows in torch.split(order, _READ_BATCH):
                store.gather(rows, device)

        build = bench.measure(lambda: open_in(folder / str(next(numbers))), most=2)
        read = bench.measure(read_all)
    size = f"{num_images:,} images to {config.height}x{config.width}"
    ideal = 2 * num_images * config.height * config.width * 3 / bench.machine.copy_rate()
    return [
        StageResult(
            stage="store build",
            size=size,
            count=num_images,
            seconds=build.seconds,
            peak_bytes=build.peak_bytes,
            note=f"{num_images / build.seconds / workers:,.0f} img/s per core ({workers})",
        ),
        StageResult(
            stage="store read",
            size=size,
            count=num_images,
            seconds=read.seconds,
            peak_bytes=read.peak_bytes,
            ceiling="copy",
            ceiling_share=ideal / read.seconds,
            baseline_seconds=build.seconds,
            baseline="decoding again",
            note="second epoch, opening included",
        ),
    ]
