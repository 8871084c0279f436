"""Whether the C library's allocator keeps freed memory for the next step or returns it to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the allocator keep the memory of freed tensors instead of returning it to the system.

    A step on the CPU allocates and frees the same hundreds of megabytes each time. If returned, every page is fetched
    and zeroed again: a sixth of a ResNet-50 step, a third of a MobileNetV2 step on 128×64 images. Fragments pile up
    slowly: call `return_freed_memory` now and then. Nothing is changed where the environment sets up the allocator
    (``MALLOC_...``), or where it is not glibc's.

    Returns:
        Whether the allocator accepted it.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = _allocator("mallopt")
    if mallopt is None:
        return False
    # No separate mapping for large requests, and never shrink the heap.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def return_freed_memory() -> bool:
    """Return freed memory to the system, so that fragments do not pile up.

    Returns:
        Whether any was returned; only glibc's allocator can.
    """
    trim = _allocator("malloc_trim")
    return trim is not None and bool(trim(ctypes.c_size_t(0)))


def _allocator(name: str) -> Callable[..., int] | None:
    """Return a function of glibc's allocator, where that is the allocator."""
    if sys.platform != "linux":
        return None
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return function
