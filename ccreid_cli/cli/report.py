"""`ccreid report`: one self-contained HTML file on a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import logs_dir_or_default, named_data_dir, refuse_existing


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("report", rich_help_panel="Main")(report)


def report(
    run: opt.Run,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The HTML file. Default: report.html in the run.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    checkpoint: opt.Checkpoint = "last",
    no_images: Annotated[
        bool,
        typer.Option(
            "--no-images",
            help="Leave out all images (rankings, clusters), to pass the file on. Default: off.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = False,
    force: opt.Force = False,
    data_dir: opt.DataDir = None,
    logs_dir: opt.LogsDir = None,
    device: opt.Device = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Write a report on a run: curves, scores beside the published ones, rankings, clusters, settings.

    One HTML file that needs no network. Train writes one too; this makes it anew, also while a run is under way.

    Examples: `ccreid report logs/RUN`, `ccreid report RUN -o report.html --no-images`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.engine.run_folder import find_run
    from ccreid_cli.report.gather import FILE_NAME, write_report

    folder = find_run(run, logs_dir_or_default(logs_dir))
    # The run's own report is made anew as the run goes on.
    if out is not None and out.resolve() != (folder.path / FILE_NAME).resolve():
        refuse_existing(force, out)
    path = write_report(
        folder,
        out,
        device=device or "auto",
        reporter=make_reporter(progress),
        with_images=not no_images,
        checkpoint=checkpoint,
        # A run's images are where it was trained, unless a flag or the environment names another place.
        data_dir=named_data_dir(data_dir),
    )
    if as_json:
        output.print_json({"run": str(folder.path), "report": str(path), "bytes": path.stat().st_size})
    else:
        output.print_line(str(path))
