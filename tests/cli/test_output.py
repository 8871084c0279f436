from __future__ import annotations

import json
import math

import pytest

from ccreid_cli.cli import output


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    output.talk.cache_clear()
    output._results.cache_clear()


def test_talk_goes_to_stderr_and_keeps_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("a [red]folder[/red] of [3] " + "long " * 100)
    output.warn("b")
    output.show_error("c", "d")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("a [red]folder[/red] of [3] long")
    assert lines[1:] == ["warning: b", "error: c", "hint: d"]


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": "x"})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": "x"}
    assert captured.err == ""


def test_rows_in_a_pipe_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table("title " * 40, ["name", "n"], [["x" * 300, 12345], ["[b]", None]])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ("title " * 40).strip()
    assert lines[1].split() == ["name", "n"]
    assert lines[3].split() == ["x" * 300, "12,345"]
    assert lines[4].split() == ["[b]", "–"]


def test_tables_fold_on_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    output.print_table("", ["setting", "value", "from"], [["data_dir", "z" * 120, "flag"], ["height", 256, "default"]])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 60
    assert "".join(out.split()).count("z") == 120


def test_names_stay_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    output.print_table("", ["recipe", "what"], [["dukemtmcreid-nov2021-infomap", "some words " * 20]])
    assert "dukemtmcreid-nov2021-infomap" in capsys.readouterr().out


def test_cells() -> None:
    assert [output._cell(value) for value in (None, True, 1234, 2.345, "a")] == ["–", "yes", "1,234", "2.3", "a"]


def test_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"mAP": 0.826, "mINP": 0.5, "rank1": 0.93, "rank5": 0.97, "rank10": 0.98}
    output.print_evaluations("final", {"last": {**scores, "num_queries": 3368, "num_queries_skipped": 0}})
    row = capsys.readouterr().out.splitlines()[-2].split()
    assert row == ["last", "82.6", "93.0", "97.0", "98.0", "50.0", "3,368", "0"]


def test_stages_with_their_share(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_stages("where the time went", {"extract": 10.0, "train": 30.0}, 4)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["extract", "10.0", "2.50", "25"] in rows and ["total", "40.0", "10.00", "100"] in rows
    output.print_stages("where the time went", {}, 0)
    assert capsys.readouterr().out == ""


def test_without_a_terminal_the_answer_is_no() -> None:
    assert output.ask("Delete?") is False


def test_a_narrow_terminal_breaks_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"mAP": 0.826, "mINP": 0.5, "rank1": 0.93, "rank5": 0.97, "rank10": 0.98}
    evaluation = {**scores, "num_queries": 3368, "num_queries_skipped": 0}
    monkeypatch.setenv("COLUMNS", "60")
    output._results.cache_clear()
    output.print_evaluations("final", {"last (epoch 50)": evaluation})
    output._results.cache_clear()
    text = capsys.readouterr().out
    assert "last (epoch 50)" in text and "mAP %: 82.6" in text and "rank-10: 98.0" in text and "queries: 3,368" in text
    assert all(len(line) <= 60 for line in text.splitlines())
