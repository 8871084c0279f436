"""The GPU with most free memory is found, and no other is opened."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ccreid_cli.core.errors import DeviceError
from ccreid_cli.machine.freest_gpu import freest_gpu

GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to have GPUs with so many GiB free (None: it does not answer); return those that are opened, in order."""

    def pretend(free: list[int | None], said: str | None) -> list[int]:
        opened: list[int] = []

        def mem_get_info(index: int) -> tuple[int, int]:
            opened.append(index)
            found = free[index]
            if found is None:
                raise torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable")
            return found * GIB, 80 * GIB

        def run(command: Any, **options: Any) -> Any:
            assert command[0] == "nvidia-smi" and options["timeout"] > 0
            if said is None:
                raise FileNotFoundError(command[0])
            return SimpleNamespace(stdout=said)

        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"aa-{index}"))
        monkeypatch.setattr(subprocess, "run", run)
        return opened

    return pretend


def test_only_the_freest_is_opened(machine: Any) -> None:
    """nvidia-smi counts in another order than CUDA, and lists GPUs that this process does not see."""
    opened = machine([10, 70, 40], "GPU-bb-9, 90000\nGPU-aa-2, 40960\nGPU-aa-1, 71680\nGPU-aa-0, 10240\n")
    assert freest_gpu() == (1, 70, 80)
    assert opened == [1]


def test_of_equal_ones_the_first(machine: Any) -> None:
    opened = machine([70, 70], "GPU-aa-1, 70000\nGPU-aa-0, 70000\n")
    assert freest_gpu()[0] == 0 and opened == [0]


def test_one_that_is_taken_by_another_process(machine: Any) -> None:
    opened = machine([10, None, 40], "GPU-aa-0, 10240\nGPU-aa-1, 71680\nGPU-aa-2, 40960\n")
    assert freest_gpu() == (2, 40, 80)
    assert opened == [1, 2]
    machine([None, None], "GPU-aa-0, 10\nGPU-aa-1, 20\n")
    with pytest.raises(DeviceError, match="no GPU answers"):
        freest_gpu()


@pytest.mark.parametrize(
    "said", [None, "", "Failed to initialize NVML\n", "GPU-aa-0, 10240\nGPU-aa-1, [GPU is lost]\nGPU-aa-2, 40960\n"]
)
def test_without_an_answer_all_are_asked(machine: Any, said: str | None) -> None:
    opened = machine([10, 70, 40], said)
    assert freest_gpu() == (1, 70, 80)
    assert opened == [0, 1, 2]


def test_a_single_one_needs_no_question(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = machine([5], "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nvidia-smi was started"))
    assert freest_gpu() == (0, 5, 80)
    assert opened == [0]
