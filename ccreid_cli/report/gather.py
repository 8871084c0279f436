"""A report on a run: gather the values of every section, then draw them as one HTML file.

To add a section: a function in `SECTIONS` that returns plain values, and ``templates/KEY.html`` that shows them under
the name `section`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ccreid_cli.core.files import atomic_write_text
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.version import __version__
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.report import examine, records
from ccreid_cli.report.content import ReportContent
from ccreid_cli.report.sources import Notes, Sources, open_network, read_records

FILE_NAME = "report.html"


SECTIONS: dict[str, Callable[[Sources], object | None]] = {
    "results": records.results,
    "training": records.training,
    "retrieval": examine.retrieval,
    "clusters": examine.clusters,
    "setup": records.setup,
}
"""Key -> what gathers a section, in the order of the page.

The key ``two-words`` is also the name of the template and of the link, and, as "Two words", the heading.
A function that returns None leaves its section out; so does one that fails, and that is noted.
"""


def write_report(
    run: RunFolder,
    out: Path | None = None,
    *,
    device: str = "auto",
    reporter: Reporter | None = None,
    with_images: bool = True,
    checkpoint: str = "last",
    data_dir: Path | None = None,
    say_device: bool = True,
) -> Path:
    """Write a report on a run. What cannot be shown (images, a checkpoint, an evaluation) is left out and noted.

    Args:
        run: The run, finished or not.
        out: The file; by default ``report.html`` in the run's folder.
        device: Where features are computed, as ``--device``.
        reporter: Where progress goes.
        with_images: Whether images of the dataset are shown. Without them the training images need no features.
        checkpoint: Which checkpoint rankings and clusters come from: ``last`` or ``best``.
        data_dir: Folder of the datasets; by default where the run was trained.
        say_device: Whether the device is said, as it need not be where training has just said it.

    Returns:
        The file.

    Raises:
        DataError: The folder is no run, or the file cannot be written.
        UsageError: The run's settings are damaged.
    """
    notes = Notes(reporter or SilentReporter())
    own_records = read_records(run, notes, with_images=with_images, data_dir=data_dir)
    sources = open_network(own_records, run, checkpoint, device, say_device=say_device)
    content = gather(sources, run.path.absolute().name)
    # Only report.page draws, and only here is it needed: Matplotlib takes a second to import.
    from ccreid_cli.report.page import render

    path = out or run.path / FILE_NAME
    atomic_write_text(path, render(content))
    return path


def gather(sources: Sources, name: str) -> ReportContent:
    """Gather what a report shows.

    Args:
        sources: What there is to show.
        name: The run's name.
    """
    found = {key: sources.notes.attempt(partial(section, sources)) for key, section in SECTIONS.items()}
    config = sources.config
    return ReportContent(
        name=name,
        dataset=config.dataset,
        arch=config.arch,
        version=__version__,
        started=str(sources.environment.get("started", "")),
        epochs=config.epochs,
        metrics=sources.metrics,
        scores=records.all_scores(sources),
        sections={key: values for key, values in found.items() if values is not None},
        notes=tuple(sources.notes.texts),
    )
