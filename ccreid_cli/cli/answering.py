"""What to offer for a command line that is being typed: the other end of the scripts in `completion`.

A script runs ``ccreid`` with `VARIABLE` set and the words up to the cursor as arguments, the last one being typed.
Each line of the answer is a value, or a value, a tab and what it is for. Typer's own answer to the same question loads
pydantic, which takes longer than all the rest.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from typer.main import get_command

from ccreid_cli.cli import output
from ccreid_cli.cli.pages import plain

VARIABLE = "_CCREID_OFFER"
"""Environment variable: "quoted" when the words are as typed, "plain" when the shell has taken the quotes off."""


def answer(app: typer.Typer, words: Sequence[str], form: str) -> None:
    """Print what may stand in the place of the last word.

    Args:
        app: The command line.
        words: What is typed after ``ccreid``, up to the cursor; the last word may be empty.
        form: The value of `VARIABLE`.
    """
    plain = [unquote(word) for word in words] if form == "quoted" else list(words)
    found = offers(get_command(app), plain[:-1], plain[-1] if plain else "")
    lines = [value + (f"\t{text}" if text else "") for value, text in found]
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


def offers(command: Any, words: Sequence[str], incomplete: str) -> list[tuple[str, str]]:
    """Return values with what they are for ("" when that is plain to see).

    Args:
        command: The root command, as Typer builds it.
        words: The words before the cursor.
        incomplete: The beginning of the word at the cursor.
    """
    command, rest = _descend(command, words)
    given, position, waiting = _read(command, rest)
    if waiting is None and incomplete.startswith("-") and "=" in incomplete:
        name, _, incomplete = incomplete.partition("=")
        waiting = _option(command, name)
    if waiting is not None:
        return _values(command, waiting, given, incomplete)
    if incomplete.startswith("-"):
        return [(name, plain(option.help)) for name, option in _free_options(command, given, incomplete)]
    if commands := getattr(command, "commands", None):
        return [
            (name, plain(sub.get_short_help_str(80))) for name, sub in commands.items() if name.startswith(incomplete)
        ]
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    if not arguments or (position >= len(arguments) and arguments[-1].nargs == 1):
        return []
    return _values(command, arguments[min(position, len(arguments) - 1)], given, incomplete)


def _descend(command: Any, words: Sequence[str]) -> tuple[Any, list[str]]:
    """Return the command that the words name, and the words after its name."""
    rest = list(words)
    for index, word in enumerate(words):
        commands = getattr(command, "commands", {})
        if word in commands:
            command, rest = commands[word], list(words[index + 1 :])
    return command, rest


def _read(command: Any, words: Iterable[str]) -> tuple[dict[str, str], int, Any]:
    """Return the options given by name, the number of arguments, and the option whose value comes next, if any."""
    given: dict[str, str] = {}
    position, waiting = 0, None
    for word in words:
        if waiting is not None:
            given[waiting.name], waiting = word, None
            continue
        if not word.startswith("-"):
            position += 1
            continue
        name, equals, value = word.partition("=")
        option = _option(command, name)
        if option is None:
            continue
        given[option.name] = value
        waiting = None if equals or option.is_flag else option
    return given, position, waiting


def _options(command: Any) -> list[Any]:
    return [item for item in command.params if item.param_type_name == "option" and not item.hidden]


def _option(command: Any, name: str) -> Any:
    return next((option for option in _options(command) if name in option.opts), None)


def _free_options(command: Any, given: dict[str, str], incomplete: str) -> list[tuple[str, Any]]:
    """Return the options that can still be given, by their long names unless a short one is being typed."""
    free = [option for option in _options(command) if option.name not in given]
    names = [(name, option) for option in free for name in option.opts if name.startswith(incomplete)]
    return [(name, option) for name, option in names if name.startswith("--") or len(incomplete) > 1]


def _values(command: Any, parameter: Any, given: dict[str, str], incomplete: str) -> list[tuple[str, str]]:
    context = typer.Context(command)
    context.params = dict(given)
    return [(item.value, item.help or "") for item in parameter.shell_complete(context, incomplete)]
