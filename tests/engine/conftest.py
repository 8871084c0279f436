"""A dataset of a moment and what an undisturbed run on it gives."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from ccreid_cli.models.backbones import BACKBONES

# Importing `tiny` registers its network, for the processes that tests start. Here it is there while a test of this
# folder runs only: other tests hold lists of the backbones against each other.
TINY = BACKBONES.pop("tiny")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    BACKBONES["tiny"] = TINY


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    BACKBONES.pop("tiny", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the long tests out unless they are asked for: ``CCREID_SLOW=1 pytest tests/engine -m slow``."""
    if os.environ.get("CCREID_SLOW") == "1":
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="long; CCREID_SLOW=1 runs it"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_dataset(tmp_path_factory.mktemp("tiny") / "market")


@pytest.fixture(scope="session")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome, with the loss of every step, of a run that nothing stopped."""
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def market_mini(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Settings of a short run on a part of Market-1501, and the logs folder of such a run that nothing stopped."""
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
