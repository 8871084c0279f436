"""Progress: what is shown on a terminal, in a pipe, to a program, and by processes that should be silent."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ccreid_cli.cli.live_view import LiveReporter, gpu_memory
from ccreid_cli.cli.pace import HEAD_START_SECONDS, Pace, as_bytes, as_count, as_time
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


def _advance(pace: Pace, clock: Clock, seconds: float, amount: int) -> None:
    clock.now += seconds
    pace.advance(amount)


def test_pace(clock: Clock) -> None:
    pace = Pace(10, clock)
    assert (pace.rate(), pace.seconds_left()) == (0, None)
    _advance(pace, clock, 20, 2)
    assert pace.rate() == pytest.approx(0.1)
    assert pace.seconds_left() == pytest.approx(80)
    clock.now += 5
    assert pace.seconds_left() == pytest.approx(75)
    clock.now += 500
    assert pace.seconds_left() == 0


def test_what_was_done_before_says_nothing_on_speed(clock: Clock) -> None:
    """A run resumed at epoch 40 of 50 must not look as if it had done 40 epochs in no time."""
    pace = Pace(50, clock)
    _advance(pace, clock, HEAD_START_SECONDS / 2, 40)
    assert pace.seconds_left() is None
    _advance(pace, clock, 60 - HEAD_START_SECONDS / 2, 1)
    assert pace.done == 41
    assert pace.seconds_left() == pytest.approx(9 * 60)


def test_first_unit_is_judged_by_its_parts(clock: Clock) -> None:
    epochs = Pace(50, clock)
    clock.now += 30  # extraction and labels
    steps = Pace(200, clock)
    assert epochs.least_seconds_left(steps) is None
    _advance(steps, clock, 10, 20)
    assert epochs.least_seconds_left(steps) == pytest.approx(50 * (30 + 100) - 40)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (59.6, "01:00"), (3599, "59:59"), (3600, "1:00:00"), (360000, "100:00:00")]
)
def test_as_time(seconds: float, text: str) -> None:
    assert as_time(seconds) == text


def test_as_count(clock: Clock) -> None:
    pace = Pace(12936, clock)
    assert as_count(pace, "img") == "0/12,936"
    _advance(pace, clock, 2, 3000)
    assert as_count(pace, "img") == "3,000/12,936 1,500.0 img/s"
    assert as_count(pace, "B") == "3.0 kB/12.9 kB 1.5 kB/s"
    slow = Pace(50, clock)
    _advance(slow, clock, 63, 1)
    assert as_count(slow, "epoch") == "1/50 63.0 s/epoch"
    unknown = Pace(0, clock)
    _advance(unknown, clock, 1, 1500)
    assert as_count(unknown, "B") == "1.5 kB 1.5 kB/s"
    assert unknown.seconds_left() is None


def test_as_bytes() -> None:
    assert [as_bytes(number) for number in (12, 1500, 2.5e6, 3.25e9, 5e12)] == [
        *("12 B", "1.5 kB", "2.5 MB", "3.2 GB", "5000.0 GB"),
    ]


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
    with reporter.task("train", 4, "it") as task:
        task.note(loss=1.5, task="a name that the line has too")
        for _ in range(4):
            task.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert [line["event"] for line in lines] == ["message", "begin", "progress", "end"]
    assert (lines[-1]["task"], lines[-1]["done"], lines[-1]["notes"]["loss"]) == ("train", 4, 1.5)


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainReporter, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("ccreid_cli.cli.pace.HEAD_START_SECONDS", 0.0)
    reporter = make_reporter("plain")
    with reporter.task("epochs", 3, "epoch") as outer:
        outer.note(clusters=532)
        for _ in range(3):
            with reporter.task("train", 2, "it") as inner:
                inner.advance(2)
            outer.note(loss=1.25)
            outer.advance()
        reporter.message("done")
    with reporter.task("download", 0, "B") as task:
        task.advance(1500)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not {"\r", "\x1b"} & set(captured.err)
    lines = captured.err.splitlines()
    assert any(line.startswith("epochs: 2/3 (67%)") and "clusters=532, loss=1.25" in line for line in lines), lines
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
with reporter.task("epochs", 5, "epoch") as outer:
    outer.advance(1)
    outer.note(stage="train", clusters=532)
    for epoch in range(2):
        with reporter.task(f"train epoch {epoch + 2}", 20, "it") as inner:
            for step in range(20):
                time.sleep(0.04)
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
@pytest.mark.parametrize("columns", [60, 120])
def test_live_view(columns: int) -> None:
    seen = _on_terminal(columns)
    lines = _plain(seen)
    assert max(map(len, lines)) <= columns
    assert any("epochs" in line and "1/5" in line and "left" in line for line in lines)
    assert any("train epoch 2" in line and "/20" in line and "it/s" in line for line in lines)
    assert any("clusters 532" in line and "loss 1." in line for line in lines)
    assert "epoch 3 is done" in lines
    assert lines.count("result") == 1
    assert "\x1b[38;5;" in seen or "\x1b[3" in seen


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_live_view_without_colour() -> None:
    import re

    seen = _on_terminal(80, NO_COLOR="1")
    assert "train epoch 2" in seen
    assert not re.search(r"\x1b\[[0-9;]*3[0-9](;|m)", seen)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"JPY_PARENT_PID": "1"}, {"RANK": "1"}], ids=str)
def test_no_cursor_is_moved_where_none_can_be(environment: dict[str, str]) -> None:
    seen = _on_terminal(80, **environment)
    assert "\x1b" not in seen
    silent = "RANK" in environment
    assert ("epoch 2 is done" in seen) is not silent
