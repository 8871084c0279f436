"""The command line in this process, and one small trained run that the tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from typer.main import get_command

from ccreid_cli.cli import output
from ccreid_cli.cli.app import build_app, main


@dataclass
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


ROOT_COMMAND = get_command(build_app())
COMMANDS = dict(_commands(ROOT_COMMAND, "ccreid"))
"""Every command that does something, by the words that call it."""


def call(arguments: tuple[object, ...]) -> int:
    """Run the command line in this process and return its exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv, sys.argv = sys.argv, ["ccreid", *(str(argument) for argument in arguments)]
    output.talk.cache_clear()
    output._results.cache_clear()
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call the command line: `cli("train", "-d", "toy")` gives exit code, stdout and stderr."""
    for name in ("FORCE_COLOR", "COLUMNS", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = call(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def draw_dataset(root: Path) -> Path:
    """Draw a Market-1501-style dataset of a few plain images whose identities a random network can tell apart."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (12, 2, 3))
    for split, persons, cameras in (
        ("bounding_box_train", range(1, 9), (1, 2, 1, 2)),
        ("query", range(9, 12), (1,)),
        ("bounding_box_test", range(9, 12), (2, 3)),
    ):
        (root / split).mkdir(parents=True)
        for person in persons:
            for number, camera in enumerate(cameras):
                pixels = np.repeat(colours[person], 16, axis=0)[:, None, :] + rng.integers(-4, 5, (32, 16, 3))
                name = f"{person:04}_c{camera}s1_{number:06}_00.jpg"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name, quality=95)
    return root


@dataclass(frozen=True)
class Trained:
    data_dir: Path
    dataset: Path
    logs_dir: Path
    name: str = "small run"


SMALL = ("-a", tiny.NAME, "--weights", "none", "--height", 32, "--width", 16, "-b", 8, "--num-instances", 2)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """A finished run of one epoch and two steps."""
    folder = tmp_path_factory.mktemp("trained")
    run = Trained(folder / "data", draw_dataset(folder / "dataset"), folder / "logs")
    places = ("--data-dir", run.data_dir, "--logs-dir", run.logs_dir)
    limits = ("--epochs", 1, "--iters", 2, "--k1", 4, "--k2", 2, "--min-samples", 2, "--workers", 0)
    settings = ("--device", "cpu", "--precision", "fp32", "--progress", "none", "--json", "--name", run.name)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 -- a stream for stdout, not a path
        stdout, sys.stdout = sys.stdout, nowhere
        try:
            code = call(("train", "-d", run.dataset, *SMALL, *places, *limits, *settings))
        finally:
            sys.stdout = stdout
    assert code == 0
    yield run
