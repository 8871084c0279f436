"""What a report is made from: the records of a run, its images and its network, as far as they can be had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.side_tasks import side_task
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.inference.loading import LoadedModel, ModelRequest, load_network
from ccreid_cli.report.numbers import as_mapping

T = TypeVar("T")


class Notes:
    """What a reader should know, above all what is left out and why.

    Args:
        reporter: Where a failure is told at once.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.texts: list[str] = []

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Do something whose failure costs a part of the report, not the report.

        Returns:
            What it returns; None where it failed.
        """
        with side_task("report", self.reporter) as task:
            return action()
        self.texts.append(f"Left out: {task.problem}")
        return None


@dataclass(frozen=True)
class Sources:
    """All that the sections of a report read.

    Attributes:
        config: The run's settings.
        environment: The run's record of where and how it was started.
        result: The run's result; empty before its end.
        metrics: The lines of metrics.jsonl.
        notes: What to tell the reader.
        with_images: Whether images of the dataset may be shown.
        data_dir: Folder of the datasets.
        dataset: The images; None where they cannot be read.
        loaded: The network; None where there is none.
        checkpoint: Where the network is from, in words.
        run: The run's folder.
    """

    config: TrainConfig
    environment: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    notes: Notes
    with_images: bool
    data_dir: Path
    dataset: ReidDataset | None = None
    loaded: LoadedModel | None = None
    checkpoint: str = ""
    run: str = ""


def read_records(run: RunFolder, notes: Notes, *, with_images: bool, data_dir: Path | None = None) -> Sources:
    """Read what a run wrote about itself; no image and no network is needed.

    Raises:
        DataError: The folder is no run.
        UsageError: The run's settings are damaged.
    """
    config = run.read_config()
    metrics = tuple(line for line in run.read_metrics() if isinstance(line, Mapping))
    result, environment = run.read_result(), run.read_environment()
    return Sources(
        config, environment, result, metrics, notes, with_images, data_dir or config.data_dir, run=str(run.path)
    )


def open_network(records: Sources, run: RunFolder, checkpoint: str, device: str, *, say_device: bool) -> Sources:
    """Add the images and the network; what is missing is noted.

    Args:
        records: What the run wrote about itself.
        run: The run.
        checkpoint: ``last`` or ``best``.
        device: As ``--device``.
        say_device: Whether the device is said.
    """
    notes = records.notes
    config = records.config
    dataset = notes.attempt(
        lambda: load_dataset(
            config.dataset, records.data_dir, notes.reporter, columns=config.columns, pattern=config.pattern
        )
    )
    if dataset is None:
        return records
    trained_on = as_mapping(records.environment.get("dataset")).get("fingerprint")
    if trained_on and trained_on != dataset.fingerprint():
        notes.texts.append(
            f"The images in {dataset.root} are not those the run was trained on: rankings and clusters may differ."
        )
    request = ModelRequest(str(run.path), checkpoint)
    loaded = notes.attempt(
        lambda: load_network(request, run.path.parent, device, notes.reporter, say_device=say_device)
    )
    if loaded is None:
        return replace(records, dataset=dataset)
    epoch = as_mapping(loaded.meta.get("training")).get("epoch")
    when = f" (after epoch {epoch})" if isinstance(epoch, int) else ""
    return replace(records, dataset=dataset, loaded=loaded, checkpoint=f"the {checkpoint} checkpoint{when}")
