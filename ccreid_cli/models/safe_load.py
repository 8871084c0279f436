"""Reading weight files that somebody else made: nothing in them is ever executed.

Everything goes through PyTorch's restricted unpickler (``weights_only=True``) or safetensors, without a fallback. Ours
are stand-ins for what checkpoints hold beside tensors, and errors that say what a file is: PyTorch's advise to switch
its safety off.
"""

from __future__ import annotations

import json
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccreid_cli.core.errors import CheckpointError
from ccreid_cli.models.fitting import some
from ccreid_cli.models.refused_pickles import refused

_NESTED_UNDER = (
    *("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "teacher"),
    *("net", "network", "weights", "params", "student"),
)
_AGAIN = "Download it again; the first try may have been cut short."


class _NumpyDtype:
    """Stands in for `numpy.dtype` while unpickling: it only remembers a code such as ``f8``."""

    def __init__(self, code: str, *_flags: bool) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"[fiu][248]|[iu]1|b1", code)):
            raise ValueError(f"only numeric scalars are read, not {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _numpy_scalar(dtype: _NumpyDtype, data: bytes) -> float | int | bool:
    """Stands in for NumPy's scalar constructor: returns a plain Python number."""
    formats = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"}
    integers = {"1": "b", "2": "h", "4": "i", "8": "q"}
    code = formats.get(dtype.code) or integers[dtype.code[1]]
    value: float | int | bool = struct.unpack(dtype.order + (code.upper() if dtype.code[0] == "u" else code), data)[0]
    return value


class _Arguments:
    """Stands in for `argparse.Namespace`: the options that DINO, MAE, MoCo v3 and others keep beside the weights."""


# Official checkpoints hold one NumPy scalar (best_mAP). NumPy itself is never called with what the file says.
_ALLOWED: list[Any] = [
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_NumpyDtype, "numpy.dtype"),
    (_Arguments, "argparse.Namespace"),
]


def _explain_not_a_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a weight file.", "Name the file inside it.")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.", "`ccreid weights list` shows what is on this machine.")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty.", _AGAIN)


def _explain_zip(path: Path) -> None:
    """Tell a torch file from other zip archives and from half a file."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is damaged or cut short: the end of the file is missing.", _AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, struct.error, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its table of contents cannot be read ({error}).", _AGAIN) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript program, not weights.", "Save its state_dict() instead.")
    if any(name.endswith(".npy") for name in names):
        raise CheckpointError(f"{path} is a NumPy archive, not a weight file.")
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(f"{path} is a zip archive, not a weight file.", "Unpack it and name the file inside.")


def _explain_other(path: Path, head: bytes) -> None:
    """Raise for content that no reader here takes, saying what it looks like."""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        hint = "The server sent a page in place of the file (a login, a warning, an error): download it in a browser."
        raise CheckpointError(f"{path} is a web page, not a weight file.", hint)
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights.", "Run `git lfs pull` where it came from."
        )
    if tarfile.is_tarfile(path):
        raise CheckpointError(f"{path} is a real tar archive.", "Unpack it (`tar -xf`) and name the file inside.")
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"Rar!", b"7z")):
        raise CheckpointError(f"{path} is a compressed archive.", "Unpack it and name the file inside.")
    raise CheckpointError(f"{path} is no weight file that ccreid knows (PyTorch or safetensors).")


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a file starts like safetensors: the length of a JSON header in 8 bytes, then that header."""
    if head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80", b"<"))


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, metadata
    except (SafetensorError, OSError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is a damaged or cut short safetensors file ({error}).", _AGAIN) from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # What a hostile or damaged file makes the unpickler raise is open-ended; every case is a refusal.
    except Exception as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> CheckpointError:
    """Say in a user's words why PyTorch would not read a file; its own advice is to switch the safety off."""
    text = str(error)
    called = re.search(r"GLOBAL ([\w.]+)", text)
    if called:
        return refused(path, called[1])
    if "legacy" in text.lower() and ".tar" in text:
        return CheckpointError(f"{path} is in a tar form that PyTorch gave up in 2017, which cannot be read safely.")
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return CheckpointError(f"{path} does not fit into this machine's memory.")
    reason = (text.splitlines() or [""])[0][:120]
    if "weights" in reason.lower():
        reason = "it holds more than plain weights"
    return CheckpointError(
        f"{path} is damaged, cut short or not plain weights ({reason or type(error).__name__}).", _AGAIN
    )


def load_untrusted(path: Path) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """Read a weight file of any known form without running anything that it holds.

    Args:
        path: A PyTorch file of any age (``.pth``, ``.pt``, ``.pth.tar``) or a safetensors file; its content decides.

    Returns:
        What was saved; the header metadata of a safetensors file; remarks for the user.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe or something else altogether; the message says which.
    """
    _explain_not_a_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if _is_safetensors(path, head):
        return *_read_safetensors(path), ()
    if head.startswith(b"PK"):
        _explain_zip(path)
    elif not head.startswith(b"\x80"):
        _explain_other(path, head)
    named_tar = path.suffix == ".tar"
    note = f"{path.name} is a PyTorch file in spite of its name, not a tar archive: there is nothing to unpack."
    return _read_torch(path), {}, (note,) if named_tar else ()


def find_state_dict(content: Any, path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Find the state dict in what a file holds; return it and what lies around it.

    Args:
        content: What was saved, as `load_untrusted` returns it.
        path: The file, for errors.

    Raises:
        CheckpointError: There is no dict of plain tensors.
    """
    meta: dict[str, Any] = {}
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        name = next((name for name in _NESTED_UNDER if isinstance(content.get(name), Mapping)), None)
        if name is None:
            break
        meta.update({key: value for key, value in content.items() if key != name})
        content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict.", "Save `model.state_dict()`, not the model or one tensor.")
    bad = [str(key) for key, value in content.items() if not isinstance(key, str) or not _is_plain(value)]
    if bad:
        raise CheckpointError(f"{path} holds no plain state dict: {some(bad)} are not dense tensors.")
    return content, meta


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )
