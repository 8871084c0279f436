"""Signals set a flag; only a Ctrl-C after the first signal ends the process, at once."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ccreid_cli.machine.signals import HANDLED, StopFlag, StopRequested, stop_on_signals


@pytest.mark.parametrize(("sent", "noted"), [(signal.SIGINT, 2), (signal.SIGTERM, 15), (signal.SIGUSR1, 15)])
def test_a_signal_sets_the_flag(sent: signal.Signals, noted: int) -> None:
    with stop_on_signals() as flag:
        assert not flag
        flag.check()
        signal.raise_signal(sent)
        assert flag and flag.signal_number == noted
        with pytest.raises(StopRequested):
            flag.check()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in HANDLED] != before
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_the_first_signal_counts_and_only_ctrl_c_hurries(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    flag = StopFlag()
    flag.handle(signal.SIGUSR1, None)
    flag.handle(signal.SIGTERM, None)
    assert codes == [] and flag.signal_number == signal.SIGTERM
    flag.handle(signal.SIGINT, None)
    assert codes == [130]


def test_outside_the_main_thread_nothing_is_installed() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_on_signals() as flag:
            seen.append(bool(flag))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
