"""`ccreid eval`: a network, from a checkpoint or untrained, scored on a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.evaluation_set import EvaluationSet
from ccreid_cli.images.opening import image_settings
from ccreid_cli.inference.loading import LoadedModel, Preprocessing
from ccreid_cli.machine.distributed import Group


def score_model(
    loaded: LoadedModel,
    dataset_name: str,
    *,
    data_dir: Path,
    columns: str | None = None,
    pattern: str | None = None,
    height: int | None,
    width: int | None,
    resize: str | None = None,
    workers: int,
    batch_size: int | None,
    precision: str,
    rerank: bool,
    camera_norm: bool = False,
    camera_batch_norm: bool = False,
    tracklets: bool = False,
    group: Group | None = None,
    reporter: Reporter,
    on_dataset: Callable[[ReidDataset], None] | None = None,
) -> dict[str, Any]:
    """Score a network on a dataset's query and gallery.

    Args:
        loaded: The network.
        dataset_name: A dataset's name, or a path.
        data_dir: Folder of the datasets.
        columns: As ``--columns``.
        pattern: As ``--pattern``.
        height: Input height; None for the one it was trained at, else the dataset's usual one.
        width: Input width, likewise.
        resize: How images are resized; None for what the checkpoint says.
        workers: Threads that decode.
        batch_size: Images at once; None for what suits the device.
        precision: ``auto``, ``fp32`` or ``bf16``.
        rerank: Score k-reciprocal re-ranked distances.
        camera_norm: Standardise features within each camera first, by the gallery's statistics.
        camera_batch_norm: Let batch norms take the statistics of the test images of each image's camera.
        tracklets: Score tracklets by the mean of their features, not images.
        group: The processes that share the work; all get the scores.
        reporter: Where progress goes.
        on_dataset: Called with the dataset once it is read.

    Returns:
        The evaluation's JSON form.

    Raises:
        DataError: The dataset is missing, broken, or cannot be scored.
        UsageError: `camera_norm` or `camera_batch_norm` with fewer than two known cameras, or the latter for a network
            without batch norms.
    """
    group = group or Group(device=loaded.device)
    dataset = group.on_main(lambda: load_dataset(dataset_name, data_dir, reporter, columns=columns, pattern=pattern))
    if on_dataset:
        on_dataset(dataset)
    if dataset.why_not_scored:
        raise DataError(f"{dataset.why_not_scored}: nothing can be scored.", "`ccreid data info` shows what it holds.")
    prepared = Preprocessing.of(loaded, dataset_name, height, width, resize, reporter)
    settled = loaded.precision(precision)
    reporter.message(f"input: {prepared.height} x {prepared.width}, {prepared.resize}, {settled}")
    images = image_settings(prepared.height, prepared.width, workers, data_dir, resize=prepared.resize)
    evaluation_set = EvaluationSet(dataset, images, group, reporter)
    evaluation = evaluation_set.score(
        loaded.model,
        loaded.device,
        settled,
        rerank=rerank,
        camera_norm=camera_norm,
        camera_batch_norm=camera_batch_norm,
        tracklets=tracklets,
        batch_size=batch_size,
    )
    return evaluation.as_json()
