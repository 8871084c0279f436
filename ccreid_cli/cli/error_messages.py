"""What each kind of error says to a person, and the exit code that it leaves behind."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

from ccreid_cli.cli import output
from ccreid_cli.core.errors import CcreidError, DataError, DeviceError, Interrupted, NetworkError, UsageError

EXIT_CODES: dict[type[CcreidError], int] = {UsageError: 2, DataError: 3, NetworkError: 4, DeviceError: 5}
"""The exit code of each kind of error; subclasses share it. 1 is a bug; 128 + signal is an interruption."""


class Stopped(BaseException):
    """A stop signal outside training, where nothing needs saving.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number


def leave(error: BaseException) -> NoReturn:
    """Say what went wrong and end the program with its exit code."""
    if isinstance(error, BrokenPipeError):
        # The reader of a pipe left; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if isinstance(error, Stopped):
        output.say("stopped.")
        sys.exit(128 + (signal.SIGINT if error.number == signal.SIGINT else signal.SIGTERM))
    code, message, hint = explain(error)
    if message and not getattr(error, "shown_elsewhere", False):
        output.show_error(message, hint)
    sys.exit(code)


def explain(error: BaseException) -> tuple[int, str, str | None]:
    """Return the exit code of an error, what is wrong, and what to do about it."""
    if isinstance(error, CcreidError):
        return exit_code_of(error), error.message, error.hint
    if hasattr(error, "format_message"):
        return _explain_usage(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 5, "out of memory.", "Use a smaller batch (-b), smaller images, or another --device."
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return 3, f"{place}{error.strerror or error}.", "Check the path, the permissions and the free space."
    if type(error).__name__ == "Abort":  # Typer's, when a question is answered by the end of the input
        return 1, "stopped.", None
    return (
        1,
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())}",
        "This is a bug. CCREID_DEBUG=1 shows where.",
    )


def exit_code_of(error: CcreidError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, Interrupted):
        return 128 + error.signal_number
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def _explain_usage(error: Any) -> tuple[int, str, str | None]:
    """Explain what Typer finds wrong with a command line; nothing where a group without a command showed its help."""
    context = getattr(error, "ctx", None)
    hint = f"See `{context.command_path} --help`." if context else None
    return getattr(error, "exit_code", 2), error.format_message(), hint
