"""`--progress json`: whatever happens, stderr is one JSON object a line, and stdout is as without it."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from ccreid_cli.cli import json_lines, output

from .conftest import Cli, Trained


def events(text: str) -> list[dict[str, Any]]:
    """Return the objects; any other line is an error."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "event"} <= line.keys() for line in found)
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "-d", "toy", "--epoch", "3"], 2, "--epochs"),
        (["train", "-d", "toy", "--epochs", "many"], 2, "--epochs"),
        (["train"], 2, "no dataset is named"),
        (["train", "-d", "toy", "--dsbn"], 2, "--dsbn"),
        (["trian"], 2, "train"),
        (["cluster", "nothing.npz"], 3, "nothing.npz"),
        (["data", "fetch", "market1501"], 2, "terms"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
@pytest.mark.parametrize("style", [["--progress", "json"], ["--progress=json"]], ids="".join)
def test_errors(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
    style: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments, *style)
    assert (result.code, result.out) == (code, "")
    last = events(result.err)[-1]
    assert last["event"] == "error" and words in last["text"] and last.keys() >= {"hint"}


def test_a_run_and_its_result(cli: Cli, trained: Trained) -> None:
    plain = cli("resume", trained.logs_dir / trained.name, "--device", "cpu")
    result = cli("resume", trained.logs_dir / trained.name, "--device", "cpu", "--progress", "json")
    assert result.code == 0 and result.out == plain.out
    found = events(result.err)
    assert {"message", "table", "begin", "end"} <= {line["event"] for line in found}
    (table,) = [line for line in found if line["event"] == "table"]
    assert table["columns"] == ["split", "ids", "images", "cameras"] and table["rows"][0] == ["train", 8, 32, 2]
    assert found[-1]["text"].startswith("report: ")


def test_what_libraries_say_becomes_an_object_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with json_lines.on_stderr():
        print("two\n\nlines", file=sys.stderr)
        logging.StreamHandler().handle(logging.makeLogRecord({"msg": "a log"}))
        print("no end of line", end="", file=sys.stderr)
        assert output.ask("Delete?") is False
    assert sys.stderr is stream
    texts = [line["text"] for line in events(stream.getvalue())]
    assert texts == ["two", "lines", "a log", "no end of line"]


def test_numbers_without_a_name_in_json_are_null() -> None:
    stream = io.StringIO()
    json_lines.write_event(stream, "end", notes={"loss": math.nan, "path": Path("a")})
    assert events(stream.getvalue())[0]["notes"] == {"loss": None, "path": "a"}
