from __future__ import annotations

import pytest
from tiny import Warnings

from ccreid_cli.core.errors import DataError, Interrupted
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.core.side_tasks import problem_of, side_task


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("a is full.", "Make room."), "a is full. Make room."),
        (PermissionError(13, "Permission denied", "/a"), "/a: Permission denied."),
        (MemoryError(), "out of memory."),
        (ZeroDivisionError("x\n  y"), "ZeroDivisionError: x y"),
    ],
)
def test_an_error_is_said_and_goes_no_further(error: Exception, text: str) -> None:
    reporter = Warnings()
    with side_task("no picture", reporter) as task:
        raise error
    assert reporter.said == [f"no picture: {text}"]
    assert task.problem == problem_of(error) == text


def test_success_says_nothing() -> None:
    reporter = Warnings()
    with side_task("no picture", reporter) as task:
        pass
    assert not reporter.said and not task.problem


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3), Interrupted("stopped")])
def test_an_interruption_goes_through(stop: BaseException) -> None:
    with pytest.raises(type(stop)), side_task("no picture", SilentReporter()):
        raise stop


def test_debugging_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listener(Warnings):
        def message(self, text: str) -> None:
            self.said.append(text)

    monkeypatch.setenv("CCREID_DEBUG", "1")
    reporter = Listener()
    with side_task("no picture", reporter):
        raise ValueError("odd")
    assert "Traceback" in reporter.said[1] and reporter.said[-1] == "ValueError: odd"
