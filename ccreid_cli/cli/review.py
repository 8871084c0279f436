"""`ccreid review`: a page on this machine to correct identities by hand."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.model_use import ModelUse
from ccreid_cli.core.config import DATA

if TYPE_CHECKING:
    from ccreid_cli.core.reporter import Reporter
    from ccreid_cli.review.desk import Desk
    from ccreid_cli.review.journal import Journal

SERVER = "Server"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("review", rich_help_panel="Use a model")(review)


def review(
    identities: Annotated[
        Path, typer.Argument(metavar="IDENTITIES.csv", help="Columns path and id, as `ccreid identify` writes them.")
    ],
    use: ModelUse,
    features: Annotated[
        Path | None,
        typer.Option(
            "--features",
            help="Features of these images, instead of a model. Default: computed once, then kept beside the CSV.",
            rich_help_panel=DATA,
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            "--port", help="Where the page is. Default: 0, any free one.", min=0, max=65535, rich_help_panel=SERVER
        ),
    ] = 0,
    no_browser: Annotated[
        bool,
        typer.Option("--no-browser", help="Only say the address. Default: off.", rich_help_panel=SERVER),
    ] = False,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Correct identities on a page in the browser: merge, split, move, name; the most doubtful first.

    Every answer is on disk (beside the CSV) before it counts. Ctrl-C ends the page and writes the CSV again, with a
    column `checked`: 1 where somebody has answered for an image.

    Example: `ccreid review identities.csv --resume logs/RUN`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.components import require
    from ccreid_cli.core.locks import FileLock
    from ccreid_cli.review.desk import Desk
    from ccreid_cli.review.features import features_from, features_of
    from ccreid_cli.review.journal import Journal
    from ccreid_cli.review.table import read_identities

    for package in ("starlette", "uvicorn"):
        require(package, "review")
    path, reporter = identities.resolve(), make_reporter(progress)
    read_identities(path)  # what is wrong in it is said before it is locked

    lock = FileLock(path.with_name(path.name + ".lock"), what=str(identities))
    lock.acquire(wait=False)
    try:
        table = read_identities(path)
        with closing(Journal(table)) as journal:
            rows = (
                features_from(features, table)
                if features is not None
                else features_of(
                    table,
                    partial(use.open, len(table), reporter) if use.resume else None,
                    workers=use.workers,
                    batch_size=use.batch_size,
                    reporter=reporter,
                )
            )
            _serve(Desk(table, journal, rows), journal, port, not no_browser, as_json, reporter)
    finally:
        lock.release()


def _serve(desk: Desk, journal: Journal, port: int, browser: bool, as_json: bool, reporter: Reporter) -> None:
    """Show the page until it is ended, then write the CSV."""
    import secrets

    from ccreid_cli.review.server import listen, serve

    listening, token = listen(port), secrets.token_urlsafe(24)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/"
    if as_json:
        output.print_json({"address": address, "journal": str(journal.path)})
    else:
        output.print_line(address)
    sys.stdout.flush()  # for a program that waits for the address
    reporter.message("Open this address in a browser on this machine; Ctrl-C ends it and writes the CSV.")
    if browser:
        _open_browser(address)
    try:
        serve(desk, listening, token)
    finally:
        if journal.write_table():
            reporter.message(f"written: {journal.table_path}")


def _open_browser(address: str) -> None:
    """Open the page where there is a screen: a browser in the terminal would take it over."""
    import webbrowser

    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)
