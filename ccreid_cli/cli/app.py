"""The command line: its subcommands, and the run from the words to the exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType
from typing import Annotated, NoReturn

import typer

from ccreid_cli.cli import (
    bench,
    data,
    evaluate,
    export,
    extract,
    features,
    identify,
    json_lines,
    output,
    report,
    review,
    runs,
    system,
    train,
    weights,
)
from ccreid_cli.cli.completion import answers, scripts
from ccreid_cli.cli.error_messages import Stopped, leave
from ccreid_cli.cli.help_pages import PageGroup, use_pages
from ccreid_cli.cli.options import bind_all
from ccreid_cli.cli.steady_stream import steady_stderr
from ccreid_cli.core.version import __version__

COMMANDS = (
    *(train, evaluate, identify, review, report, extract, export),
    *(data, weights, features, runs, bench, system, scripts),
)
"""Modules that add commands, in the order in which `--help` shows them."""

START = """Three commands to start with:

  ccreid train -d toy             try it: two minutes
  ccreid data fetch market1501    get a real dataset
  ccreid train -d market1501      the published settings

`ccreid --help` lists everything."""


def build_app(words: Sequence[str] | None = None) -> typer.Typer:
    """Return the command line, with the datasets, backbones and other rows that the registries have now.

    Args:
        words: The command line, when only that is to be answered: the other commands then get no options, which saves
            a third of the time that `--help` and completion take.
    """
    app = typer.Typer(
        name="ccreid",
        cls=PageGroup,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(root)
    for module in COMMANDS:
        module.register(app)
    use_pages(app)
    bind_all(app, words)
    return app


def _show_version(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        output.print_text(f"ccreid {__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train and use object re-identification models without labels, by Cluster Contrast (arXiv 2103.11568)."""
    if context.invoked_subcommand is None:
        output.print_text(START)


def main() -> None:
    """Run the command line and leave with its exit code. No traceback reaches a user, but under CCREID_DEBUG=1."""
    # A stream that the caller closed is None.
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    for_program = json_lines.is_asked_for(sys.argv)
    with steady_stderr(), json_lines.on_stderr() if for_program else nullcontext():
        try:
            _stop_on_signals()
            _run()
        except (Exception, Stopped) as error:
            if os.environ.get("CCREID_DEBUG") == "1" and isinstance(error, Exception):
                raise
            leave(error)


def _run() -> None:
    """Answer a shell that completes, or do what the words say."""
    # The scripts that `--install-completion` installs hand their words on in the environment.
    app = build_app(None if "_CCREID_COMPLETE" in os.environ else sys.argv)
    if answers.VARIABLE in os.environ:
        answers.answer(app, sys.argv[1:], os.environ[answers.VARIABLE])
    else:
        # Typer's own box around wrong words would take the marks and control characters in them for its own.
        sys.exit(app(prog_name="ccreid", standalone_mode=False) or 0)


def _stop_on_signals() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # the last is SLURM's notice; Windows has none
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)
