"""What is done beside the main work: its failure is said, and costs nothing else."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ccreid_cli.core.errors import CcreidError, Interrupted
from ccreid_cli.core.reporter import Reporter


class SideTask:
    """How a side task went.

    Attributes:
        problem: Why it failed; empty when it did not.
    """

    problem = ""


@contextmanager
def side_task(what: str, reporter: Reporter) -> Iterator[SideTask]:
    """Warn of an error of the block and go on after it; an interruption goes through.

    Under CCREID_DEBUG=1 the traceback is shown, too.

    Args:
        what: What a failure is introduced by, as in "the report was not written".
        reporter: Who is told.

    Yields:
        How it went, for after the block.
    """
    task = SideTask()
    try:
        yield task
    except Interrupted:
        raise
    except Exception as error:
        task.problem = problem_of(error)
        reporter.warning(f"{what}: {task.problem}")
        if os.environ.get("CCREID_DEBUG") == "1":
            for line in traceback.format_exc().splitlines():
                reporter.message(line)


def problem_of(error: Exception) -> str:
    """Return an error as one sentence, with what to do about it where it says so."""
    if isinstance(error, CcreidError):
        return f"{error.message} {error.hint}" if error.hint else error.message
    if isinstance(error, MemoryError):
        return "out of memory."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
