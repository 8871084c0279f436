"""The launcher starts processes and ends as they do. A shell script stands in for Python."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ccreid_cli.core.errors import DeviceError, Interrupted, UsageError
from ccreid_cli.machine import launch
from ccreid_cli.machine.launch import num_processes

Start = Callable[..., None]


def test_a_launcher_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    said: list[str] = []
    assert num_processes(None, "auto", 256, 64, said.append) == 4
    assert num_processes(None, "auto", 128, 64, said.append) == 2 and "2 of 4 GPUs" in said[-1]
    assert num_processes(None, "cpu", 256, 64, said.append) == 1
    with pytest.raises(UsageError, match="--gpus 4 does not go with --device cuda:1"):
        num_processes(4, "cuda:1", 256, 64, said.append)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert num_processes(None, "auto", 256, 64, said.append) == 1


@pytest.fixture
def ranks_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """Let each process of the launcher run these shell commands."""

    def use(*commands: str) -> None:
        cases = "".join(f"{rank}) {command} ;;\n" for rank, command in enumerate(commands))
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\ncase $RANK in\n{cases}esac\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        monkeypatch.setattr(launch, "GRACE_SECONDS", 0.3)

    return use


def test_the_launcher_starts_this_command(
    ranks_do: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ranks_do(*['echo "$*, $RANK of $WORLD_SIZE at $MASTER_ADDR"'] * 2)
    monkeypatch.setattr(sys, "argv", ["ccreid", "train", "toy"])
    launch.launch(2)
    lines = sorted(capfd.readouterr().out.splitlines())
    assert lines == [f"-m ccreid_cli train toy, {rank} of 2 at 127.0.0.1" for rank in range(2)]


def test_the_launcher_hands_the_first_failure_on(ranks_do: Start) -> None:
    ranks_do("exec sleep 60", "exit 3")
    begin = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        launch.launch(2)
    assert caught.value.code == 3 and time.monotonic() - begin < 20


def test_the_launcher_says_who_was_killed(ranks_do: Start) -> None:
    """With NCCL, a process that waits for a killed one does not notice, and says nothing."""
    ranks_do("exec sleep 60", "kill -9 $$")
    with pytest.raises(DeviceError, match=r"process 1 of 2 was killed by signal 9") as caught:
        launch.launch(2)
    assert "ccreid resume" in (caught.value.hint or "")


def test_the_launcher_hands_signals_on(ranks_do: Start, tmp_path: Path) -> None:
    ready = [tmp_path / "0", tmp_path / "1"]
    ranks_do(*(f"trap 'exit 143' TERM; touch {path}; while :; do sleep 0.05; done" for path in ready))

    def send() -> None:
        while not all(path.exists() for path in ready):
            time.sleep(0.02)
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=send).start()
    with pytest.raises(Interrupted) as caught:
        launch.launch(2)
    assert caught.value.signal_number == signal.SIGTERM and caught.value.shown_elsewhere
