"""Where metrics go: files always, TensorBoard for real, wandb through a stand-in."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import UsageError
from ccreid_cli.engine.metric_writers import make_writers, require_writers, scalars
from ccreid_cli.engine.run_folder import RunFolder

CONFIG = TrainConfig(epochs=3)


def _line(epoch: int, loss: float = 1.0) -> dict[str, Any]:
    return {"epoch": epoch, "loss": loss, "seconds": {"train": 2.0}, "ari": None, "mAP": float("nan"), "ok": True}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create(CONFIG, {"started": "2026-01-02"})
    return run


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("wandb")
    module.Error = type("Error", (Exception,), {})
    module.runs = []

    def init(**options: Any) -> FakeRun:
        module.runs.append((options, FakeRun()))
        made: FakeRun = module.runs[-1][1]
        return made

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_only_finite_numbers_are_scalars() -> None:
    assert dict(scalars(_line(4))) == {"loss": 1.0, "seconds.train": 2.0}


def test_files_hold_every_epoch_once_after_a_resume(run: RunFolder) -> None:
    writer = make_writers(run, False, False, CONFIG)
    for epoch in range(3):
        writer.write(_line(epoch))
    writer.close()
    again = make_writers(run, False, False, CONFIG)
    again.write(_line(1, loss=7.0))
    again.close()
    assert [(line["epoch"], line["loss"]) for line in run.read_metrics()] == [(0, 1.0), (1, 7.0)]
    with (run.path / "metrics.csv").open() as file:
        assert [row["seconds.train"] for row in csv.DictReader(file)] == ["2.0", "2.0"]


def test_tensorboard_reads_the_events_back(run: RunFolder) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs, loss in (((0, 1, 2), 1.0), ((1,), 7.0)):
        writer = make_writers(run, True, False, CONFIG)
        for epoch in epochs:
            writer.write(_line(epoch, loss))
        writer.close()
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss", "seconds/train"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 7.0)]


def test_wandb_is_told_everything(run: RunFolder, fake_wandb: Any) -> None:
    for epochs in ((0, 1), (2,)):
        writer = make_writers(run, False, True, CONFIG)
        for epoch in epochs:
            writer.write(_line(epoch))
        writer.close()
    (first, one), (second, two) = fake_wandb.runs
    assert first["id"] == second["id"]
    assert (first["name"], first["resume"], first["config"]["epochs"]) == ("run", "allow", 3)
    assert one.logged == [({"loss": 1.0, "seconds.train": 2.0}, 1), ({"loss": 1.0, "seconds.train": 2.0}, 2)]
    assert two.logged[0][1] == 3
    assert one.finished
    assert two.finished


def test_wandb_that_refuses_is_explained(run: RunFolder, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise fake_wandb.Error("No API key configured.")

    monkeypatch.setattr(fake_wandb, "init", refuse)
    with pytest.raises(UsageError, match=r"No API key configured\.$") as caught:
        make_writers(run, False, True, CONFIG)
    assert "WANDB_MODE=offline" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("package", "module", "hint"),
    [("tensorboard", "torch.utils.tensorboard", "ccreid[tensorboard]"), ("wandb", "wandb", "pip install wandb")],
)
def test_absent_packages_name_what_to_install(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, package: str, module: str, hint: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for ask in (require_writers, lambda tensorboard, wandb: make_writers(run, tensorboard, wandb, CONFIG)):
        with pytest.raises(UsageError, match=package) as caught:
            ask(package == "tensorboard", package == "wandb")
        assert hint in str(caught.value.hint)
    require_writers(False, False)
