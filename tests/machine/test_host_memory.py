from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
from memory_in_ranks import held_megabytes


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_freed_memory_is_kept_unless_the_environment_decides(tmp_path: Path) -> None:
    [(agreed, held)] = tiny.call_in_ranks(held_megabytes, 1, tmp_path, {})
    if not agreed:
        pytest.skip("this C library is not glibc")
    assert held > 50
    [(agreed, held)] = tiny.call_in_ranks(held_megabytes, 1, tmp_path, {"MALLOC_ARENA_MAX": "2"})
    assert not agreed and held < 20
