"""Loading a network to use, from a run, a checkpoint or starting weights, and how its images are prepared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ccreid_cli.core.errors import CheckpointError, DataError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.engine.run_folder import RunFolder, find_run
from ccreid_cli.images.augment import IMAGENET_MEAN, IMAGENET_STD
from ccreid_cli.images.decoding import BICUBIC, RESIZES, resize_rule
from ccreid_cli.machine.device import derived_seed, resolve_device, resolve_precision
from ccreid_cli.models.placing import place
from ccreid_cli.models.programs import PROGRAMS, Program
from ccreid_cli.models.registry import usual_pooling
from ccreid_cli.models.reid_net import ModelSpec, ReidNet, build_model
from ccreid_cli.models.weight_files import (
    WeightFile,
    load_reid_weights,
    read_weights,
    recorded_entry,
    resolve_spec,
)


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
        program: The other program whose file it is, if any.
    """

    model: ReidNet
    source: str
    path: Path | None
    meta: dict[str, Any]
    device: torch.device
    program: Program | None = None

    def trained_on(self) -> tuple[str, Path] | None:
        """Return the dataset's name (or path) and the data directory, when the checkpoint says so."""
        values = self.settings()
        return (str(values["dataset"]), Path(values["data_dir"])) if "dataset" in values else None

    def precision(self, request: str) -> str:
        """Return the number format to score in: as asked; for ``auto`` the run's own, else the exact one, fp32."""
        if request == "auto":
            request = str(self.settings().get("precision", "fp32"))
        return resolve_precision("fp32" if request == "auto" else request, self.device)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the run that wrote the checkpoint; empty when it does not say."""
        return recorded_entry(self.meta, "config", str(self.path))

    def preprocess(self) -> dict[str, Any]:
        """Return how the checkpoint says its images were prepared; empty when it does not say."""
        return recorded_entry(self.meta, "preprocess", str(self.path))


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
            request.arch or "resnet50",
            request.pooling_type or usual_pooling(request.arch or "resnet50"),
            request.features or 0,
            request.dropout or 0.0,
        )
        asked = {"arch": request.arch, "pooling_type": request.pooling_type, "num_features": request.features}
        typed = [name for name, value in asked.items() if value is not None]
        torch.manual_seed(derived_seed("weights", request.seed))
        weights = request.weights or "imagenet"
        model = build_model(spec, weights=weights, reporter=reporter, typed=typed)
        program = (
            None if weights in ("imagenet", "none") else PROGRAMS.get(read_weights(Path(weights).expanduser()).kind)
        )
        if program and program.relu and not model.spec.relu:
            reporter.message(
                f"this is what a training starts from, without the ReLU at the end of {program.name}'s head; "
                f"`--resume {weights}` takes the network as released, with it."
            )
        return LoadedModel(place(model, choice.device).eval(), f"{weights} weights", None, {}, choice.device, program)
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
    load_reid_weights(model, file.state_dict, source=file.title)
    return LoadedModel(
        place(model, choice.device).eval(), str(path), path, file.meta, choice.device, PROGRAMS[file.kind]
    )


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared: RGB, resized to height × width, / 255, minus mean, over std.

    RGB is what a viewer shows: see `images.appearance`.

    Attributes:
        height: Rows of the network's input.
        width: Columns of the network's input.
        mean: Of red, green and blue, in [0, 1].
        std: Likewise.
        resize: How images are resized: a name of `images.decoding.RESIZES`.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: str = BICUBIC

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        dataset: str | None = None,
        height: int | None = None,
        width: int | None = None,
        resize: str | None = None,
        reporter: Reporter | None = None,
    ) -> Preprocessing:
        """Decide how images are prepared for a network.

        The size is the one asked for, else what the checkpoint says, else what its position embeddings are for, else
        what is usual for `dataset`, else for the dataset it was trained on, else 256 × 128. Images are resized as
        asked for, else as the checkpoint says, else as the program resizes that wrote the file, which is said, else
        bicubic.

        Args:
            loaded: The network.
            dataset: The dataset that is used now, if any.
            height: Rows asked for.
            width: Columns asked for.
            resize: How images are to be resized.
            reporter: Where it is said that another program's way to resize was taken.

        Raises:
            UsageError: There is no such way to resize.
            CheckpointError: What the checkpoint says cannot be read or done.
        """
        recorded, trained_on = loaded.preprocess(), loaded.trained_on()
        names = (dataset, trained_on[0] if trained_on else None)
        info = next((CATALOG[name] for name in names if name in CATALOG), None)
        usual = (info.height, info.width) if info else (256, 128)
        if loaded.path and loaded.model.spec.height:
            usual = (loaded.model.spec.height, loaded.model.spec.width)
        try:
            size = int(recorded.get("height", usual[0])), int(recorded.get("width", usual[1]))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{loaded.path}: its input size is not a number: {error}.") from error
        chosen = resize_rule(resize) if resize else _usual_resize(loaded, reporter or SilentReporter())
        return cls(height or size[0], width or size[1], resize=chosen)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {**values, "colour": "RGB", "scale": 1 / 255}


def _usual_resize(loaded: LoadedModel, reporter: Reporter) -> str:
    """Return how the images of a network are resized where the user says nothing."""
    recorded = loaded.preprocess().get("resize")
    if recorded is None and loaded.program and loaded.program.resize:
        reporter.message(
            f"images are resized ({loaded.program.resize}) as {loaded.program.name} resizes them; --resize decides."
        )
        return loaded.program.resize
    if recorded is not None and recorded not in RESIZES:
        raise CheckpointError(f"{loaded.path} wants {recorded} resizing; this ccreid knows {', '.join(RESIZES)}.")
    return recorded or BICUBIC
