"""Progress: what is shown on a terminal, in a pipe, to a program, and by processes that should be silent."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ccreid_cli.cli.live_view import LiveReporter, LiveView, amount_and_rate, gpu_memory, time_left
from ccreid_cli.cli.progress import STYLES, JsonReporter, PlainReporter, make_reporter
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.reporter import SilentReporter

ROOT = Path(__file__).parents[2]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _row(view: LiveView, index: int = 0) -> tuple[str, str]:
    rows = view.tasks
    return amount_and_rate(rows[index]), time_left(rows[index], rows)


def test_amount_rate_and_time_left(clock: Clock) -> None:
    view = LiveView(clock)
    task = view.open_task("extract", 12936, "img", 0)
    assert _row(view) == ("0/12,936", "–:– left")
    clock.now += 2
    task.advance(3000)
    assert _row(view) == ("3,000/12,936 1,500.0 img/s", "00:07 left")
    clock.now += 5
    assert _row(view)[1] == "00:02 left"  # it runs down between two calls
    clock.now += 500
    assert _row(view)[1] == "00:00 left"


def test_slow_units_are_told_by_their_seconds(clock: Clock) -> None:
    view = LiveView(clock)
    task = view.open_task("epochs", 101, "epoch", 0)
    clock.now += 3600
    task.advance()
    assert _row(view) == ("1/101 3,600.0 s/epoch", "100:00:00 left")


@pytest.mark.parametrize(("total", "text"), [(12936, "3.0 kB/12.9 kB 1.5 kB/s"), (0, "3.0 kB 1.5 kB/s")])
def test_bytes(clock: Clock, total: int, text: str) -> None:
    view = LiveView(clock)
    task = view.open_task("download", total, "B", 0)
    clock.now += 2
    task.advance(3000)
    assert _row(view) == (text, "00:07 left" if total else "")


def test_what_was_done_before_says_nothing_on_speed(clock: Clock) -> None:
    """A run resumed at epoch 40 of 50 must not look as if it had done 40 epochs in no time."""
    view = LiveView(clock)
    task = view.open_task("epochs", 50, "epoch", 40)
    assert _row(view) == ("40/50", "–:– left")
    clock.now += 60
    task.advance()
    assert _row(view) == ("41/50 60.0 s/epoch", "09:00 left")


def test_the_first_unit_is_judged_by_its_parts(clock: Clock) -> None:
    view = LiveView(clock)
    view.open_task("epochs", 50, "epoch", 0)
    clock.now += 30  # extraction and labels
    steps = view.open_task("train", 200, "it", 0)
    assert _row(view)[1] == "–:– left"
    clock.now += 10
    steps.advance(20)
    assert _row(view)[1] == ">1:47:40 left"  # 50 times 30 s and 200 steps of 0.5 s, less the 40 s so far


def test_make_reporter(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"rich": LiveReporter, "plain": PlainReporter, "json": JsonReporter, "none": SilentReporter}
    assert {style: type(make_reporter(style)) for style in kinds} == kinds
    assert isinstance(make_reporter("auto"), PlainReporter)  # pytest holds the streams
    with pytest.raises(UsageError, match="loud"):
        make_reporter("loud")
    monkeypatch.setenv("RANK", "3")
    assert {type(make_reporter(style)) for style in STYLES} == {SilentReporter}


def test_no_gpu_memory_without_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    assert torch.cuda.is_initialized() or gpu_memory() == []


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = make_reporter("json")
    reporter.message("hello")
    with reporter.task("train", 6, "it", done=2) as task:
        task.note(loss=1.5, task="a name that the line has too")
        for _ in range(4):
            task.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert [line["event"] for line in lines] == ["message", "begin", "progress", "end"]
    assert [line["done"] for line in lines[1:]] == [2, 3, 6]
    assert lines[1].keys() >= {"task", "total", "unit"} and lines[-1]["seconds_left"] == 0
    assert (lines[-1]["task"], lines[-1]["notes"]["loss"]) == ("train", 1.5)


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainReporter, "SECONDS_BETWEEN_LINES", 0.0)
    reporter = make_reporter("plain")
    with reporter.task("epochs", 43, "epoch", done=40) as outer:
        outer.note(clusters=532)
        for _ in range(3):
            with reporter.task("train", 2, "it") as inner:
                inner.advance(2)
            outer.note(loss=1.25)
            outer.advance()
        reporter.message("done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not {"\r", "\x1b"} & set(captured.err)
    lines = captured.err.splitlines()
    assert any(line.startswith("epochs: 42/43 (98%)") and "clusters=532, loss=1.25" in line for line in lines), lines
    assert "done" in lines


def test_a_short_task_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with make_reporter("plain").task("quick", 3) as task:
        task.advance(3)
    assert capsys.readouterr().err == ""


SHOW = """
import sys, time
from ccreid_cli.cli.progress import make_reporter
reporter = make_reporter("auto")
print("result")
with reporter.task("epochs", 5, "epoch", done=1) as outer:
    outer.note(stage="train", clusters=532)
    for epoch in range(2):
        with reporter.task(f"train epoch {epoch + 2}", 20, "it") as inner:
            for step in range(20):
                time.sleep(0.02)
                inner.advance()
                inner.note(loss=round(2 - step / 20, 3))
        outer.advance()
        reporter.message(f"epoch {epoch + 2} is done")
"""


def _on_terminal(columns: int, **environment: str) -> str:
    """Return everything that the script above writes to a terminal of that width."""
    outer, inner = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment}
    for name in {"COLUMNS", "LINES", "NO_COLOR", "JPY_PARENT_PID"} - set(environment):
        env.pop(name, None)
    process = subprocess.Popen([sys.executable, "-c", SHOW], stdin=inner, stdout=inner, stderr=inner, env=env)
    os.close(inner)
    seen = b""
    while True:
        try:
            block = os.read(outer, 65536)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        seen += block
    os.close(outer)
    assert process.wait(timeout=30) == 0
    return seen.decode()


def _plain(text: str) -> list[str]:
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize(("columns", "environment"), [(60, {"NO_COLOR": "1"}), (120, {})], ids=str)
def test_live_view(columns: int, environment: dict[str, str]) -> None:
    import re

    seen = _on_terminal(columns, **environment)
    lines = _plain(seen)
    assert max(map(len, lines)) <= columns
    assert any("epochs" in line and "1/5" in line and "left" in line for line in lines)
    assert any("train epoch 2" in line and "/20" in line and "it/s" in line for line in lines)
    assert any("clusters 532" in line and "loss 1." in line for line in lines)
    assert "epoch 3 is done" in lines
    assert lines.count("result") == 1
    in_colour = re.search(r"\x1b\[[0-9;]*3[0-9](;|m)", seen)
    assert bool(in_colour) is ("NO_COLOR" not in environment)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"JPY_PARENT_PID": "1"}, {"RANK": "1"}], ids=str)
def test_no_cursor_is_moved_where_none_can_be(environment: dict[str, str]) -> None:
    seen = _on_terminal(80, **environment)
    assert "\x1b" not in seen
    silent = "RANK" in environment
    assert ("epoch 2 is done" in seen) is not silent
