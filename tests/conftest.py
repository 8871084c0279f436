"""Fixtures shared by all tests: the shared folder, a dataset of a moment and what an undisturbed run on it gives.

PyTorch is imported where a fixture needs it: most folders of tests do without it, and start a few seconds sooner.
"""

from __future__ import annotations

import gc
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gc.disable()  # while test files import what they need: a fifth of the time of that is the collector's
os.environ.setdefault("MPLBACKEND", "Agg")
HAS_GPU = os.environ.get("CCREID_TEST_GPU") == "1"
if not HAS_GPU:  # the same tests on every machine; and a process that has used CUDA cannot be forked
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "PYTEST_XDIST_WORKER" in os.environ:  # beside another worker, more threads than one only wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.fsync = lambda descriptor: None  # no test pulls the plug, and each tiny run waits for the disk forty times

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


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the garbage collector pass over what importing has made, and let processes of tests begin with it.

    A bench collects before each measurement; a fork copies what the collector touches. CUDA survives no fork.
    """
    gc.freeze()
    gc.enable()
    tiny = sys.modules.get("tiny")
    beside_others = "PYTEST_XDIST_WORKER" in os.environ  # one thread, then
    if tiny and beside_others and sys.platform == "linux" and not tiny.torch.cuda.is_available():
        capture = session.config.pluginmanager.getplugin("capturemanager")
        capture.resume_global_capture()  # what the processes say belongs to their tests
        tiny.serve_early()
        capture.suspend_global_capture()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is to be asked for: ``CCREID_LONG=1 pytest -m long``, ``CCREID_TEST_GPU=1 pytest -m gpu``."""
    for item in items:
        if item.get_closest_marker("long") and os.environ.get("CCREID_LONG") != "1":
            item.add_marker(pytest.mark.skip(reason="takes minutes; CCREID_LONG=1 runs it"))
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; CCREID_TEST_GPU=1 lets it be used"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.make_dataset(tmp_path_factory.mktemp("tiny") / "market")


@pytest.fixture(scope="session")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome, with the loss of every step, of a run that nothing stopped."""
    import tiny
    import torch

    logs = tmp_path_factory.mktemp("undisturbed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tiny.watched() as watch:
        tiny.train(tiny_data, logs)
    torch.set_num_threads(threads)
    return {**tiny.outcome(logs), "losses": watch.losses}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the same order as in a process that was told to use one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def market_mini(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Settings of a short run on a part of Market-1501, and the logs folder of such a run that nothing stopped."""
    import tiny

    archive = shared / "data" / "market-mini.zip"
    if not archive.is_file():
        pytest.skip("the archive of market-mini is not in the shared folder")
    folder = tmp_path_factory.mktemp("mini")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder / "data")
    root = next(path.parent for path in sorted((folder / "data").rglob("bounding_box_train")))
    settings = {
        **tiny.flags(root, folder / "logs"),
        "data_dir": folder / "cache",
        "arch": "mobilenet_v2",
        "weights": str(shared / "weights" / "mobilenet_v2_imagenet.pth"),
        "height": 64,
        "width": 32,
        "batch_size": 64,
        "num_instances": 8,
        "samples_per_bn": 16,
        "k1": 30,
        "k2": 6,
        "iters": 20,
        "save_every": 5,
        "keep": 20,
        "eval_step": 2,
        "workers": 2,
        "lr": 3.5e-4,
    }
    process = tiny.start(folder / "logs", ["train", *tiny.options(settings), "--deterministic"])
    code, said = process.finish(seconds=1200)
    assert code == 0, said
    return settings, folder / "logs"
