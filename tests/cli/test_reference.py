from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from ccreid_cli.cli.app import build_app
from ccreid_cli.cli.reference import BEGIN, END, commands, put_between, reference

README = Path(__file__).parents[2] / "README.md"


def test_readme_is_current() -> None:
    text = README.read_text(encoding="utf-8")
    if BEGIN not in text:
        pytest.skip("README.md has no place for the reference")
    assert put_between(text, reference()) == text, "run: python -m ccreid_cli.cli.reference README.md"


def test_every_command_and_option_is_in_it() -> None:
    text = reference()
    for path, command in commands(get_command(build_app())):
        section = text.partition(f"<summary><code>{path}</code>:")[2].partition("</details>")[0]
        assert section, path
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert all(f"`{name}`" in section for name in parameter.opts), (path, parameter.opts)


def test_rows_are_whole() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    for row in rows:
        assert row.replace("\\|", "").count("|") == 3, row


def test_put_between() -> None:
    text = f"a\n{BEGIN}\nold\n{END}\nb\n"
    once = put_between(text, "new")
    assert once == f"a\n{BEGIN}\n\nnew\n\n{END}\nb\n"
    assert put_between(once, "new") == once
    with pytest.raises(ValueError, match="reference:end"):
        put_between(BEGIN, "new")
