"""One run on disk: settings, environment, metrics, log, checkpoints and a lock."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ccreid_cli.core.checking import validate
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import atomic_write_text
from ccreid_cli.core.locks import FileLock
from ccreid_cli.core.recipes import parse_recipe
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.core.version import __version__
from ccreid_cli.core.words import printable
from ccreid_cli.engine.checkpoint import CheckpointStore

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "faiss-gpu", "faiss-cpu", "pillow")


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: The folder.
        named: The checkpoint in it that the user named instead of the run, if any.
    """

    path: Path
    named: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per epoch."""
        return self.path / "metrics.jsonl"

    def store(self, keep: int = 2) -> CheckpointStore:
        """Return the run's checkpoints."""
        return CheckpointStore(self.checkpoints, keep)

    def lock(self) -> FileLock:
        """Return the lock that one process at a time holds while it trains."""
        return FileLock(self.path / ".lock", what=f"run {self.path}")

    def create(self, config: TrainConfig, environment: Mapping[str, Any]) -> None:
        """Make the folder and write what is known before the first epoch.

        Raises:
            UsageError: There is a run already.
            DataError: The folder cannot be written.
        """
        if self.path.exists() and not self._is_unused():
            raise UsageError(
                f"{self.path} already holds a run or other files; nothing is overwritten.",
                f"Go on with the run: `ccreid resume {shlex.quote(str(self.path))}`; or choose another --name.",
            )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"could not make {self.path}: {error.strerror}.", "Choose another --logs-dir.") from error
        self.write_environment(environment)
        self.write_config(config)  # last: it makes the folder a run

    def _is_unused(self) -> bool:
        """Whether there is nothing, or only what a process leaves that is killed before it has made the run."""
        ours = {".lock", ".lock.owner", ".lock.soft", "environment.json", "checkpoints"}
        foreign = [entry.name for entry in self.path.iterdir() if entry.name not in ours and entry.suffix != ".tmp"]
        return not foreign and not any(self.checkpoints.glob("*"))

    def write_config(self, config: TrainConfig) -> None:
        """Write the resolved settings as a recipe."""
        atomic_write_text(self.path / "recipe.toml", config.to_toml())

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write versions, device and dataset fingerprint."""
        atomic_write_text(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def read_config(self) -> TrainConfig:
        """Read the settings back.

        Raises:
            DataError: The folder is no run.
        """
        file = self.path / "recipe.toml"
        if not file.is_file():
            raise DataError(f"{self.path} is not the folder of a run (no recipe.toml).", "See `ccreid runs list`.")
        recipe = parse_recipe(str(file), file.read_text(encoding="utf-8"))
        return validate(recipe.values, str(file))

    def read_environment(self) -> dict[str, Any]:
        """Read the environment record; empty when it is missing or damaged."""
        return _read_json(self.path / "environment.json")

    def read_result(self) -> dict[str, Any]:
        """Read the final result; empty while the run is not finished."""
        return _read_json(self.path / "result.json")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the final evaluation(s)."""
        atomic_write_text(self.path / "result.json", json.dumps(result, indent=2) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of every epoch; damaged lines are left out."""
        if not self.metrics_file.is_file():
            return []
        lines = []
        for text in self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict):
                lines.append(line)
        return lines

    def clean(self) -> None:
        """Remove temporary files that a killed process left; only for who holds the lock."""
        for folder in (self.path, self.checkpoints):
            for path in folder.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    path.unlink()

    def remove_result(self) -> None:
        """Forget the final result of a run that goes on.

        Raises:
            DataError: The folder cannot be written.
        """
        try:
            (self.path / "result.json").unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f"could not change {self.path}: {error.strerror}.", "The folder must be writable."
            ) from error

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replace the metrics, as JSON lines and as CSV.

        Raises:
            DataError: The disk is full or the folder not writable.
        """
        atomic_write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))
        atomic_write_text(self.path / "metrics.csv", _as_csv(lines))

    def log(self, text: str) -> None:
        """Add a line with the time to the readable log. A full disk loses the line, not the run."""
        try:
            with (self.path / "log.txt").open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {printable(text)}\n")
        except OSError:
            return


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def flatten(line: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nested dictionaries into dotted names: {"seconds": {"train": 1}} -> {"seconds.train": 1}."""
    flat: dict[str, Any] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": item for inner, item in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def _as_csv(lines: list[dict[str, Any]]) -> str:
    rows = [flatten(line) for line in lines]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def default_name(config: TrainConfig) -> str:
    """Return a free name for a run: dataset, architecture and the time, to the second; numbered if that is taken."""
    dataset = Path(config.dataset).name.replace(".", "-") or "run"
    name = f"{dataset}-{config.arch}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(free for free in names if not (config.logs_dir / free).exists())


def find_run(name: str, logs_dir: Path) -> RunFolder:
    """Find a run by its folder, by a checkpoint in it, or by its name under `logs_dir`.

    Naming a checkpoint other than ``last.pt`` means going on from that one.

    Raises:
        DataError: There is no such run.
    """
    for place in (Path(name), logs_dir / name):
        if place.is_file() and (place.parent.parent / "recipe.toml").is_file():
            return RunFolder(place.parent.parent, named=None if place.name == "last.pt" else place)
        if (place / "recipe.toml").is_file():
            return RunFolder(place)
    if Path(name).is_dir():
        raise DataError(f"{name} is not the folder of a run (no recipe.toml).", "See `ccreid runs list`.")
    if Path(name).is_file():
        raise DataError(
            f"{name} is a file outside of any run.",
            "To start a new run from its weights use `ccreid train --init-from`.",
        )
    guess = did_you_mean(name, [run.path.name for run in list_runs(logs_dir)])
    end = f"; {guess}" if guess else "."
    file = f"no file {name} and " if name.endswith((".pt", ".pth", ".pth.tar", ".safetensors")) else ""
    raise DataError(f'there is {file}no run "{name}" in {logs_dir}{end}', "See `ccreid runs list`.")


def list_runs(logs_dir: Path) -> list[RunFolder]:
    """Return the runs under `logs_dir`, oldest first."""
    if not logs_dir.is_dir():
        return []
    runs = [path.parent for path in logs_dir.glob("*/recipe.toml")]
    return [RunFolder(path) for path in sorted(runs, key=lambda path: (path / "recipe.toml").stat().st_mtime)]


def describe_environment() -> dict[str, Any]:
    """Return versions, machine, command and the git commit of the current folder, for the run's record."""
    return {
        "ccreid": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": _git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
