"""Which processor is taken, what is said when it cannot be, and repeatable seeds."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch

from ccreid_cli.core.errors import DeviceError, UsageError
from ccreid_cli.machine import device
from ccreid_cli.machine.device import derived_seed, device_for_resume, is_out_of_memory, resolve_device

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be a machine with GPUs that have so much memory free (None: it does not answer)."""

    def pretend(free: list[float | None], *, works: bool = True) -> None:
        def mem_get_info(index: int) -> tuple[int, int]:
            if free[index] is None:
                raise torch.OutOfMemoryError("CUDA error: out of memory")
            return int(free[index] * GIB), 80 * GIB

        def zeros(*size: int, device: torch.device) -> None:
            if not works:
                raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
        monkeypatch.setattr("ccreid_cli.machine.freest_gpu._free_by_index", lambda count: {})
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU-{index}")
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(device.torch, "zeros", zeros)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return pretend


def test_the_freest_gpu_is_taken(machine: Any) -> None:
    machine([10, 79, 40])
    found = resolve_device("auto")
    assert found.device == torch.device("cuda", 1)
    assert found.reason == "GPU-1, 79 of 80 GiB free, the freest of 3"


def test_a_gpu_that_does_not_answer_is_passed_over(machine: Any) -> None:
    machine([None, 5])
    assert resolve_device("cuda").device.index == 1
    machine([None, None])
    with pytest.raises(DeviceError, match="no GPU answers"):
        resolve_device("auto")


def test_the_rank_decides_under_a_launcher(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([10, 79, 40])
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert resolve_device("auto").device.index == 2


def test_a_gpu_by_number(machine: Any) -> None:
    machine([10, 79])
    assert resolve_device("cuda:0").device.index == 0
    with pytest.raises(DeviceError, match=r"cuda:2: only 2 GPUs are visible"):
        resolve_device("cuda:2")


def test_a_full_gpu(machine: Any) -> None:
    machine([1], works=False)
    with pytest.raises(DeviceError, match=r"^GPU 0 cannot be used: CUDA out of memory\.$") as caught:
        resolve_device("cuda")
    assert "Another process" in str(caught.value.hint)


def test_without_a_gpu(machine: Any) -> None:
    machine([])
    found = resolve_device("auto")
    assert (found.device.type, found.reason) == ("cpu", "no NVIDIA GPU is visible")
    with pytest.raises(DeviceError, match="--device cuda: no NVIDIA GPU is visible") as caught:
        resolve_device("cuda")
    assert "--device cpu" in str(caught.value.hint)
    with pytest.raises(DeviceError, match="no Apple GPU"):
        resolve_device("mps")


def test_an_old_driver(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([])

    def too_old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "driver does not fit PyTorch" in resolve_device("auto").reason


def test_a_build_without_cuda(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([])
    monkeypatch.setattr(torch.version, "cuda", None)
    assert resolve_device("auto").reason == "this build of PyTorch has no CUDA support"


def test_apple_comes_before_the_cpu(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto").device.type == "mps"


def test_what_an_apple_gpu_lacks_runs_on_the_cpu() -> None:
    """PyTorch reads the variable when it is imported: the package has to set it before."""
    name = "PYTORCH_ENABLE_MPS_FALLBACK"
    program = f"import os, sys, ccreid_cli; assert 'torch' not in sys.modules; print(os.environ['{name}'])"
    environment = {key: value for key, value in os.environ.items() if key != name}
    assert subprocess.check_output([sys.executable, "-c", program], env=environment, text=True) == "1\n"


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:1", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UsageError, match="is not known"):
        resolve_device(name)


def test_running_out_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("FIND was unable to find an engine to execute this computation"))
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))


def test_seeds_are_a_pure_function_of_their_parts() -> None:
    assert derived_seed("augment", 1, 2, 3) == derived_seed("augment", 1, 2, 3)
    parts = [("a", 1, 23), ("a", 12, 3), ("b", 1, 23), ("a", 1, 2, 3)]
    seeds = {derived_seed(*part) for part in parts}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)


def test_where_a_run_goes_on() -> None:
    assert [device_for_resume(name) for name in ("cpu", "cuda:3", "mps")] == ["cpu", "auto", "auto"]


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    fast, slow = {"bf16": 1.0, "fp32": 2.0}, {"bf16": 1.9, "fp32": 2.0}
    assert device.resolve_precision("auto", cpu, fast.__getitem__) == "bf16"
    assert device.resolve_precision("auto", cpu, slow.__getitem__) == "fp32"
    assert device.resolve_precision("bf16", cpu, slow.__getitem__) == "bf16"
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    assert device.resolve_precision("auto", cpu, fast.__getitem__) == "fp32"
