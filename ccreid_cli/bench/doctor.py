"""`ccreid doctor`: versions, devices, data and disk, and whether each device computes correctly."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ccreid_cli.core.errors import CcreidError
from ccreid_cli.core.files import free_bytes
from ccreid_cli.core.paths import torch_hub_checkpoints
from ccreid_cli.core.recipes import recipe_names
from ccreid_cli.core.version import __version__
from ccreid_cli.core.words import plural
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.data.reading import dataset_state
from ccreid_cli.engine.run_folder import describe_environment, list_runs
from ccreid_cli.machine.device import cpu_has_bf16, resolve_device
from ccreid_cli.models.registry import BACKBONES


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        name: What was checked.
        status: ``ok``, ``none`` (absent, and not needed) or ``FAILED``.
        detail: What was found.
    """

    name: str
    status: str
    detail: str


def diagnose(data_dir: Path, logs_dir: Path) -> list[Finding]:
    """Check versions, devices, disk, data and weights; nothing is changed on disk."""
    checks: list[tuple[str, Callable[[], tuple[str, str]]]] = [
        ("ccreid", _versions),
        ("cpu", lambda: _device("cpu")),
        ("cuda", _cuda),
        ("mps", _mps),
        ("chosen device", _chosen),
        ("faiss", _faiss),
        ("infomap", lambda: _package("infomap", "infomap")),
        ("onnx", lambda: _package("onnxruntime", "onnx")),
        ("data", lambda: _data(data_dir)),
        ("weights", _weights),
        ("runs", lambda: ("ok", f"{len(list_runs(logs_dir))} in {logs_dir}; {len(recipe_names())} recipes")),
        ("disk", lambda: _disk(data_dir, logs_dir)),
    ]
    return [_run(name, check) for name, check in checks]


def _run(name: str, check: Callable[[], tuple[str, str]]) -> Finding:
    try:
        return Finding(name, *check())
    except CcreidError as error:
        return Finding(name, "FAILED", error.message)
    except Exception as error:  # a diagnosis reports whatever is broken, and goes on
        return Finding(name, "FAILED", f"{type(error).__name__}: {error}")


def _versions() -> tuple[str, str]:
    packages = ", ".join(f"{name} {found}" for name, found in describe_environment()["packages"].items())
    return "ok", f"{__version__}; Python {platform.python_version()}; {packages}"


def _device(name: str) -> tuple[str, str]:
    """Multiply a small matrix in each precision and compare with float64."""
    device = torch.device(name)
    seconds = {}
    left = torch.randn(512, 512, dtype=torch.float64)
    for precision, tolerance in ((torch.float32, 1e-2), (torch.bfloat16, 5.0)):
        small = torch.ones(8, 8, dtype=precision, device=device)
        (small @ small).cpu()  # the first product of a GPU waits for its libraries
        start = time.perf_counter()
        product = (left.to(device, precision) @ left.to(device, precision)).cpu().double()
        seconds[str(precision).removeprefix("torch.")] = time.perf_counter() - start
        if (product - left @ left).abs().max() > tolerance:
            return "FAILED", f"{precision} products are wrong"
    times = ", ".join(f"{key} {1000 * value:.1f} ms" for key, value in seconds.items())
    if name == "cpu":
        extra = f"{plural(torch.get_num_threads(), 'thread')}, bf16 units: {'yes' if cpu_has_bf16() else 'no'}"
    else:
        extra = "computes"
    return "ok", f"{extra}; 512 x 512 product: {times}"


def _cuda() -> tuple[str, str]:
    if not torch.cuda.is_available():
        return "none", resolve_device("auto").reason
    names = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        status, detail = _device(f"cuda:{index}")
        if status != "ok":
            return status, f"GPU {index}: {detail}"
        names.append(f"{index}: {torch.cuda.get_device_name(index)}, {free / 2**30:.0f}/{total / 2**30:.0f} GiB free")
    bf16 = "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "ok", "; ".join(names) + f"; CUDA {torch.version.cuda}; bf16: {bf16}"


def _mps() -> tuple[str, str]:
    return _device("mps") if torch.backends.mps.is_available() else ("none", "no Apple GPU")


def _chosen() -> tuple[str, str]:
    choice = resolve_device("auto")
    return "ok", f"{choice.device} ({choice.reason})"


def _faiss() -> tuple[str, str]:
    try:
        import faiss
    except ImportError as error:
        return "none", f"does not import ({error}); PyTorch searches instead"
    rows = np.eye(8, dtype=np.float32)
    index = faiss.IndexFlatIP(8)
    index.add(rows)
    if not (index.search(rows, 1)[1][:, 0] == np.arange(8)).all():
        return "FAILED", "a search gave wrong neighbours"
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return "ok", f"{faiss.__version__}; {plural(gpus, 'GPU')}; a small search is right"


def _package(module: str, extra: str) -> tuple[str, str]:
    from importlib.util import find_spec

    if find_spec(module) is None:
        return "none", f"not installed (pip install 'ccreid[{extra}]')"
    return "ok", "installed"


def _data(data_dir: Path) -> tuple[str, str]:
    states = {info.name: dataset_state(info, data_dir).state for info in CATALOG.values()}
    found = [f"{name} ({state})" if state != "present" else name for name, state in states.items() if state != "absent"]
    return ("ok" if found else "none"), f"{data_dir}: {', '.join(found) or 'no dataset yet'}"


def _weights() -> tuple[str, str]:
    found = [arch for arch, row in BACKBONES.items() if row.url and row.path.is_file()]
    return ("ok" if found else "none"), f"{torch_hub_checkpoints()}: {', '.join(found) or 'none yet'}"


def _disk(data_dir: Path, logs_dir: Path) -> tuple[str, str]:
    free = {str(folder): free_bytes(folder) / 1e9 for folder in (data_dir, logs_dir)}
    text = ", ".join(f"{folder}: {size:.1f} GB free" for folder, size in free.items())
    return ("ok" if min(free.values()) > 2 else "FAILED"), text
