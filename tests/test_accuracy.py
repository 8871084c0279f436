"""The script of the accuracy protocols: its cuts, and its table."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

SCRIPT = Path(__file__).with_name("accuracy.py")


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("accuracy", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "accuracy", module)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def test_the_second_cut_shares_no_identity_with_the_first(accuracy: Any, tmp_path: Path) -> None:
    market = tmp_path / "market"
    for split, names in (("bounding_box_train", range(1, 401)), ("query", range(401, 601))):
        (market / split).mkdir(parents=True)
        for name in names:
            (market / split / f"{name:04d}_c1s1_000001_00.jpg").touch()
    (market / "bounding_box_test").mkdir()
    for name in ("-1", "0000", *(f"{name:04d}" for name in range(401, 601))):
        (market / "bounding_box_test" / f"{name}_c2s1_000001_00.jpg").touch()
    protocols = accuracy.PROTOCOLS
    first, second = (accuracy.images_of(protocols[name], market, tmp_path / "out", None) for name in "ab")
    found = {cut: [accuracy.identities(cut, split) for split in accuracy.SPLITS] for cut in (first, second)}
    for train, query, gallery in found.values():
        assert (len(train), len(query)) == (150, 75) and gallery == query
    assert not any(one & other for one, other in zip(found[first], found[second], strict=True))
    assert accuracy.images_of(protocols["d"], market, tmp_path / "out", None) == market


def test_runs_are_trained_once_and_averaged(accuracy: Any, tiny_data: Path, tmp_path: Path, one_thread: None) -> None:
    weights = tmp_path / "none"
    small = {**tiny.flags(tiny_data, tmp_path), "weights": "none", "epochs": 1, "iters": 1}
    for name in ("dataset", "name", "data_dir", "logs_dir"):
        del small[name]
    accuracy.PROTOCOLS["a"] = accuracy.Protocol("first", small)
    accuracy.train, calls = _counted(accuracy.train)
    options = argparse.Namespace(out=tmp_path / "out", market=tiny_data, mini=tiny_data, weights=Path())
    lines = [accuracy.run_one("a", recipe, 1, options, {}) for recipe in ("plain", "camera", "camera")]
    assert len(calls) == 2 and not weights.exists()
    text = accuracy.table(
        {("a", "plain"): lines[:1], ("a", "camera"): [{**lines[1], "mAP": 0.5}, {**lines[2], "mAP": 0.6}]}
    )
    assert f"| a | plain | 1 | {100 * lines[0]['mAP']:.1f} | " in text
    assert "| a | camera | 2 | 55.0 ± 5.0 | " in text


def _counted(function: Any) -> tuple[Any, list[Any]]:
    calls: list[Any] = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **options)

    return call, calls
