"""What may stand at the cursor of a command line: the answer to the scripts in `scripts`.

A script runs ``ccreid`` with `VARIABLE` set and the words up to the cursor as arguments, the last one being typed.
Each line of the answer is a value, or a value, a tab and what it is for. Typer finds the values. Its own scripts are
not used: in bash they break words at ``:`` and ``=``, and they load a Markdown parser to describe an option.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import typer
from typer.main import get_command

from ccreid_cli.cli import output
from ccreid_cli.cli.help_pages import plain

VARIABLE = "_CCREID_OFFER"
"""Environment variable: "quoted" when the words are as typed, "plain" when the shell has taken the quotes off."""


def answer(app: typer.Typer, words: Sequence[str], form: str) -> None:
    """Print what may stand in the place of the last word.

    Args:
        app: The command line.
        words: What is typed after ``ccreid``, up to the cursor; the last word may be empty.
        form: The value of `VARIABLE`.
    """
    *before, incomplete = [unquote(word) for word in words] if form == "quoted" else words or [""]
    lines = [value + (f"\t{text}" if text else "") for value, text in offers(get_command(app), before, incomplete)]
    if lines:
        output.print_text("\n".join(lines))


def unquote(word: str) -> str:
    """Return a word as a shell would hand it on; its last quote may still be open."""
    lexer = shlex.shlex(word, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return "".join(lexer)
    except ValueError:
        return lexer.token


def offers(root: Any, words: Sequence[str], incomplete: str) -> list[tuple[str, str]]:
    """Return values with what they are for ("" when that is plain to see).

    Args:
        root: The root command, as Typer builds it.
        words: The words before the cursor.
        incomplete: The beginning of the word at the cursor.
    """
    context = _context_of(root, words)
    asked, last = context.command, words[-1] if words else ""
    name, equals, value = incomplete.partition("=")
    if name.startswith("-") and equals:
        last, incomplete = name, value
    if not incomplete.startswith("-") or equals:
        asked = _parameter_at(context, last) or asked
    return [(item.value, plain(item.help)) for item in asked.shell_complete(context, incomplete)]


def _context_of(root: Any, words: Sequence[str]) -> Any:
    """Return the context of the command that the words lead to."""
    given = list(words)
    context = root.make_context("ccreid", given[:], resilient_parsing=True)
    while hasattr(context.command, "commands") and given:
        # A group's context leaves its subcommand's name out of what it hands on.
        rest = given[len(given) - len(context.args) - 1 :]
        name, command, given = context.command.resolve_command(context, rest)
        if command is None:
            break
        context = command.make_context(name, given[:], parent=context, resilient_parsing=True)
    return context


def _parameter_at(context: Any, last: str) -> Any:
    """Return the option whose value comes after the word `last`, or the next argument; None when there is neither."""
    parameters = context.command.get_params(context)
    for parameter in parameters:
        if parameter.param_type_name == "option" and last in parameter.opts and not parameter.is_flag:
            return parameter
    for parameter in parameters:
        is_given = context.get_parameter_source(parameter.name).name == "COMMANDLINE"
        if parameter.param_type_name == "argument" and (parameter.nargs == -1 or not is_given):
            return parameter
    return None
