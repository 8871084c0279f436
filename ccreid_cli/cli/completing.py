"""What the shell offers for option values. Nothing here imports torch, numpy or pydantic: it must answer at once.

The names that live in the registries are repeated here for that reason; a test holds the two together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import typer

DATASETS = (
    "toy",
    "market1501",
    "dukemtmcreid",
    "msmt17",
    "personx",
    "veri",
    "cuhk03-np",
    "occluded-duke",
    "vehicleid",
    "veri-wild",
)
ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet_ibn50a",
    "resnet_ibn101a",
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
)
CLUSTERERS = ("dbscan", "infomap")
POOLINGS = ("gem", "avg", "max")
STARTING_WEIGHTS = ("imagenet", "none")
CHECKPOINTS = ("last", "best")
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")
PRECISIONS = ("auto", "fp32", "bf16")
PROGRESS_STYLES = ("auto", "rich", "plain", "json", "none")
WEIGHT_FORMS = ("official", "safetensors", "torchvision")
BENCH_STAGES = ("store", "extract", "labels", "step", "eval")
SHELLS = ("bash", "zsh", "fish", "powershell")

RECIPES = Path(__file__).parents[1] / "recipes"


def _starting(choices: Iterable[str], incomplete: str) -> list[str]:
    return [choice for choice in choices if choice.startswith(incomplete)]


def _paths(incomplete: str) -> list[str]:
    """Return files and folders that `incomplete` may go on to, folders with a slash."""
    head, slash, tail = incomplete.rpartition("/")
    try:
        entries = sorted(Path(head + slash or ".").iterdir())
    except OSError:
        return []
    names = [entry.name + ("/" if entry.is_dir() else "") for entry in entries]
    return [head + slash + name for name in names if name.startswith(tail) and (tail or not name.startswith("."))]


def _names_and_paths(names: Iterable[str], incomplete: str) -> list[str]:
    """Return names, and paths too once something is typed or when there is no name to offer."""
    found = _starting(names, incomplete)
    return found if found and not incomplete else [*found, *_paths(incomplete)]


def datasets(incomplete: str) -> list[str]:
    """Offer dataset names, then paths."""
    return _names_and_paths(DATASETS, incomplete)


def dataset_names(incomplete: str) -> list[str]:
    """Offer dataset names."""
    return _starting([*DATASETS, "all"], incomplete)


def recipes(incomplete: str) -> list[str]:
    """Offer the shipped recipes, then paths."""
    return _names_and_paths(sorted(path.stem for path in RECIPES.glob("*.toml")), incomplete)


def architectures(incomplete: str) -> list[str]:
    """Offer backbones."""
    return _starting(ARCHITECTURES, incomplete)


def architectures_or_all(incomplete: str) -> list[str]:
    """Offer backbones, and all of them at once."""
    return _starting([*ARCHITECTURES, "all"], incomplete)


def clusterers(incomplete: str) -> list[str]:
    """Offer clusterers."""
    return _starting(CLUSTERERS, incomplete)


def poolings(incomplete: str) -> list[str]:
    """Offer poolings."""
    return _starting(POOLINGS, incomplete)


def starting_weights(incomplete: str) -> list[str]:
    """Offer what a network can start from, then files."""
    return _names_and_paths(STARTING_WEIGHTS, incomplete)


def checkpoints(incomplete: str) -> list[str]:
    """Offer which checkpoint of a run."""
    return _starting(CHECKPOINTS, incomplete)


def weight_forms(incomplete: str) -> list[str]:
    """Offer the forms a checkpoint can be converted to."""
    return _starting(WEIGHT_FORMS, incomplete)


def devices(incomplete: str) -> list[str]:
    """Offer devices."""
    return _starting(DEVICES, incomplete)


def precisions(incomplete: str) -> list[str]:
    """Offer number formats."""
    return _starting(PRECISIONS, incomplete)


def progress_styles(incomplete: str) -> list[str]:
    """Offer progress styles."""
    return _starting(PROGRESS_STYLES, incomplete)


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the runs of ``--logs-dir`` by name, then paths."""
    logs = Path(context.params.get("logs_dir") or os.environ.get("CCREID_LOGS_DIR") or "logs")
    return _names_and_paths(sorted(path.parent.name for path in logs.glob("*/recipe.toml")), incomplete)


def shells(incomplete: str) -> list[str]:
    """Offer shells."""
    return _starting(SHELLS, incomplete)


def bench_stages(incomplete: str) -> list[str]:
    """Offer the stages that can be measured."""
    return _starting([*BENCH_STAGES, "all"], incomplete)
