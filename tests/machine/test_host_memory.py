from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest
import tiny
import torch

from ccreid_cli.machine.host_memory import keep_freed_memory


def held_megabytes(environment: dict[str, str]) -> tuple[bool, int]:
    """Return whether the allocator agreed, and how much of 64 freed megabytes the process still holds."""
    os.environ.update(environment)
    agreed, before = keep_freed_memory(), resident_bytes()
    tensor = torch.ones(64 << 20, dtype=torch.uint8)
    del tensor
    return agreed, (resident_bytes() - before) >> 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_freed_memory_is_kept_unless_the_environment_decides(tmp_path: Path) -> None:
    [(agreed, held)] = tiny.call_in_ranks(held_megabytes, 1, tmp_path, {})
    if not agreed:
        pytest.skip("this C library is not glibc")
    assert held > 50
    [(agreed, held)] = tiny.call_in_ranks(held_megabytes, 1, tmp_path, {"MALLOC_ARENA_MAX": "2"})
    assert not agreed and held < 20
