"""A run that was stopped and resumed equals the run that was not, bit for bit."""

from __future__ import annotations

import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from ccreid_cli.core.config import may_change_on_resume
from ccreid_cli.core.errors import CheckpointError, DataError, Interrupted, UsageError
from ccreid_cli.engine import start as training
from ccreid_cli.engine.evaluation_set import EvaluationSet
from ccreid_cli.engine.run_folder import RunFolder, find_run
from ccreid_cli.engine.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS_IN_ALL = tiny.EPOCHS * tiny.STEPS


def stop_after(step: int) -> Any:
    def stop(number: int) -> None:
        if number == step:
            signal.raise_signal(signal.SIGTERM)

    return stop


def stopped_run(data: Path, logs: Path, step: int, **changes: Any) -> list[float]:
    with tiny.watched(stop_after(step)) as watch, pytest.raises(Interrupted) as caught:
        tiny.train(data, logs, **changes)
    assert caught.value.signal_number == signal.SIGTERM
    assert caught.value.hint == f"ccreid resume {logs / 'run'}"
    return watch.losses


def check_resumed(logs: Path, losses: list[float], undisturbed: dict[str, Any], **changes: Any) -> None:
    with tiny.watched() as watch:
        tiny.resume(logs, **changes)
    tiny.assert_same({**tiny.outcome(logs), "losses": losses + watch.losses}, undisturbed)


@pytest.mark.parametrize("step", range(1, STEPS_IN_ALL + 1))
def test_stopped_after_any_step(step: int, tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    losses = stopped_run(tiny_data, tmp_path, step)
    assert len(losses) == step
    check_resumed(tmp_path, losses, undisturbed)


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.3},
        {"eps": "auto"},
        {"use_hard": True, "cluster": "infomap", "eps": 0.9, "k2": 2},
        {"optimizer": "sgd", "lr": 0.01, "warmup": 2, "milestones": "1"},
        {"optimizer": "adamw", "warmup": 1},
        {"method": "camera-contrast", "camera_norm": True, "drop_single_camera": True},
        {"camera_batch_norm": True, "weight_averaging": 0.5},
        {"background_norm": True, "use_cameras": False, "colour_jitter": 1.0},
    ],
)
def test_stopped_with_other_methods(changes: dict[str, Any], tiny_data: Path, tmp_path: Path) -> None:
    if "cluster" in changes:
        pytest.importorskip("infomap")
    with tiny.watched() as watch:
        tiny.train(tiny_data, tmp_path / "whole", **changes)
    lines = tiny.run_of(tmp_path / "whole").read_metrics()
    assert ["stability" in line for line in lines] == [False, True]
    assert ("eps" in lines[-1]) == (changes.get("eps") == "auto")
    expected = {**tiny.outcome(tmp_path / "whole"), "losses": watch.losses}
    losses = stopped_run(tiny_data, tmp_path / "stopped", 6, **changes)
    check_resumed(tmp_path / "stopped", losses, expected)


