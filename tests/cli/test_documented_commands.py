"""Every command line that README, .github and the help show is a real one; those that need no network are run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer

from .conftest import COMMANDS, ROOT_COMMAND, Cli, Trained, draw_dataset

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / ".github").glob("*.md"))]
CALL = re.compile(r"(?:\$ )?(?:\w+=\S+ )*(?:ccreid|python3? -m ccreid_cli|torchrun .*-m ccreid_cli)(?=\s|$)(.*)")
"""A call of the program, with variables before it or through another one."""


DOTS = {"…", "..."}


def calls_in(text: str) -> Iterator[list[str]]:
    """Yield the words after ``ccreid`` of each call in the code of a Markdown text: blocks and spans."""
    blocks = re.findall(r"(?ms)^```[^\n]*\n(.*?)^```", text)
    rest = re.sub(r"(?ms)^```[^\n]*\n.*?^```", "", text)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"(?m)^ {4}(\S.*)$", rest)
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    for line in lines:
        for part in re.split(r"\s*(?:&&|\|\||[|;>])\s*", re.split(r"\s+#\s", f"{line} ")[0]):
            if found := CALL.fullmatch(part.strip()):
                yield _words(found.group(1))


def _words(text: str) -> list[str]:
    """Return the words of a call: ``[--option]`` may be given, ``[OPTIONS]`` and dots stand for any."""
    words = [word[1:-1] if re.fullmatch(r"\[-.*\]", word) else word for word in text.split()]
    return [word for word in words if not word.startswith("[")]


def parse(words: list[str]) -> None:
    """Read a call as the command line does, without doing anything.

    Raises:
        Exception: Typer's own, when it is not understood.
    """
    command, rest = ROOT_COMMAND, [word for word in words if word not in DOTS]
    context = typer.Context(command, info_name="ccreid")
    while hasattr(command, "commands"):
        _, rest, _ = command.make_parser(context).parse_args(rest)
        if not rest:
            return
        name, command, rest = command.resolve_command(context, rest)
        context = typer.Context(command, info_name=name, parent=context)
    if rest and "--help" not in rest:  # a command alone is only named
        command.make_context(name, rest, parent=context.parent)


DOCUMENTED = {
    **{path.name: path.read_text(encoding="utf-8") for path in FILES},
    **{path: command.help or "" for path, command in COMMANDS.items()},
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_shown_calls_are_understood(name: str) -> None:
    for words in calls_in(DOCUMENTED[name]):
        parse(words)


def test_calls_are_found_everywhere() -> None:
    """What shows no call would pass the test above unseen."""
    assert len(list(calls_in(DOCUMENTED["README.md"]))) > 20
    assert all(any(calls_in(DOCUMENTED[path])) for path in COMMANDS)


@pytest.mark.parametrize(
    "text",
    [
        "```\nccreid dta fetch market1501\n```",
        "```console\n$ ccreid train -d toy && ccreid data ftch toy\n```",
        "```\nccreid train -d toy \\\n    --epoch 3\n```",
        "`CUDA_VISIBLE_DEVICES=0 ccreid train --epochs many`",
        "Run `ccreid\neval --rsume RUN`.",
        "    torchrun --nproc-per-node 8 -m ccreid_cli train --gpu",
        "```\nccreid runs show A B    # which one?\n```",
    ],
)
def test_a_wrong_call_is_noticed(text: str) -> None:
    with pytest.raises(Exception, match=r"No such|valid integer|unexpected"):
        [parse(words) for words in calls_in(text)]


ELSEWHERE = ("data fetch", "weights fetch", "--install-completion", "bench", "resume", "export", "report", "runs rm")
"""Calls that need the network, minutes, or the only run there is: other tests make them."""


def _runs_here(words: list[str]) -> bool:
    """Whether a call is whole, cheap, and names nothing in capitals but what the folder below has."""
    call = " ".join(words)
    if not words or DOTS & set(words) or call.startswith(ELSEWHERE):
        return False
    if words[0] == "eval" and ("--resume" not in words or "-a" in words):  # fetches weights, or is of another model
        return False
    if words[0] == "train" and not {"-d", "--dataset", "--recipe"} & set(words):
        return False
    command = COMMANDS.get(f"ccreid {call}")
    is_only_named = command is not None and any(parameter.required for parameter in command.params)
    return not is_only_named and set(re.findall(r"\b[A-Z]+\b", call)) <= {"RUN", "FILE", "NAME"}


RUNNABLE = sorted({" ".join(words) for path in FILES for words in calls_in(DOCUMENTED[path.name]) if _runs_here(words)})


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with what the texts name: a run called RUN, Market-1501, images and features."""
    folder = tmp_path_factory.mktemp("shown")
    shutil.copytree(trained.logs_dir / trained.name, folder / "logs" / "RUN")
    shutil.copy(folder / "logs" / "RUN" / "checkpoints" / "last.pt", folder / "FILE")
    dataset = draw_dataset(folder / "data" / "market1501" / "Market-1501-v15.09.15")
    shutil.copytree(dataset / "query", folder / "path" / "to" / "crops")
    shutil.copytree(dataset, folder / "path" / "to" / "folder")
    shutil.copy(next((dataset / "query").iterdir()), folder / "crop.jpg")
    rng = np.random.default_rng(0)
    for name in ("q", "g", "features"):
        np.savez(
            folder / f"{name}.npz", features=rng.normal(size=(20, 4)), ids=np.arange(20) % 4, cams=np.arange(20) % 3
        )
    return folder


@pytest.mark.parametrize("call", RUNNABLE)
def test_shown_calls_run(call: str, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wrong with the call; what it names may be missing here, which is exit code 3."""
    monkeypatch.chdir(folder)
    words = call.replace("NAME", "market1501").split()
    if words[0] == "train":
        words.append("--dry-run")
    elif words[0] in {"eval", "extract", "search", "identify"}:
        words += ["--device", "cpu"] + ["--force"] * (words[0] in {"extract", "identify"})
    result = cli(*words)
    assert result.code in {0, 3}, result.err


def test_most_shown_calls_are_run() -> None:
    assert {call.split()[0] for call in RUNNABLE} >= {"train", "eval", "data"}
