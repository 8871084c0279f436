"""Every command and option explains itself, and the official options keep their names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ccreid_cli.cli.app import build_app
from ccreid_cli.cli.pages import PANELS, first_sentence, text_of
from ccreid_cli.cli.reference import commands

from .conftest import Cli

ROOT = get_command(build_app())
COMMANDS = dict(commands(ROOT))
ROOT_FOLDER = Path(__file__).parents[2]
OPTIONS = [
    pytest.param(path, parameter, id=f"{path} {parameter.opts[0]}")
    for path, command in COMMANDS.items()
    for parameter in command.params
    if parameter.name != "help"
]


@pytest.mark.parametrize(("path", "parameter"), OPTIONS)
def test_every_option_has_help(path: str, parameter: Any) -> None:
    assert parameter.help, f"{path} {parameter.opts}"
    assert parameter.help.endswith(".") or "Example: " in parameter.help, parameter.help


WITHOUT_DEFAULT = {"--dataset", "--resume", "--init-from", "--url", "--archive", "--sheet"}
"""Options that name something beyond the usual; the rest of the command goes on without it."""
WITHOUT_DEFAULT_HERE = {("ccreid bench", "--features"), ("ccreid cluster", "--output")}


def _names_no_default(path: str, parameter: Any) -> bool:
    return any(name in WITHOUT_DEFAULT or (path, name) in WITHOUT_DEFAULT_HERE for name in parameter.opts)


OPTIONAL_VALUES = [
    (path, parameter)
    for path, command in COMMANDS.items()
    for parameter in command.params
    if parameter.param_type_name == "option" and not (parameter.required or parameter.is_flag)
]


def test_every_option_that_takes_a_value_names_its_default() -> None:
    silent = {
        (path, parameter.opts[0])
        for path, parameter in OPTIONAL_VALUES
        if "Default" not in text_of(parameter) and not _names_no_default(path, parameter)
    }
    assert silent == set()


def test_options_that_name_no_default_have_none() -> None:
    exempt = [(path, parameter) for path, parameter in OPTIONAL_VALUES if _names_no_default(path, parameter)]
    assert {name for _, parameter in exempt for name in parameter.opts} >= WITHOUT_DEFAULT
    assert all(parameter.default is None and "Default" not in text_of(parameter) for _, parameter in exempt)


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_command_has_help_and_an_example(path: str) -> None:
    text = COMMANDS[path].help or ""
    assert first_sentence(text)
    assert f"`{path}" in text, f"{path}: no example in its help"


def _examples() -> list[str]:
    texts = [command.help or "" for command in COMMANDS.values()]
    return re.findall(r"`(ccreid [^`]+)`", " ".join(" ".join(texts).split()))


@pytest.mark.parametrize("line", sorted(set(_examples())))
def test_examples_name_real_commands_and_options(line: str) -> None:
    words = line.split(" > ")[0].replace(" >> ~/.bashrc", "").split()
    path = max((path for path in COMMANDS if " ".join(words).startswith(path)), key=len, default=None)
    if path is None:
        assert words[1] in {"--help", "--install-completion"} or words[1] in ROOT.commands, line
        return
    known = {name for parameter in COMMANDS[path].params for name in parameter.opts}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, line


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
    for name, command in ROOT.commands.items():
        assert re.search(rf"│ {name} ", page), name
        assert command.rich_help_panel in PANELS, f"{name}: name its panel in pages.PANELS"
    assert "--version, -V" in page
    assert max(map(len, page.splitlines())) <= 60
    assert "…" not in page


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_pages_are_readable_in_60_columns(cli: Cli, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    page = cli(*path.split()[1:], "--help").out
    assert max(map(len, page.splitlines())) <= 60
    assert "…" not in page, [line for line in page.splitlines() if "…" in line]


DOCUMENTS = [
    path for path in (ROOT_FOLDER / "README.md", *sorted((ROOT_FOLDER / ".github").glob("*.md"))) if path.exists()
]


def _lines(document: Path) -> set[str]:
    """Return the whole command lines of a document, those in code blocks and those in backticks."""
    text = document.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"(?ms)^```(?:sh)?\n(.*?)^```", text))
    lines = re.findall(r"(?m)(?:^|&& )(ccreid [^#\n]*[^#\s])", blocks)
    lines += re.findall(r"`(ccreid [^`]+)`", re.sub(r"(?ms)^```.*?^```", "", text))
    return {" ".join(line.split()) for line in lines if "…" not in line}


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=line) for document in DOCUMENTS for line in sorted(_lines(document))]
)
def test_command_lines_of_the_documents_are_right(line: str) -> None:
    command, words = ROOT, shlex.split(line)[1:]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    if not words or {"--help", "--install-completion"} & set(words):
        return  # a command that is only mentioned, or a page of help
    command.make_context(line, words)


def test_documents_show_command_lines() -> None:
    readme = _lines(ROOT_FOLDER / "README.md")
    assert {"ccreid train -d toy", "ccreid data fetch market1501", "ccreid eval --resume RUN"} <= readme
