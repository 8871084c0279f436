"""A run's folder: what is written, what is read back, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.engine.run_folder import RunFolder, default_name, describe_environment, find_run, flatten, list_runs


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "logs" / "a run")
    folder.create(TrainConfig(dataset="toy", lr=0.1), {"python": "3"})
    return folder


def test_settings_and_environment_are_read_back(run: RunFolder) -> None:
    assert run.read_config() == TrainConfig(dataset="toy", lr=0.1)
    assert run.read_environment() == {"python": "3"}
    assert run.read_result() == {} and run.read_metrics() == []


def test_a_run_is_not_overwritten(run: RunFolder) -> None:
    with pytest.raises(UsageError, match="already holds a run") as caught:
        run.create(TrainConfig(), {})
    assert f"ccreid resume '{run.path}'" in str(caught.value.hint)


def test_files_of_somebody_else_are_not_mixed_with(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("")
    with pytest.raises(UsageError, match="other files"):
        RunFolder(tmp_path).create(TrainConfig(), {})


def test_metrics_as_lines_and_as_a_table(run: RunFolder) -> None:
    lines = [{"epoch": 0, "seconds": {"train": 1.5}}, {"epoch": 1, "mAP": 0.5, "seconds": {"train": 2.0}}]
    run.write_metrics(lines)
    assert run.read_metrics() == lines
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"epoch": "0", "seconds.train": "1.5", "mAP": ""},
        {"epoch": "1", "seconds.train": "2.0", "mAP": "0.5"},
    ]
    assert flatten({"a": {"b": {"c": 1}}}) == {"a.b.c": 1}


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_damaged_records_are_empty(text: bytes, run: RunFolder) -> None:
    for name in ("environment.json", "result.json"):
        (run.path / name).write_bytes(text)
    assert run.read_environment() == {} and run.read_result() == {}


def test_the_log_survives_a_full_disk(run: RunFolder) -> None:
    run.log("first")
    assert (run.path / "log.txt").read_text().endswith("  first\n")
    (run.path / "log.txt").unlink()
    (run.path / "log.txt").mkdir()  # nothing can be written there
    run.log("second")


def test_runs_are_listed_and_found(run: RunFolder, tmp_path: Path) -> None:
    logs = run.path.parent
    (logs / "not a run").mkdir()
    assert [found.path for found in list_runs(logs)] == [run.path]
    assert list_runs(tmp_path / "missing") == []
    assert find_run("a run", logs) == run
    with pytest.raises(
        DataError, match=r"there is no file model_best\.pth\.tar and no run \"model_best\.pth\.tar\" in"
    ):
        find_run("model_best.pth.tar", logs)
    with pytest.raises(DataError, match="not the folder of a run"):
        find_run(str(logs / "not a run"), logs)


def test_a_named_checkpoint_is_remembered(run: RunFolder) -> None:
    for name in ("epoch-0001.pt", "best.pt", "last.pt"):
        (run.checkpoints / name).touch()
        named = None if name == "last.pt" else run.checkpoints / name
        assert find_run(str(run.checkpoints / name), run.path.parent) == RunFolder(run.path, named=named)


def test_leftovers_are_cleaned(run: RunFolder) -> None:
    for folder in (run.path, run.checkpoints):
        (folder / ".x.1.tmp").touch()
    run.clean()
    assert not list(run.path.rglob("*.tmp"))
    run.write_result({"epochs": 1})
    run.remove_result()
    run.remove_result()
    assert run.read_result() == {}


def test_names_tell_dataset_and_network() -> None:
    assert default_name(TrainConfig(dataset="/data/my.images/", arch="resnet18")).startswith("my-images-resnet18-")


def test_the_environment_is_json() -> None:
    found = json.loads(json.dumps(describe_environment()))
    assert found["packages"]["torch"] and found["python"]
