"""Checkpoints: whole or not there, checked on reading, pruned only after the new one reads back."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ccreid_cli.core.errors import CheckpointError, DataError
from ccreid_cli.engine import checkpoint
from ccreid_cli.engine.checkpoint import CheckpointStore, digest, read_checkpoint, save_checkpoint


def content(epoch: int = 1, step: int = 0, size: int = 1000) -> dict[str, Any]:
    tensor = torch.arange(size, dtype=torch.float32)
    return {"model": {"w": tensor}, "training": {"epoch": epoch, "step": step, "best": "{}"}, "config": "{}"}


def save(store: CheckpointStore, epoch: int, step: int = 0, *, is_best: bool = False) -> Path:
    return store.save(content(epoch, step), epoch=epoch, step=step, is_best=is_best)


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    value = {
        "model": {"bf16": torch.ones(3, dtype=torch.bfloat16), "scalar": torch.tensor(2), "none": torch.empty(0)},
        "training": {"last": torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last), "nothing": None},
    }
    save_checkpoint(tmp_path / "a.pt", value)
    found = read_checkpoint(tmp_path / "a.pt")
    assert digest({key: found[key] for key in value}) == digest(value)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def test_the_digest_sees_every_change() -> None:
    base = {"a": torch.zeros(4), "b": [1, 2.0, None]}
    others = [
        {"a": torch.zeros(4).index_fill_(0, torch.tensor([3]), 1e-30), "b": [1, 2.0, None]},
        {"a": torch.zeros(2, 2), "b": [1, 2.0, None]},
        {"a": torch.zeros(4, dtype=torch.int32), "b": [1, 2.0, None]},
        {"a": torch.zeros(4), "b": [1, 2.5, None]},
        {"a": torch.zeros(4), "c": [1, 2.0, None]},
        {"a": torch.zeros(4), "b": [1, 2.0]},
    ]
    assert len({digest(value) for value in [base, *others]}) == 7
    assert digest({"b": [1, 2.0, None], "a": torch.zeros(4)}) == digest(base)


def test_every_flipped_byte_of_the_data_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, content(size=200))
    whole = path.read_bytes()
    start = whole.find(torch.arange(200, dtype=torch.float32).numpy().tobytes()[:64])
    for position in range(start, start + 800, 37):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, content())
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 23):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            read_checkpoint(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "missing.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of a ccreid run") as caught:
        read_checkpoint(tmp_path / "other.pt")
    assert "--init-from" in str(caught.value.hint)
    save_checkpoint(tmp_path / "newer.pt", content())
    newer = torch.load(tmp_path / "newer.pt", weights_only=True)
    torch.save({**newer, "version": 99}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="newer ccreid"):
        read_checkpoint(tmp_path / "newer.pt")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_no_code_of_the_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "x": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "evil").exists()


def test_the_newest_stay_beside_best_and_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for epoch in range(1, 6):
        save(store, epoch, is_best=epoch == 2)
    save(store, 5, 30)
    assert [path.name for path in store.numbered()] == ["epoch-0005.pt", "epoch-0005-step-000030.pt"]
    assert read_checkpoint(store.best)["training"]["epoch"] == 2
    assert store.last.samefile(store.numbered()[-1])
    different = {path.stat().st_ino for path in tmp_path.iterdir()}
    assert len(different) == 3, "two newest, the best; last is another name of one of them"


def test_nothing_is_pruned_before_the_new_one_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1, is_best=True)
    original = torch.save

    def half(value: Any, path: Any) -> None:
        original(value, path)
        Path(path).write_bytes(Path(path).read_bytes()[:-200])

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(CheckpointError):
        save(store, 2, is_best=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "epoch-0001.pt", "last.pt"]
    assert store.load_newest().place == (1, 0)


def test_a_full_disk_in_the_words_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(value: Any, path: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(DataError, match="the disk is full or not writable"):
        save_checkpoint(tmp_path / "a.pt", content())


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1, is_best=True)
    save(store, 2)
    assert read_checkpoint(store.last)["training"]["epoch"] == 2
    store.numbered()[-1].unlink()
    assert store.load_newest().place == (2, 0)


def test_last_is_behind_when_the_process_died_in_between(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    save_checkpoint(store.path_of(2), content(2))
    found = store.load_newest()
    assert (found.place, found.path, found.problems) == ((2, 0), store.path_of(2), [])
    store.go_back_to(found)
    assert store.last.samefile(found.path)


def test_the_order_of_saves(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=99)
    for epoch, step in ((10, 0), (9, 200), (9, 5), (9, 0), (10, 1)):
        save(store, epoch, step)
    (tmp_path / "epoch-99.pt.damaged").touch()
    (tmp_path / "epoch-abc.pt").touch()
    names = [path.name for path in store.numbered()]
    assert names == [store.path_of(*place).name for place in ((9, 0), (9, 5), (9, 200), (10, 0), (10, 1))]


def test_going_back_removes_what_is_newer(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=9)
    for epoch in (1, 2, 3, 4):
        save(store, epoch)
    store.path_of(3).write_bytes(b"damaged")
    found = checkpoint.Saved(read_checkpoint(store.path_of(2)), store.path_of(2))
    store.go_back_to(found)
    assert [path.name for path in store.numbered()] == ["epoch-0001.pt", "epoch-0002.pt"]
    assert (tmp_path / "epoch-0003.pt.damaged").read_bytes() == b"damaged"
    assert store.last.samefile(store.path_of(2))


def test_an_empty_folder(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert store.is_empty()
    with pytest.raises(CheckpointError, match="holds no whole checkpoint. There is none."):
        store.load_newest()
    shutil.rmtree(tmp_path)