def test_stopped_again_and_again(tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    losses = stopped_run(tiny_data, tmp_path, 1)
    for _ in range(STEPS_IN_ALL - 1):
        with tiny.watched(stop_after(1)) as watch, pytest.raises(Interrupted):
            tiny.resume(tmp_path)
        losses += watch.losses
    check_resumed(tmp_path, losses, undisturbed)


@pytest.mark.parametrize("stage", ["labels", "evaluation"])
def test_stopped_between_the_steps(
    stage: str, tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = {"labels": (Trainer, "_begin_epoch"), "evaluation": (EvaluationSet, "score")}[stage]
    original, calls = getattr(owner, name), []

    def second_call_is_stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(stage)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch, tiny.watched() as watch, pytest.raises(Interrupted):
        patch.setattr(owner, name, second_call_is_stopped)
        tiny.train(tiny_data, tmp_path)
    check_resumed(tmp_path, watch.losses, undisturbed)


def test_saves_within_an_epoch_change_nothing(tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with tiny.watched() as watch:
        tiny.train(tiny_data, tmp_path, save_every=1, keep=20)
    tiny.assert_same({**tiny.outcome(tmp_path), "losses": watch.losses}, undisturbed)
    names = [path.name for path in tiny.run_of(tmp_path).store().numbered()]
    assert names[:5] == [*(f"epoch-0000-step-{step:06d}.pt" for step in (1, 2, 3, 4)), "epoch-0001.pt"]


@pytest.mark.parametrize("name", ["epoch-0000-step-000003.pt", "epoch-0001.pt"])
def test_a_named_checkpoint_is_gone_back_to(
    name: str, tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    tiny.train(tiny_data, tmp_path, save_every=1, keep=20)
    run = find_run(str(tmp_path / "run" / "checkpoints" / name), tmp_path)
    with tiny.watched() as watch:
        training.resume(run, {})
    done = {"epoch-0000-step-000003.pt": 3, "epoch-0001.pt": 4}[name]
    assert watch.losses == undisturbed["losses"][done:]
    check_outcome(tmp_path, undisturbed)


def test_a_run_is_found_by_name_folder_and_checkpoint(tiny_data: Path, tmp_path: Path) -> None:
    tiny.train(tiny_data, tmp_path, epochs=1)
    folder = tmp_path / "run"
    for name in ("run", str(folder), str(folder / "checkpoints" / "last.pt")):
        assert find_run(name, tmp_path) == RunFolder(folder)
    with pytest.raises(DataError, match='no run "rum".*did you mean "run"'):
        find_run("rum", tmp_path)
    (tmp_path / "loose.pt").write_bytes(b"")
    with pytest.raises(DataError, match="outside of any run") as caught:
        find_run(str(tmp_path / "loose.pt"), tmp_path)
    assert "--init-from" in str(caught.value.hint)


def test_more_epochs_of_a_finished_run(tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with tiny.watched() as watch:
        tiny.train(tiny_data, tmp_path, epochs=1)
    assert tiny.run_of(tmp_path).read_result()["epochs"] == 1
    check_resumed(tmp_path, watch.losses, undisturbed, epochs=tiny.EPOCHS)


def test_a_finished_run_has_nothing_left_to_do(tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with tiny.watched() as watch:
        tiny.train(tiny_data, tmp_path)
    check_resumed(tmp_path, watch.losses, undisturbed)


def test_what_may_change(tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    losses = stopped_run(tiny_data, tmp_path, 2)
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "run", moved / "run")
    changes = {"workers": 2, "print_freq": 3, "save_every": 2, "keep": 1, "device": "cpu", "data_dir": tmp_path / "d"}
    check_resumed(moved, losses, undisturbed, **changes)
    config = tiny.run_of(moved).read_config()
    assert (config.workers, config.keep, config.logs_dir, config.name) == (2, 1, moved, "run")
    assert len(tiny.run_of(moved).store().numbered()) == 1


def test_fewer_epochs_than_done_are_refused_and_save_times_stay(tiny_data: Path, tmp_path: Path) -> None:
    tiny.train(tiny_data, tmp_path)
    run = tiny.run_of(tmp_path)
    settings, metrics = run.read_config(), run.read_metrics()
    with pytest.raises(UsageError, match="less than the 2 epochs"):
        tiny.resume(tmp_path, epochs=1)
    assert run.read_config() == settings
    result = tiny.resume(tmp_path)
    assert run.read_metrics() == metrics and result["seconds"]["save"] > 0


def test_evaluating_less_often_changes_no_loss(tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    losses = stopped_run(tiny_data, tmp_path, 2)
    with tiny.watched() as watch:
        result = tiny.resume(tmp_path, eval_step=2)
    assert losses + watch.losses == undisturbed["losses"]
    assert result["last"] == result["best"] == undisturbed["result"]["last"]
    assert ["mAP" in line for line in tiny.run_of(tmp_path).read_metrics()] == [False, True]


FORBIDDEN = {
    "lr": (0.001, 0.5),
    "batch_size": (16, 32),
    "samples_per_bn": (8, 4),
    "eps": (0.6, 0.5),
    "seed": (1, 2),
    "arch": ("tiny", "resnet18"),
    "iters": (tiny.STEPS, 7),
    "precision": ("fp32", "bf16"),
    "temp": (0.05, 0.1),
    "use_cameras": (True, False),
}


@pytest.fixture(scope="module")
def short_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("short")
    tiny.train(tiny_data, logs, epochs=1)
    return logs


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_may_not_change_is_named_with_both_values(name: str, short_run: Path) -> None:
    old, new = FORBIDDEN[name]
    assert name not in may_change_on_resume()
    with pytest.raises(UsageError) as caught:
        tiny.resume(short_run, **{name: new})
    assert f"was {old}" in caught.value.message and f"now {new}" in caught.value.message
    assert name.replace("_", "-") in caught.value.message or "cam" in caught.value.message


def test_other_images_are_refused(short_run: Path, tmp_path: Path) -> None:
    shutil.copytree(short_run / "run", tmp_path / "run")
    data = tiny.make_dataset(tmp_path / "market")
    next((data / "bounding_box_train").iterdir()).unlink()
    recipe = tmp_path / "run" / "recipe.toml"
    stored = tiny.run_of(tmp_path).read_config()
    with pytest.raises(UsageError, match="--dataset cannot change"):
        tiny.resume(tmp_path, dataset=str(data))
    assert recipe.is_file()
    path = Path(stored.dataset) / "bounding_box_train" / "0001_c1s1_999999_00.jpg"
    shutil.copy(next((Path(stored.dataset) / "bounding_box_train").iterdir()), path)
    try:
        with pytest.raises(DataError, match="not those the run was started with"):
            tiny.resume(tmp_path)
    finally:
        path.unlink()


def test_weights_of_another_shape_are_refused(short_run: Path, tmp_path: Path) -> None:
    shutil.copytree(short_run / "run", tmp_path / "run")
    run = tiny.run_of(tmp_path)
    saved = run.store().load_newest()
    del saved.content["model"]["neck.weight"]
    run.store().save(saved.content, epoch=1, step=0, is_best=False)
    with pytest.raises(CheckpointError, match="does not fit"):
        tiny.resume(tmp_path)


def test_a_run_stays_on_the_cpu(short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(short_run / "run", tmp_path / "run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tiny.resume(tmp_path)
    assert tiny.run_of(tmp_path).read_config().device == "cpu"


# In processes of their own: the signals themselves, and the one that nothing can catch.


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_to_the_command(
    sent: signal.Signals, code: int, tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    process = tiny.start(tmp_path, tiny.command(tiny_data, tmp_path, save_every=1))
    process.wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("epoch-0000-*.pt")))
    process.send_signal(sent)
    found, said = process.finish()
    assert found == code, said
    assert f"ccreid resume {tmp_path / 'run'}" in said and "saved at" in said
    tiny.resume(tmp_path, save_every=0)
    check_outcome(tmp_path, undisturbed)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(seed: int, tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """SIGKILL at some moment, mostly while it saves, five times or until the run gets through."""
    moments, kills = np.random.default_rng(seed), 0
    process = tiny.start(tmp_path, tiny.command(tiny_data, tmp_path, save_every=1))
    log = tmp_path / "run" / "log.txt"
    for _ in range(5):
        before = log.stat().st_size if log.exists() else 0
        process.wait_for(partial(has_grown, log, before))
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        code, said = process.finish()
        assert code in {0, -signal.SIGKILL}, said
        kills += code != 0
        process = tiny.start(tmp_path, ["resume", "run", "--logs-dir", str(tmp_path)])
    code, said = process.finish()
    assert code == 0, said
    assert kills
    check_outcome(tmp_path, undisturbed)


def has_grown(log: Path, before: int) -> bool:
    return log.exists() and log.stat().st_size > before


def check_outcome(logs: Path, undisturbed: dict[str, Any]) -> None:
    found = tiny.outcome(logs)
    tiny.assert_same(found, {key: undisturbed[key] for key in found})


@pytest.mark.long
@pytest.mark.shared
def test_killed_ten_times_on_real_images(market_mini: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    settings, alone = market_mini
    moments = np.random.default_rng(0)
    process = tiny.start(tmp_path, ["train", *tiny.options({**settings, "logs_dir": tmp_path}), "--deterministic"])
    log = tmp_path / "run" / "log.txt"
    for number in range(10):
        process.wait_for(lambda: log.exists() and "training on" in log.read_text(), seconds=300)
        time.sleep(moments.uniform(0, 8))
        process.send_signal(signal.SIGKILL)
        process.finish()
        log.rename(log.with_name(f"log-{number}.txt"))
        process = tiny.start(tmp_path, ["resume", "run", "--logs-dir", str(tmp_path)])
    code, said = process.finish(seconds=1200)
    assert code == 0, said
    tiny.assert_same(tiny.outcome(tmp_path), tiny.outcome(alone))
