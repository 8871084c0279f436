"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

SHARED = Path(os.environ.get("CCREID_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden numbers, real data and weights beside the checkout; the test is skipped where they are absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("the shared folder (golden numbers, data, weights) is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own shell leaks into a test."""
    for name in [name for name in os.environ if name.startswith("CCREID_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def no_room() -> Iterator[None]:
    """No file can grow beyond 64 kB, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
