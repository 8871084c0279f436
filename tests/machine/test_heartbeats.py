"""A process that is killed while the others wait for it is noticed within the time-out, and named."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import shards_in_ranks
import tiny
import torch
from PIL import Image

from ccreid_cli.machine import heartbeats
from ccreid_cli.machine.heartbeats import Heartbeats

pytestmark = pytest.mark.usefixtures("one_thread")
TIMEOUT = 4.5


def test_a_process_killed_while_decoding(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    arguments = 1, tmp_path, TIMEOUT
    for message, seconds in tiny.call_in_ranks(shards_in_ranks.decode_until_killed, 2, tmp_path, *arguments, killed=1):
        assert message == "process 1 of 2 was killed, or does not answer any more."
        assert seconds < TIMEOUT


@pytest.fixture
def store() -> torch.distributed.HashStore:
    return torch.distributed.HashStore()


def test_only_silence_counts(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long one waits for processes that live; and a process that was busy itself blames nobody."""
    now = [0.0]
    mine = Heartbeats(store, 0, 3, timeout=100)
    mine.stop()
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: now[0])
    for second in range(0, 1000, 5):
        now[0] = float(second)
        store.add("alive-1", 1)
        store.add("alive-2", 1)
        assert mine.silent() is None
    now[0] += 500
    assert mine.silent() is None
    for _ in range(14):
        now[0] += 5
        store.add("alive-1", 1)
        assert mine.silent() is None
    now[0] += 5
    store.add("alive-1", 1)
    assert mine.silent() == 2


def test_the_thread_counts_up_until_it_is_stopped(store: Any) -> None:
    beats = Heartbeats(store, 1, 2, timeout=0.2)
    while store.add("alive-1", 0) < 3:
        time.sleep(0.01)
    beats.stop()
    count = store.add("alive-1", 0)
    time.sleep(0.1)
    assert store.add("alive-1", 0) == count
