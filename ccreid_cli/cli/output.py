"""The only place that prints. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ccreid_cli.cli.json_lines import JsonStream, finite
from ccreid_cli.core.words import printable

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 1000
"""Columns of a table that goes to a file or another program: wide enough that no row is broken."""


NAME_WIDTH = 30
"""Most columns of a name that is never broken."""

TEXT_WIDTH = 10
"""Columns at which words of a table may be broken over lines."""

HELP_WIDTH = 100
"""Most columns of a page of help."""


@cache
def talk() -> Console:
    """Return the console of messages, warnings, errors and progress: stderr."""
    return _console(to_stderr=True)


@cache
def _results() -> Console:
    return _console(to_stderr=False)


def _console(to_stderr: bool) -> Console:
    from rich.console import Console  # a fifth of the start-up time, and completion prints without it

    stream = sys.stderr if to_stderr else sys.stdout
    fits_anything = not stream.isatty() and "COLUMNS" not in os.environ
    width = PIPE_WIDTH if fits_anything else None
    return Console(stderr=to_stderr, highlight=False, markup=False, emoji=False, width=width)


def _say(label: str, text: str, style: str = "") -> None:
    from rich.text import Text

    talk().print(Text.assemble((label, style), printable(text)), soft_wrap=True)


def _say_in_json(event: str, **fields: object) -> bool:
    """Say something as one JSON object where stderr is for a program; tell whether it is."""
    if isinstance(sys.stderr, JsonStream):
        sys.stderr.write_event(event, **fields)
        return True
    return False


def say(text: str) -> None:
    """Say a line to a person."""
    if not _say_in_json("message", text=text):
        _say("", text)


def warn(text: str) -> None:
    """Say a line that should not be missed."""
    if not _say_in_json("warning", text=text):
        _say("warning: ", text, "yellow")


def show_error(message: str, hint: str | None = None) -> None:
    """Say what went wrong and what to do."""
    if _say_in_json("error", text=message, hint=hint):
        return
    _say("error: ", message, "bold red")
    if hint:
        _say("hint: ", hint, "bold")


def ask(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; without one, the answer is no, as it is where a program listens."""
    if isinstance(sys.stderr, JsonStream) or not (sys.stdin.isatty() and talk().is_terminal):
        return False
    return talk().input(f"{printable(question)} [y/N] ", markup=False, emoji=False).strip().lower() in {"y", "yes"}


def print_line(text: str) -> None:
    """Write a line to stdout that may hold the name of a file."""
    print_text(printable(text))


def print_text(text: str) -> None:
    """Write plain text to stdout, unchanged."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def print_help(usage: str, paragraphs: Sequence[str], sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Show a page of help: how to call, what it is, and boxes of names with what they are for.

    Args:
        usage: The command line in brief.
        paragraphs: What the command does.
        sections: Title of a box -> its lines.
    """
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = _results()
    width = min(console.width, HELP_WIDTH)
    console.print(Text.assemble(("Usage: ", "bold yellow"), (usage, "bold"), "\n"), width=width)
    for paragraph in paragraphs:
        console.print(paragraph + "\n", width=width)
    for title, lines in sections.items():
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        table.add_column(style="bold cyan", no_wrap=True, width=max(len(name) for name, _ in lines))
        table.add_column(ratio=1)
        for line in lines:
            table.add_row(*line)
        panel = Panel(table, title=title, title_align="left", border_style="dim", width=width)
        console.print(panel)


def print_json(value: Mapping[str, Any]) -> None:
    """Write one JSON object to stdout; numbers that JSON has no name for become null."""
    print_text(json.dumps(finite(value), indent=2, default=str))


def _is_numeric(index: int, cells: Sequence[Sequence[str]]) -> bool:
    """Whether a column holds numbers; the first one holds names."""
    return index > 0 and all(row[index][:1] in "0123456789-–" for row in cells)


def _least_width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Return the columns of a terminal that a table needs so that no number and no short word is broken."""
    widths = []
    for index, column in enumerate(columns):
        longest = max((len(text) for text in (column, *(row[index] for row in cells))), default=0)
        widths.append(longest if _is_numeric(index, cells) else min(longest, TEXT_WIDTH))
    return sum(widths) + 3 * len(widths)


def _print_records(console: Console, title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Show a table that is too wide for the terminal as one paragraph for each row."""
    if title:
        console.print(title, style="bold")
    for row in cells:
        console.print(f"\n{row[0]}", style="bold")
        for column, text in zip(columns[1:], row[1:], strict=True):
            console.print(f"  {column}: {text}")
    console.print()


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, to_stderr: bool = False
) -> None:
    """Show a table; columns after the first are right-aligned when they hold numbers.

    Args:
        title: Shown above; empty for none.
        columns: Headings.
        rows: Cells; None shows as a dash.
        to_stderr: Whether this is talk rather than a result.
    """
    from rich import box
    from rich.table import Table

    rows = [list(row) for row in rows]
    if to_stderr and _say_in_json("table", title=title, columns=columns, rows=rows):
        return
    cells = [[printable(_cell(value)) for value in row] for row in rows]
    title, columns = printable(title), [printable(column) for column in columns]
    console = talk() if to_stderr else _results()
    if _least_width(columns, cells) > console.width:
        _print_records(console, title, columns, cells)
        return
    table = Table(
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        numeric = _is_numeric(index, cells)
        # The first column names things: a name is copied, so it stays whole where there is room for it.
        is_name = index == 0 and max((len(row[0]) for row in cells), default=0) <= NAME_WIDTH
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=is_name)
    for row in cells:
        table.add_row(*row)
    if title:
        console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return str(value)


def print_stages(title: str, seconds: Mapping[str, float], epochs: int) -> None:
    """Show how long each stage of training took, one row each.

    Args:
        title: Shown above.
        seconds: Stage -> seconds of all epochs.
        epochs: How many these were.
    """
    total = sum(seconds.values())
    if not total or not epochs:
        return
    named = {**seconds, "total": total}
    rows = [
        [name, f"{value:.1f}", f"{value / epochs:.2f}", f"{100 * value / total:.0f}"] for name, value in named.items()
    ]
    print_table(title, ["", "seconds", "per epoch", "%"], rows)


def how_scored(rerank: bool, camera_norm: bool, camera_batch_norm: bool = False) -> str:
    """Return what is to stand before the name of a score."""
    words = {"camera-batch-normalised": camera_batch_norm, "camera-normalised": camera_norm, "re-ranked": rerank}
    return "".join(f"{word} " for word, is_so in words.items() if is_so)


def print_evaluations(title: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Show evaluations in percent, one row each.

    Args:
        title: Shown above.
        results: Row name -> an evaluation's JSON form.
    """
    keys = {"mAP": "mAP %", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mINP": "mINP"}
    rows = []
    for name, result in results.items():
        scores = [f"{100 * result[key]:.1f}" for key in keys]
        rows.append([name, *scores, result["num_queries"], result["num_queries_skipped"]])
    print_table(title, ["", *keys.values(), "queries", "skipped"], rows)
