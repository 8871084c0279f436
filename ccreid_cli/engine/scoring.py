"""`ccreid eval`: a network, from a checkpoint or untrained, scored on a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.data.layout import load_dataset
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.device import derived_seed, resolve_device, resolve_precision
from ccreid_cli.engine.distributed import Group
from ccreid_cli.engine.run_folder import RunFolder, find_run
from ccreid_cli.engine.session import TestSet, image_settings, place
from ccreid_cli.models.formats import WeightFile, load_reid_weights, read_weights, resolve_spec
from ccreid_cli.models.reid_net import ModelSpec, ReidNet, build_model


@dataclass(frozen=True)
class ModelRequest:
    """Which network to load; None where the command line says nothing.

    Attributes:
        resume: A run's name or folder, or a checkpoint file; None for an untrained network.
        checkpoint: Which of a run's checkpoints: ``last`` or ``best``.
        arch: Backbone.
        pooling_type: Pooling.
        features: Embedding size.
        dropout: Dropout, without effect on features.
        weights: Starting weights of an untrained network.
        seed: Seed of random starting weights.
    """

    resume: str | None = None
    checkpoint: str = "last"
    arch: str | None = None
    pooling_type: str | None = None
    features: int | None = None
    dropout: float | None = None
    weights: str | None = None
    seed: int = 1


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to use.

    Attributes:
        model: In evaluation mode, on `device`.
        source: Where its weights came from, in words.
        path: The checkpoint file, if any.
        meta: What the checkpoint says beside the weights.
        device: Where it is.
    """

    model: ReidNet
    source: str
    path: Path | None
    meta: dict[str, Any]
    device: torch.device

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width the checkpoint was trained at, when it says so."""
        preprocess = self.meta.get("preprocess")
        if isinstance(preprocess, str):
            preprocess = json.loads(preprocess)  # the header of a safetensors file holds text only
        if not isinstance(preprocess, dict):
            return None
        return int(preprocess["height"]), int(preprocess["width"])

    def trained_on(self) -> tuple[str, Path] | None:
        """Return the dataset's name (or path) and the data directory, when the checkpoint says so."""
        values = self._settings()
        return (str(values["dataset"]), Path(values["data_dir"])) if "dataset" in values else None

    def precision(self, request: str) -> str:
        """Return the number format to score in: as asked; for ``auto`` the run's own, else the exact one, fp32."""
        if request == "auto":
            request = str(self._settings().get("precision", "fp32"))
        return resolve_precision("fp32" if request == "auto" else request, self.device)

    def _settings(self) -> dict[str, Any]:
        config = self.meta.get("config")
        values = json.loads(config) if isinstance(config, str) else {}
        return values if isinstance(values, dict) else {}


def checkpoint_file(resume: str, which: str, logs_dir: Path) -> Path:
    """Return the checkpoint that ``--resume`` means.

    Raises:
        DataError: There is no such run, or it has no checkpoint yet.
    """
    path = Path(resume).expanduser()
    if path.is_file():
        return path
    run: RunFolder = find_run(resume, logs_dir)
    file = run.checkpoints / f"{which}.pt"
    if not file.is_file():
        newest = run.store().numbered()
        if which == "best" or not newest:
            raise DataError(f"{run.path} has no {which} checkpoint yet.", "`ccreid runs show` tells how far it is.")
        return newest[-1]
    return file


def load_network(
    request: ModelRequest, logs_dir: Path, device: str, reporter: Reporter, *, say_device: bool = True
) -> LoadedModel:
    """Build the network that is asked for.

    Args:
        request: Which network.
        logs_dir: Folder of the runs.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        reporter: Where messages go.
        say_device: Whether the device is one of them.

    Raises:
        UsageError: A flag contradicts the checkpoint.
        CheckpointError: The checkpoint is damaged, unsafe or does not fit.
        DataError: There is no such run.
    """
    choice = resolve_device(device)
    if say_device:
        reporter.message(f"device: {choice.device} ({choice.reason})")
    if request.resume is None:
        spec = ModelSpec(
            request.arch or "resnet50", request.pooling_type or "gem", request.features or 0, request.dropout or 0.0
        )
        torch.manual_seed(derived_seed("weights", request.seed))
        weights = request.weights or "imagenet"
        model = build_model(spec, weights=weights, reporter=reporter)
        return LoadedModel(place(model, choice.device).eval(), f"{weights} weights", None, {}, choice.device)
    path = checkpoint_file(request.resume, request.checkpoint, logs_dir)
    file: WeightFile = read_weights(path)
    for note in file.notes:
        reporter.message(note)
    spec = resolve_spec(
        file,
        arch=request.arch,
        pooling_type=request.pooling_type,
        num_features=request.features,
        dropout=request.dropout,
    )
    model = ReidNet(spec, initialize_backbone=False)
    load_reid_weights(model, file.state_dict, source=str(path))
    return LoadedModel(place(model, choice.device).eval(), str(path), path, file.meta, choice.device)


def input_size(loaded: LoadedModel, dataset: str, height: int | None, width: int | None) -> tuple[int, int]:
    """Return height and width: as asked, else as trained, else as usual for the dataset."""
    info = CATALOG.get(dataset)
    usual = (info.height, info.width) if info else (256, 128)
    size = loaded.image_size or usual
    return height or size[0], width or size[1]


def score_model(
    loaded: LoadedModel,
    dataset_name: str,
    *,
    data_dir: Path,
    height: int | None,
    width: int | None,
    workers: int,
    batch_size: int | None,
    precision: str,
    rerank: bool,
    reporter: Reporter,
    on_dataset: Callable[[ReidDataset], None] | None = None,
) -> dict[str, Any]:
    """Score a network on a dataset's query and gallery.

    Args:
        loaded: The network.
        dataset_name: A dataset's name, or a path.
        data_dir: Folder of the datasets.
        height: Input height; None for the one it was trained at, else the dataset's usual one.
        width: Input width, likewise.
        workers: Threads that decode.
        batch_size: Images at once; None for what suits the device.
        precision: ``auto``, ``fp32`` or ``bf16``.
        rerank: Score k-reciprocal re-ranked distances.
        reporter: Where progress goes.
        on_dataset: Called with the dataset once it is read.

    Returns:
        The evaluation's JSON form.

    Raises:
        DataError: The dataset is missing, broken, or cannot be scored.
    """
    dataset = load_dataset(dataset_name, data_dir, reporter)
    if on_dataset:
        on_dataset(dataset)
    if not dataset.has_evaluation:
        raise DataError(f"{dataset.name} has no query and gallery images with identities to score with.")
    height, width = input_size(loaded, dataset_name, height, width)
    group = Group(device=loaded.device)
    settled = loaded.precision(precision)
    reporter.message(f"input: {height} x {width}, {settled}")
    test_set = TestSet(dataset, image_settings(height, width, workers, data_dir), group, reporter)
    return test_set.score(loaded.model, loaded.device, settled, rerank=rerank, batch_size=batch_size).as_json()
