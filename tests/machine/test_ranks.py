from __future__ import annotations

import os

import pytest

from ccreid_cli.core.errors import UsageError
from ccreid_cli.machine import ranks

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_alone() -> None:
    assert (ranks.launched_rank(), ranks.launched_world(), ranks.local_world()) == (0, 1, 1)
    assert ranks.is_main_process() and ranks.is_first_of_machine()
    assert not ranks.is_launched() and not ranks.spans_machines() and ranks.local_rank() is None


@pytest.mark.parametrize(
    ("values", "main", "first", "spans"),
    [("0 0 4 2", True, True, True), ("2 0 4 2", False, True, True), ("3 1 4 4", False, False, False)],
)
def test_under_a_launcher(values: str, main: bool, first: bool, spans: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, values.split(), strict=True):
        monkeypatch.setenv(name, value)
    assert ranks.is_launched() and ranks.launched_world() == 4
    assert (ranks.is_main_process(), ranks.is_first_of_machine(), ranks.spans_machines()) == (main, first, spans)


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("WORLD_SIZE", "0"), ("RANK", "-1")])
def test_what_is_no_number_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f'{name} is "{value}"'):
        (ranks.launched_rank(), ranks.launched_world())


def test_processors_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [ranks.threads_per_process(count) for count in (1, 3, 8, 20)] == [8, 2, 1, 1]
