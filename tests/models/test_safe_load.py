from __future__ import annotations

import gzip
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ccreid_cli.core.errors import CheckpointError
from ccreid_cli.models.safe_load import load_untrusted


def _state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer{i}.weight": torch.randn(40, 10, generator=generator) for i in range(3)}


class _Attack:
    """Unpickled without care, this calls what it is told to."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _attacks(marker: Path) -> dict[str, Any]:
    return {
        "system": _Attack(os.system, f"touch {marker}"),
        "exec": _Attack(exec, f"open({str(marker)!r}, 'w').close()"),
        "eval": _Attack(eval, f"open({str(marker)!r}, 'w').close()"),
        "open": _Attack(open, str(marker), "w"),
        "getattr": _Attack(getattr, "text", "upper"),
        "path": _Attack(Path.touch, marker),
        "torch.load": _Attack(torch.load, str(marker)),
        "np.load": _Attack(np.load, str(marker)),
    }


@pytest.mark.parametrize("name", _attacks(Path("x")))
@pytest.mark.parametrize("form", ["zip", "legacy", "raw pickle", "protocol 4"])
@pytest.mark.parametrize("hidden", [False, True])
def test_malicious_pickles_are_refused_and_run_nothing(name: str, form: str, hidden: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "owned", tmp_path / "model.pth"
    attack = _attacks(marker)[name]
    content = {"state_dict": _state(), "epoch": 3, "best_mAP": attack} if hidden else attack
    if form == "raw pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif form == "protocol 4":
        torch.save(content, path, pickle_protocol=4)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError) as caught:
        load_untrusted(path)
    assert not marker.exists()
    assert "weights_only" not in str(caught.value) and str(path) in caught.value.message


def test_a_refusal_names_what_would_have_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": _Attack(os.system, "true")}, path)
    with pytest.raises(CheckpointError, match=r"asks to run (posix|nt)\.system\. Nothing was run"):
        load_untrusted(path)


@pytest.mark.parametrize(
    "value",
    [np.float64(0.826), np.float32(0.5), np.float16(0.5), np.int64(-7), np.uint8(200), np.int32(5), np.bool_(True)],
)
@pytest.mark.parametrize("numpy_1", [False, True])
def test_numpy_scalars_become_plain_numbers(value: Any, numpy_1: bool, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": _state(), "best_mAP": value}, path)
    if numpy_1:
        _rewrite_pickle(path, b"numpy._core.multiarray", b"numpy.core.multiarray")
    content, _, _ = load_untrusted(path)
    assert content["best_mAP"] == value.item() and type(content["best_mAP"]) is type(value.item())
    assert torch.equal(content["state_dict"]["layer0.weight"], _state()["layer0.weight"])


def _rewrite_pickle(path: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)


def test_big_endian_scalars_are_read_right(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(np.float64(0.25), path)
    _rewrite_pickle(path, b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>")
    content, _, _ = load_untrusted(path)
    assert content == struct.unpack(">d", struct.pack("<d", 0.25))[0]


@pytest.mark.parametrize("dtype", ["O", "O8", "V8", "U4", "S4", "M8", "f8,f8"])
def test_no_other_dtypes_are_made(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(np.float64(0.25), path)
    _rewrite_pickle(path, b"X\x02\x00\x00\x00f8", b"X" + struct.pack("<I", len(dtype)) + dtype.encode())
    with pytest.raises(CheckpointError, match="damaged, cut short or not plain"):
        load_untrusted(path)


def _write_forms(folder: Path) -> dict[str, Path]:
    paths = {name: folder / f"{name}.pth" for name in ("zip", "legacy", "safetensors")}
    torch.save(_state(), paths["zip"])
    torch.save(_state(), paths["legacy"], _use_new_zipfile_serialization=False)
    save_file(_state(), paths["safetensors"])
    return paths


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_content_decides_whatever_the_name(form: str, tmp_path: Path) -> None:
    content, metadata, notes = load_untrusted(_write_forms(tmp_path)[form])
    assert content.keys() == _state().keys() and metadata == {} and notes == ()
    assert all(torch.equal(content[key], value) for key, value in _state().items())


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_half_a_file_is_explained(form: str, tmp_path: Path) -> None:
    path = _write_forms(tmp_path)[form]
    whole = path.read_bytes()
    for length in [1, 3, 9, 20, 100, 511, len(whole) // 2, len(whole) - 700, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            load_untrusted(path)
        assert str(path) in caught.value.message


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_flipped_bits_never_make_a_traceback(form: str, tmp_path: Path, rng: np.random.Generator) -> None:
    path = _write_forms(tmp_path)[form]
    whole = path.read_bytes()
    header = [*range(min(700, len(whole))), *range(max(0, len(whole) - 700), len(whole))]
    for position in rng.choice(header, 120):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            load_untrusted(path)
        except CheckpointError as error:
            assert str(path) in error.message


def test_tar_in_name_only_is_read_and_remarked(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    torch.save(_state(), path)
    content, _, notes = load_untrusted(path)
    assert content.keys() == _state().keys()
    assert "not a tar archive" in notes[0] and "model_best.pth.tar" in notes[0]


def _make(path: Path, what: str) -> Path:
    inner = path.with_name("inner.pth")
    torch.save(_state(), inner)
    if what == "folder":
        path.mkdir()
    elif what == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(inner, "inner.pth")
    elif what == "tar.gz":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(inner, "inner.pth")
    elif what == "gzip":
        path.write_bytes(gzip.compress(inner.read_bytes()))
    elif what == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images/0001.jpg", "x")
    elif what == "npz":
        with path.open("wb") as file:
            np.savez(file, features=np.zeros(3))
    elif what == "torchscript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    elif what != "missing":
        path.write_bytes(
            {
                "empty": b"",
                "html": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
                "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 102530333\n",
                "text": b"resnet50",
                "jpeg": b"\xff\xd8\xff\xe0" + bytes(600),
            }[what]
        )
    return path


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("folder", "is a folder"),
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("html", "is a web page"),
        ("lfs", "Git LFS pointer"),
        ("text", "no weight file"),
        ("jpeg", "no weight file"),
        ("tar", "real tar archive"),
        ("tar.gz", "real tar archive"),
        ("gzip", "compressed archive"),
        ("zip", "is a zip archive, not a weight file"),
        ("npz", "NumPy archive"),
        ("torchscript", "TorchScript"),
    ],
)
def test_what_is_no_weight_file_is_named(what: str, part: str, tmp_path: Path) -> None:
    path = _make(tmp_path / "weights.pth.tar", what)
    with pytest.raises(CheckpointError, match=part) as caught:
        load_untrusted(path)
    assert str(path) in caught.value.message


def test_unreadable_file_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        load_untrusted(path)
