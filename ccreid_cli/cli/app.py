"""The root command: subcommands, and what each kind of error means to the shell."""

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
    answering,
    bench,
    completion,
    data,
    evaluate,
    export,
    extract,
    features,
    json_lines,
    output,
    report,
    runs,
    system,
    train,
    weights,
)
from ccreid_cli.cli.options import bind_all
from ccreid_cli.cli.pages import PageGroup, use_pages
from ccreid_cli.core.errors import (
    CcreidError,
    DataError,
    DeviceError,
    Interrupted,
    NetworkError,
    UsageError,
)
from ccreid_cli.core.version import __version__

EXIT_CODES: dict[type[CcreidError], int] = {UsageError: 2, DataError: 3, NetworkError: 4, DeviceError: 5}
"""The exit code of each kind of error; subclasses share it. 1 is a bug; 128 + signal is an interruption."""

START = """Three commands to start with:

  ccreid train -d toy             try it: two minutes
  ccreid data fetch market1501    get a real dataset
  ccreid train -d market1501      the published settings

`ccreid --help` lists everything."""

COMMANDS = (train, evaluate, report, extract, export, data, weights, features, runs, bench, system, completion)
"""The modules of the commands. Each adds its own by `register`."""


class _Stopped(BaseException):
    """A stop signal outside training, where nothing needs saving."""

    def __init__(self, number: int) -> None:
        self.number = number


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _Stopped(number)


def _show_version(value: bool) -> None:
    if value:
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


def build_app(words: Sequence[str] | None = None) -> typer.Typer:
    """Return the command line, with the datasets, backbones and other rows that the registries have now.

    Args:
        words: The command line, when only that is to be answered: the other commands then get no options, which saves
            a third of the time that `--help` and completion take.
    """
    app = typer.Typer(
        name="ccreid",
        cls=PageGroup,
        help="Train and use object re-identification models without labels, by Cluster Contrast (arXiv 2103.11568).",
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


def exit_code_of(error: CcreidError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, Interrupted):
        return 128 + error.signal_number
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def main() -> None:
    """Run the command line and leave with its exit code. No traceback reaches a user, but under CCREID_DEBUG=1."""
    debug = os.environ.get("CCREID_DEBUG") == "1"
    # A stream that the caller closed is None.
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    in_json = json_lines.is_asked_for(sys.argv)
    with json_lines.on_stderr() if in_json else nullcontext():
        _run(debug, in_json)


def _run(debug: bool, in_json: bool) -> None:
    """Run the command line; every error ends here, in words."""
    try:
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # the last is SLURM's notice; Windows has none
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _stop)
        if answering.VARIABLE in os.environ:
            answering.answer(build_app(sys.argv), sys.argv[1:], os.environ[answering.VARIABLE])
        elif in_json:
            _run_for_program()
        else:
            build_app(sys.argv)(prog_name="ccreid")
    except _Stopped as stopped:
        output.say("stopped.")
        sys.exit(128 + (signal.SIGINT if stopped.number == signal.SIGINT else signal.SIGTERM))
    except CcreidError as error:
        if debug:
            raise
        if not error.shown_elsewhere:
            output.show_error(error.message, error.hint)
        sys.exit(exit_code_of(error))
    except Exception as error:
        if debug:
            raise
        _show_unexpected(error)


def _run_for_program() -> NoReturn:
    """Run the command line without Typer's own box around what is wrong with it."""
    try:
        code = build_app(sys.argv)(prog_name="ccreid", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        output.show_error(error.format_message(), f"See `{context.command_path} --help`." if context else None)
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code or 0)


def _show_unexpected(error: Exception) -> NoReturn:
    """Say the rest: the system's own refusals in plain words, anything else as the bug it is."""
    if isinstance(error, BrokenPipeError):
        # The reader of a pipe left; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        output.show_error("out of memory.", "Use a smaller batch (-b), smaller images, or another --device.")
        sys.exit(5)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        output.show_error(f"{place}{error.strerror or error}.", "Check the path, the permissions and the free space.")
        sys.exit(3)
    output.show_error(f"unexpected {type(error).__name__}: {error}", "This is a bug. CCREID_DEBUG=1 shows where.")
    sys.exit(1)
