"""Every command and option explains itself, and the official options keep their names."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ccreid_cli.cli.help_pages import PANELS, first_sentence, text_of

from .conftest import COMMANDS, ROOT_COMMAND, Cli

OPTIONS = [
    (path, parameter) for path, command in COMMANDS.items() for parameter in command.params if parameter.name != "help"
]


def test_every_option_has_help() -> None:
    without = [
        (path, parameter.opts)
        for path, parameter in OPTIONS
        if not (parameter.help and (parameter.help.endswith(".") or "Example: " in parameter.help))
    ]
    assert not without and len(OPTIONS) > 100


WITHOUT_DEFAULT = {"--dataset", "--resume", "--init-from", "--url", "--archive", "--sheet"}
"""Options that name something beyond the usual; the rest of the command goes on without it."""
WITHOUT_DEFAULT_HERE = {("ccreid bench", "--features"), ("ccreid cluster", "--output")}


def _needs_no_default(path: str, parameter: Any) -> bool:
    if parameter.param_type_name != "option" or parameter.required:
        return True
    if parameter.is_flag and not parameter.secondary_opts and parameter.default is not None:
        return True  # a switch: what it does says what happens without it
    named = any(name in WITHOUT_DEFAULT or (path, name) in WITHOUT_DEFAULT_HERE for name in parameter.opts)
    return named and parameter.default is None


def test_every_option_that_takes_a_value_names_its_default() -> None:
    others = [item for item in OPTIONS if not _needs_no_default(*item)]
    assert len(others) > 50
    assert not [(path, item.opts) for path, item in others if "Default" not in text_of(item)]


def test_every_command_has_help_and_an_example() -> None:
    for path, command in COMMANDS.items():
        text = command.help or ""
        assert first_sentence(text), path
        assert f"`{path}" in text, f"{path}: no example in its help"


TRAIN = (
    "-d/--dataset -b/--batch-size -j/--workers --height --width --num-instances --eps --k1 --k2 -a/--arch --features "
    "--dropout --momentum --lr --weight-decay --epochs --iters --step-size --seed --print-freq --eval-step --temp "
    "--data-dir --logs-dir --pooling-type --use-hard --no-cam"
)
EVAL = (
    "-d/--dataset -b/--batch-size -j/--workers --height --width -a/--arch --features --dropout --resume --rerank "
    "--seed --data-dir --pooling-type"
)


@pytest.mark.parametrize(("path", "names"), [("ccreid train", TRAIN), ("ccreid eval", EVAL)])
def test_official_options_keep_their_names(path: str, names: str) -> None:
    known = [set(parameter.opts) for parameter in COMMANDS[path].params]
    for option in names.split():
        assert any(set(option.split("/")) <= opts for opts in known), option


def test_no_option_has_two_meanings() -> None:
    for path, command in COMMANDS.items():
        names = [name for parameter in command.params for name in parameter.opts]
        assert len(names) == len(set(names)), path


def test_root_page(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    page = cli("--help").out
    for name, command in ROOT_COMMAND.commands.items():
        assert re.search(rf"│ {name} ", page), name
        assert command.rich_help_panel in PANELS, f"{name}: name its panel in help_pages.PANELS"
    assert "--version, -V" in page
    assert max(map(len, page.splitlines())) <= 60
    assert "…" not in page


def test_pages_are_readable_in_60_columns(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for path in COMMANDS:
        page = cli(*path.split()[1:], "--help").out
        assert page and max(map(len, page.splitlines())) <= 60, path
        assert "…" not in page, [line for line in page.splitlines() if "…" in line]
