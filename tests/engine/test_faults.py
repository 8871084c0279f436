"""Every death a run can die: what is on disk afterwards, and what resume makes of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from ccreid_cli.core.errors import CheckpointError, DataError, UsageError
from ccreid_cli.core.locks import LockedError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.engine import checkpoint
from ccreid_cli.engine import start as training
from ccreid_cli.engine.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def warning(self, text: str) -> None:
        self.said.append(f"warning: {text}")


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("finished")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny.train(tiny_data, logs, save_every=2, keep=3)
    torch.set_num_threads(threads)
    return logs / "run"


@pytest.fixture
def logs(finished: Path, tmp_path: Path) -> Path:
    """A run of two epochs whose last save is ``epoch-0002.pt``, after two within the second epoch."""
    shutil.copytree(finished, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for name, target in (("last.pt", "epoch-0002.pt"), ("best.pt", "epoch-0002.pt")):
        (folder / name).unlink()
        os.link(folder / target, folder / name)
    names = sorted(path.name for path in folder.iterdir())
    steps = [f"epoch-0001-step-00000{step}.pt" for step in (2, 4)]
    assert names == ["best.pt", *steps, "epoch-0002.pt", "last.pt"]
    return tmp_path


def check_resumed(logs: Path, undisturbed: dict[str, Any], steps: int) -> list[str]:
    """Resume, compare with the undisturbed run, and return what was said; `steps` had to be done again."""
    listener = Listener()
    with tiny.watched() as watch:
        training.resume(tiny.run_of(logs), {"save_every": 0}, reporter=listener)
    assert len(watch.losses) == steps
    found = tiny.outcome(logs)
    tiny.assert_same(found, {key: undisturbed[key] for key in found})
    store = tiny.run_of(logs).store()
    best = checkpoint.read_checkpoint(store.best)
    assert json.loads(best["training"]["best"]) == undisturbed["result"]["best"]
    assert checkpoint.is_whole(store.last)
    return listener.said


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_byte, empty])
def test_a_damaged_last_checkpoint(damage: Callable[[Path], None], logs: Path, undisturbed: dict[str, Any]) -> None:
    """``last.pt`` and here ``best.pt`` are the same file, so they are damaged with it."""
    folder = logs / "run" / "checkpoints"
    damage(folder / "epoch-0002.pt")
    said = check_resumed(logs, undisturbed, steps=0)
    assert any(
        "epoch-0002.pt is damaged" in line and "Falling back to epoch-0001-step-000004.pt" in line for line in said
    )
    assert (folder / "epoch-0002.pt.damaged").is_file()


def test_two_damaged_checkpoints(logs: Path, undisturbed: dict[str, Any]) -> None:
    folder = logs / "run" / "checkpoints"
    flip_byte(folder / "epoch-0002.pt")
    truncate(folder / "epoch-0001-step-000004.pt")
    said = check_resumed(logs, undisturbed, steps=2)
    assert sum("Falling back to epoch-0001-step-000002.pt" in line for line in said) == 2


def test_a_damaged_checkpoint_never_counts_as_one_to_keep(logs: Path, undisturbed: dict[str, Any]) -> None:
    folder = logs / "run" / "checkpoints"
    truncate(folder / "epoch-0002.pt")
    tiny.resume(logs, keep=1, save_every=1)
    assert [path.name for path in tiny.run_of(logs).store().numbered()] == ["epoch-0002.pt"]
    assert checkpoint.is_whole(folder / "epoch-0002.pt")


def test_a_deleted_last_checkpoint(logs: Path, undisturbed: dict[str, Any]) -> None:
    folder = logs / "run" / "checkpoints"
    (folder / "epoch-0002.pt").unlink()
    check_resumed(logs, undisturbed, steps=0)  # last.pt still is that save


def test_deleted_last_checkpoints(logs: Path, undisturbed: dict[str, Any]) -> None:
    folder = logs / "run" / "checkpoints"
    for name in ("epoch-0002.pt", "last.pt", "best.pt", "epoch-0001-step-000004.pt"):
        (folder / name).unlink()
    said = check_resumed(logs, undisturbed, steps=2)
    assert any("best.pt is missing or damaged" in line for line in said)


def test_only_best_is_left(logs: Path, undisturbed: dict[str, Any]) -> None:
    folder = logs / "run" / "checkpoints"
    for path in folder.iterdir():
        if path.name != "best.pt":
            path.unlink()
    check_resumed(logs, undisturbed, steps=0)


def test_every_checkpoint_is_damaged(logs: Path) -> None:
    for path in (logs / "run" / "checkpoints").iterdir():
        truncate(path)
    with pytest.raises(CheckpointError, match="no whole checkpoint.*epoch-0002.pt is damaged.*epoch-0001"):
        tiny.resume(logs)


def test_an_emptied_checkpoints_folder(logs: Path) -> None:
    for path in (logs / "run" / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match=r"empty, though 2 epochs of this run had been done"):
        tiny.resume(logs)


def test_killed_before_the_first_save(logs: Path, undisturbed: dict[str, Any]) -> None:
    run = logs / "run"
    shutil.rmtree(run / "checkpoints")
    for name in ("metrics.jsonl", "metrics.csv", "result.json"):
        (run / name).unlink()
    said = check_resumed(logs, undisturbed, steps=tiny.EPOCHS * tiny.STEPS)
    assert any("no checkpoint yet" in line for line in said)


def test_killed_before_the_run_was_made(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".recipe.toml.99.tmp").write_text("half")
    tiny.train(tiny_data, tmp_path, epochs=1)
    with pytest.raises(UsageError, match="already holds a run"):
        tiny.train(tiny_data, tmp_path, epochs=1)


@pytest.mark.parametrize("text", ['{"epoch": 1, "lo', "7\n", "\udcff\n"])
def test_a_damaged_metrics_line(text: str, logs: Path, undisturbed: dict[str, Any]) -> None:
    file = logs / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + text, errors="surrogateescape")
    assert tiny.run_of(logs).read_metrics() == [json.loads(lines[0])]
    check_resumed(logs, undisturbed, steps=0)


def test_temporary_files_of_a_killed_save_go(logs: Path, undisturbed: dict[str, Any]) -> None:
    run = logs / "run"
    left = [run / "checkpoints" / ".epoch-0003.pt.123.tmp", run / ".metrics.jsonl.123.tmp"]
    for path in left:
        path.write_bytes(b"half")
    check_resumed(logs, undisturbed, steps=0)
    assert not any(path.exists() for path in left)


# A disk that takes nothing more.


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["torch.save", "os.fsync", "os.link"])
def test_a_full_disk_while_saving(
    place: str, tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(number: int) -> None:
        if number == 6:
            owner = {"torch": torch, "os": os}[place.partition(".")[0]]
            monkeypatch.setattr(owner, place.partition(".")[2], full)
            if place == "os.link":
                monkeypatch.setattr(shutil, "copyfile", full)

    with tiny.watched(fill), pytest.raises(DataError, match="No space left on device") as caught:
        tiny.train(tiny_data, tmp_path, save_every=2)
    assert caught.value.hint
    monkeypatch.undo()
    folder = tmp_path / "run" / "checkpoints"
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*"))
    assert all(checkpoint.is_whole(path) for path in folder.iterdir())
    check_resumed(tmp_path, undisturbed, steps=2 if place == "os.link" else 4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_really_fills_up(tiny_data: Path, small_disk: Path, undisturbed: dict[str, Any]) -> None:
    logs = small_disk / "logs"
    ballast = small_disk / "ballast"

    def fill(number: int) -> None:
        if number == 6:
            with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    data_dir = tiny_data.parent / "cache"
    with tiny.watched(fill), pytest.raises(DataError, match=r"could not write .*epoch-0001-step-000002\.pt|No space"):
        tiny.train(tiny_data, logs, save_every=2, keep=1, data_dir=data_dir)
    folder = logs / "run" / "checkpoints"
    assert {path.name for path in folder.iterdir()} >= {"epoch-0001.pt", "last.pt"}
    assert all(checkpoint.is_whole(path) for path in folder.iterdir())
    ballast.unlink()
    check_resumed(logs, undisturbed, steps=4)


def test_a_folder_that_cannot_be_written(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        tiny.train(tiny_data, tmp_path / "file")
    assert str(tmp_path / "file") in caught.value.message and caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tiny_data: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataError, match="Permission denied"):
            tiny.train(tiny_data, tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_becomes_read_only(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        tiny.resume(logs, epochs=3)
    monkeypatch.undo()
    assert all(checkpoint.is_whole(path) for path in (logs / "run" / "checkpoints").iterdir())


# One owner.


def test_a_second_process_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    owner = tiny.start(tmp_path, tiny.command(tiny_data, tmp_path, epochs=400, eval_step=400))
    owner.wait_for((tmp_path / "run" / "metrics.jsonl").exists)
    pid = json.loads((tmp_path / "run" / ".lock.owner").read_text())["pid"]
    code, said = tiny.start(tmp_path, ["resume", str(tmp_path / "run")]).finish()
    assert code == 3
    assert f"process {pid} on {socket.gethostname()}" in said and "is in use" in said
    with pytest.raises(LockedError):
        tiny.resume(tmp_path)
    with pytest.raises(UsageError, match="already holds a run"):
        tiny.train(tiny_data, tmp_path)
    owner.send_signal(signal.SIGTERM)
    assert owner.finish()[0] == 143
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(logs: Path, undisturbed: dict[str, Any]) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    note = {"host": socket.gethostname(), "pid": ended.pid, "since": 0.0}
    (logs / "run" / ".lock").touch()
    (logs / "run" / ".lock.owner").write_text(json.dumps(note))
    check_resumed(logs, undisturbed, steps=0)
    assert not list((logs / "run").glob(".lock*"))


def test_a_second_ctrl_c_ends_at_once(tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    process = tiny.start(tmp_path, tiny.command(tiny_data, tmp_path, save_every=1), CCREID_TEST_SLOW_SAVE="20")
    folder = tmp_path / "run" / "checkpoints"
    process.wait_for(lambda: list(folder.glob(".epoch-0000-step-000002.pt.*.slow")))
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # a launcher adds its own: no second Ctrl-C
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _ = process.finish(seconds=10)
    assert code == 130
    run: RunFolder = tiny.run_of(tmp_path)
    assert [path.name for path in run.store().numbered()] == ["epoch-0000-step-000001.pt"]
    check_resumed(tmp_path, undisturbed, steps=7)
