from __future__ import annotations

import os
import subprocess
import sys

import pytest

HELD = """
import gc, torch
from ccreid_cli.machine.host_memory import keep_freed_memory
from ccreid_cli.bench.measure import _status
print(int(keep_freed_memory()))
before = _status("VmRSS")
tensor = torch.ones(64 << 20, dtype=torch.uint8)
del tensor
print((_status("VmRSS") - before) >> 20)
"""


def held_megabytes(environment: dict[str, str]) -> tuple[bool, int]:
    """Return whether the allocator agreed, and how much of 64 freed megabytes the process still holds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = subprocess.run([sys.executable, "-c", HELD], env={**kept, **environment}, capture_output=True, check=True)
    agreed, held = found.stdout.split()
    return bool(int(agreed)), int(held)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_freed_memory_is_kept_unless_the_environment_decides() -> None:
    agreed, held = held_megabytes({})
    if not agreed:
        pytest.skip("this C library is not glibc")
    assert held > 50
    agreed, held = held_megabytes({"MALLOC_ARENA_MAX": "2"})
    assert not agreed and held < 20
