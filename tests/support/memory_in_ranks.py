"""What a process of its own does with memory that it frees: a module, so that such a process can import it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

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
