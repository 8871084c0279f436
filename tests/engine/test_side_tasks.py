"""What is done beside training (scores, metrics, the result) fails, and the run is whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.engine import metric_writers, trainer
from ccreid_cli.engine import start as training
from ccreid_cli.engine.evaluation_set import EvaluationSet
from ccreid_cli.engine.metric_writers import make_writers
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.inference.evaluate import score_model
from ccreid_cli.inference.loading import ModelRequest, load_network

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """As a signal that nothing can catch."""


def failing_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, error: BaseException) -> None:
    """Let the call of that number, counted from 1, raise."""
    original, calls = getattr(owner, name), []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


def train(data: Path, logs: Path, **changes: Any) -> tuple[list[str], dict[str, Any], list[float]]:
    """Return what was warned of, the result and the losses."""
    reporter = tiny.Warnings()
    with tiny.watched() as watch:
        result = training.train(tiny.resolved(data, logs, **changes), reporter=reporter)
    return reporter.said, result, watch.losses


@pytest.mark.parametrize(
    "error",
    [
        DataError("no query has a match."),
        torch.OutOfMemoryError("CUDA out of memory."),
        OSError(5, "Input/output error"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("epoch", [1, 2])
def test_scoring_fails(
    epoch: int,
    error: Exception,
    tiny_data: Path,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing_call(monkeypatch, EvaluationSet, "score", epoch, error)
    said, result, losses = train(tiny_data, tmp_path)
    assert len(said) == 1 and said[0].startswith(f"epoch {epoch} was not scored: ")
    assert losses == undisturbed["losses"]
    tiny.assert_same(tiny.outcome(tmp_path)["model"], undisturbed["model"])
    run = tiny.run_of(tmp_path)
    assert ["mAP" in line for line in run.read_metrics()] == [epoch != 1, epoch != 2]
    assert f"epoch {epoch} was not scored" in (run.path / "log.txt").read_text()
    assert result["last"] == result["best"] == {**undisturbed["result"]["last"], **result["last"]}
    assert result["last"]["epoch"] == 2 - epoch
    assert ("not_scored" in result) is (epoch == 2)
    monkeypatch.undo()
    longer = tiny.resume(tmp_path, epochs=3)
    assert longer["last"]["epoch"] == 2 and "not_scored" not in longer


def test_killed_while_scoring(
    tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_call(monkeypatch, EvaluationSet, "score", 2, Killed())
    with tiny.watched() as watch, pytest.raises(Killed):
        tiny.train(tiny_data, tmp_path)
    monkeypatch.undo()
    with tiny.watched() as again:
        tiny.resume(tmp_path)
    assert not again.losses
    tiny.assert_same({**tiny.outcome(tmp_path), "losses": watch.losses}, undisturbed)
    names = [path.name for path in tiny.run_of(tmp_path).store().numbered()]
    assert names == ["epoch-0001.pt", "epoch-0002.pt"]


@pytest.fixture(scope="module")
def unmatched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose queries are nowhere in its gallery."""
    data = tiny.make_dataset(tmp_path_factory.mktemp("unmatched") / "market")
    for path in (data / "query").iterdir():
        path.rename(path.with_name(path.name.replace("000", "009", 1)))
    return data


def test_queries_without_any_match_are_said_at_the_start(unmatched: Path, tmp_path: Path) -> None:
    said, result, _ = train(unmatched, tmp_path, epochs=1)
    assert any("from another camera: training without evaluation" in text for text in said)
    assert "last" not in result
    loaded = load_network(ModelRequest(str(tmp_path / "run")), tmp_path, "cpu", tiny.Warnings())
    size: dict[str, Any] = {"height": None, "width": None, "batch_size": None, "workers": 0}
    with pytest.raises(DataError, match="nothing can be scored"):
        score_model(
            loaded,
            str(unmatched),
            data_dir=tmp_path / "absent",
            **size,
            precision="fp32",
            rerank=False,
            reporter=tiny.Warnings(),
        )
    assert not (tmp_path / "absent").exists()  # nothing was decoded


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_metrics_fail_and_are_whole_once_they_can_be_written(
    tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_call(
        monkeypatch, RunFolder, "write_metrics", 1, DataError("could not write metrics.csv: the disk is full.")
    )
    said, _, losses = train(tiny_data, tmp_path)
    assert [text for text in said if "metrics.csv" in text] == said and len(said) == 1
    tiny.assert_same({**tiny.outcome(tmp_path), "losses": losses}, undisturbed)


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [
        (trainer, "label_quality", "not compared with the identities"),
        (RunFolder, "write_result", "result was not written"),
        (metric_writers, "flatten", "did not go to"),
    ],
)
def test_what_only_informs_fails(
    owner: Any, name: str, words: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(owner, name, fail)
    if name == "flatten":
        pytest.importorskip("tensorboard")
    said, result, _ = train(tiny_data, tmp_path, tensorboard=name == "flatten")
    assert said and all(words in text and "ValueError: odd" in text for text in said)
    assert result["last"]["epoch"] == 1 and len(tiny.run_of(tmp_path).read_metrics()) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_on_a_full_disk(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer import record_writer

    monkeypatch.setattr(record_writer.RecordWriter, "write", full)
    said, _, _ = train(tiny_data, tmp_path, tensorboard=True)
    assert len(said) == 1 and "TensorBoard, training goes on" in said[0]


def test_tensorboard_without_a_folder_is_refused_at_the_start(tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tiny.train(tiny_data, tmp_path, epochs=1)
    (tmp_path / "run" / "tensorboard").write_text("a file")
    with tiny.watched() as watch, pytest.raises(UsageError, match="cannot be made"):
        tiny.resume(tmp_path, epochs=2, tensorboard=True)
    assert not watch.losses


@pytest.mark.parametrize("where", ["log", "finish"])
def test_wandb_fails_later(where: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the network is gone")

    page: Any = ModuleType("page")
    page.log = page.finish = lambda *_, **__: None
    setattr(page, where, fail)
    wandb: Any = ModuleType("wandb")
    wandb.init = lambda **_: page
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    said, result, _ = train(tiny_data, tmp_path, wandb=True)
    assert len(said) == 1 and "wandb" in said[0] and "the network is gone" in said[0]
    assert result["epochs"] == 2


def test_wandb_that_cannot_start_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    wandb: Any = ModuleType("wandb")
    wandb.init = full
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = tiny.resolved(tmp_path, tmp_path).config
    run = RunFolder(tmp_path / "run")
    run.create(config, {})
    with pytest.raises(UsageError, match="wandb did not start: No space left"):
        make_writers(run, False, True, config)
