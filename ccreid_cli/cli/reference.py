"""The command reference in Markdown, made from the commands themselves.

``python -m ccreid_cli.cli.reference README.md`` puts it between the two markers of the file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from ccreid_cli.cli.app import build_app
from ccreid_cli.cli.pages import first_sentence, names_of, paragraphs, text_of, usage_of

BEGIN, END = "<!-- reference:begin -->", "<!-- reference:end -->"
HIDDEN = {"help", "install_completion", "show_completion"}
"""Options that every command line has."""


def commands(command: Any, path: str = "ccreid") -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with the words that call it."""
    for name, sub in command.commands.items():
        if hasattr(sub, "commands"):
            yield from commands(sub, f"{path} {name}")
        elif not sub.hidden:
            yield f"{path} {name}", sub


def reference() -> str:
    """Return the reference: for each command what it does, how it is called, and a table of its options."""
    sections = [_section(path, command) for path, command in commands(get_command(build_app()))]
    return "\n\n".join(sections)


def _section(path: str, command: Any) -> str:
    first, *others = paragraphs(command.help)
    title = first_sentence(command.help).replace("<", "&lt;")
    parts = [f"<details><summary><code>{path}</code>: {title}</summary>", f"    {path} {usage_of(command)}"]
    parts += [paragraph for paragraph in (first.partition(". ")[2], *others) if paragraph]
    rows = [_row(parameter) for parameter in command.params if parameter.name not in HIDDEN]
    if rows:
        parts.append("| | |\n|---|---|\n" + "\n".join(rows))
    return "\n\n".join([*parts, "</details>"])


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in names_of(parameter))
    return "| {} | {} |".format(*(cell.replace("|", "\\|") for cell in (names, text_of(parameter))))


def put_between(text: str, content: str) -> str:
    """Return `text` with `content` between the markers.

    Raises:
        ValueError: A marker is missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the markers {BEGIN} and {END} are missing")
    return f"{head}{BEGIN}\n\n{content}\n\n{END}{tail}"


if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    file.write_text(put_between(file.read_text(encoding="utf-8"), reference()), encoding="utf-8")
