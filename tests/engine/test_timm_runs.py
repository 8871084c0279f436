"""A run with a network of timm that was stopped and resumed equals the run that was not, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import tiny

from ccreid_cli.core.errors import Interrupted

pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("one_thread")

VIT: dict[str, Any] = {
    "arch": "timm:test_vit",
    "pooling_type": "class",
    "features": 8,
    "with_pooled": True,
    "optimizer": "sgd",
    "lr": 0.01,
    "warmup": 2,
    "milestones": "1",
    "drop_path": 0.3,
    "freeze_patch_embed": True,
}


def test_a_transformer_goes_on_as_if_never_stopped(tiny_data: Path, tmp_path: Path) -> None:
    with tiny.watched() as whole:
        tiny.train(tiny_data, tmp_path / "whole", **VIT)
    expected = tiny.outcome(tmp_path / "whole")
    patches = expected["model"]["backbone.patch_embed.proj.weight"]

    def stop(number: int) -> None:
        if number == 6:
            signal.raise_signal(signal.SIGTERM)

    with tiny.watched(stop) as before, pytest.raises(Interrupted):
        tiny.train(tiny_data, tmp_path / "stopped", **VIT)
    with tiny.watched() as after:  # what only saves memory may change
        tiny.resume(tmp_path / "stopped", grad_checkpointing=True)
    assert before.losses + after.losses == whole.losses
    found = tiny.outcome(tmp_path / "stopped")
    tiny.assert_same(found, expected)
    assert (found["model"]["backbone.patch_embed.proj.weight"] == patches).all()
