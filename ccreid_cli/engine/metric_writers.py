"""Where the metrics of every epoch go: files in the run's folder always, TensorBoard and Weights & Biases on request.

A run's steps are its epochs, counted from 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from ccreid_cli.core.components import require
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.side_tasks import problem_of, side_task
from ccreid_cli.engine.run_folder import RunFolder, flatten

TENSORBOARD_FOLDER = "tensorboard"
WANDB_PROJECT = "ccreid"


class MetricWriter(Protocol):
    """Takes the metrics of one epoch after the other."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take an epoch's metrics: ``epoch`` (from 0) and what was measured, nested where that is natural."""

    def close(self) -> None:
        """Write out what is still held back."""


class FolderWriter:
    """Keeps ``metrics.jsonl`` and ``metrics.csv`` of a run.

    An epoch that is written again, as after a resume from an older checkpoint, takes the place of itself and of all
    that followed it.

    Args:
        run: The run.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._lines = run.read_metrics()

    def write(self, line: Mapping[str, Any]) -> None:
        """Write both files anew, whole.

        Raises:
            DataError: The disk is full or the folder not writable.
        """
        self._lines = [old for old in self._lines if old["epoch"] < line["epoch"]] + [dict(line)]
        self.run.write_metrics(self._lines)

    def close(self) -> None:
        """Do nothing: the files are whole after every epoch."""


class TensorBoardWriter:
    """Writes event files into ``tensorboard/`` of a run.

    Args:
        run: The run.
        config: Its settings, shown as text.

    Raises:
        UsageError: The package tensorboard cannot be imported, or the folder cannot be made.
    """

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        self._module = _tensorboard()
        self._folder = str(run.path / TENSORBOARD_FOLDER)
        self._settings = "    " + config.to_toml().replace("\n", "\n    ")
        self._writer: Any = None
        try:
            (run.path / TENSORBOARD_FOLDER).mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"TensorBoard's folder {self._folder} cannot be made: {error.strerror}.", "Give --no-tensorboard."
            ) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one scalar per number and hand them to the disk."""
        step = line["epoch"] + 1
        if self._writer is None:
            # What an earlier process wrote of this and later epochs, before a resume, is hidden.
            self._writer = self._module.SummaryWriter(log_dir=self._folder, purge_step=step)
            self._writer.add_text("settings", self._settings, step)
        for name, value in scalars(line):
            self._writer.add_scalar(name.replace(".", "/"), value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class WandbWriter:
    """Sends metrics to Weights & Biases through its own package; ``WANDB_MODE=offline`` keeps them on the disk.

    Args:
        run: The run. When it is resumed, so is its page.
        config: Its settings.

    Raises:
        UsageError: The package wandb cannot be imported, or it refuses to start.
    """

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        module = _wandb()
        folder = str(run.path.absolute())
        try:
            self._run = module.init(
                project=WANDB_PROJECT,
                name=run.path.name,
                id=hashlib.sha256(f"{folder} {run.read_environment().get('started')}".encode()).hexdigest()[:16],
                resume="allow",
                dir=folder,
                config=config.as_json(),
            )
        except Exception as error:  # its own, and whatever the network, the disk and its service raise
            raise UsageError(
                f"wandb did not start: {problem_of(error).rstrip('. ')}.",
                "`wandb login` first, set WANDB_MODE=offline, or give --no-wandb.",
            ) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Send the numbers of an epoch."""
        self._run.log(dict(scalars(line)), step=line["epoch"] + 1)

    def close(self) -> None:
        """Wait until all is sent or stored."""
        self._run.finish()


class MetricWriters:
    """Several writers as one, each tried in every epoch: one that fails says so once, and stops nothing.

    Args:
        writers: Where each one writes -> the writer, in the order to write.
        reporter: Told of the first failure of each.
    """

    def __init__(self, writers: Mapping[str, MetricWriter], reporter: Reporter) -> None:
        self.writers = dict(writers)
        self._reporter = reporter
        self._failing: set[str] = set()

    def write(self, line: Mapping[str, Any]) -> None:
        """Hand the line to every writer."""
        for name, writer in self.writers.items():
            self._try(name, partial(writer.write, line))

    def close(self) -> None:
        """Close every writer."""
        for name, writer in self.writers.items():
            self._try(name, writer.close)

    def _try(self, name: str, action: Callable[[], None]) -> None:
        reporter = SilentReporter() if name in self._failing else self._reporter
        with side_task(f"metrics did not go to {name}, training goes on", reporter) as task:
            action()
        if task.problem:
            self._failing.add(name)


def make_writers(
    run: RunFolder, tensorboard: bool, wandb: bool, config: TrainConfig, reporter: Reporter | None = None
) -> MetricWriter:
    """Return the writers of a run: its own files, and what was asked for beside them.

    Args:
        run: The run; its folder exists.
        tensorboard: Whether event files are wanted.
        wandb: Whether Weights & Biases is wanted.
        config: The run's settings.
        reporter: Told when a writer fails later.

    Raises:
        UsageError: A package cannot be imported, or TensorBoard or wandb cannot start.
    """
    writers: dict[str, MetricWriter] = {"the run's folder": FolderWriter(run)}
    if tensorboard:
        writers["TensorBoard"] = TensorBoardWriter(run, config)
    if wandb:
        writers["wandb"] = WandbWriter(run, config)
    return MetricWriters(writers, reporter or SilentReporter())


def require_writers(tensorboard: bool, wandb: bool) -> None:
    """Refuse early, before minutes of decoding, what `make_writers` would refuse.

    Raises:
        UsageError: A package cannot be imported.
    """
    if tensorboard:
        _tensorboard()
    if wandb:
        _wandb()


def _tensorboard() -> Any:
    return require("torch.utils.tensorboard", "tensorboard", package="tensorboard")


def _wandb() -> Any:
    return require("wandb")


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of a line under dotted names, without the epoch itself."""
    for name, value in flatten(line).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name != "epoch" and is_number and math.isfinite(value):
            yield name, value
