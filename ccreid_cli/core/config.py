"""One training run's settings: names, limits, and where each value came from.

Precedence, weakest first: defaults < recipe < environment (``CCREID_DATA_DIR``, ``CCREID_LOGS_DIR``) < flags.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.suggest import did_you_mean

ENVIRONMENT = {"CCREID_DATA_DIR": "data_dir", "CCREID_LOGS_DIR": "logs_dir"}

CLUSTER_DEFAULTS: dict[str, dict[str, Any]] = {
    "dbscan": {"eps": 0.6, "k1": 30, "k2": 6},
    "infomap": {"eps": 0.5, "k1": 15, "k2": 4},
}
"""Each clusterer's own settings (November 2021 version), used when a flag asks for another one than the recipe."""


class TrainConfig(BaseModel):
    """Every setting of a training run. Unknown names are errors; values are checked on entry."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False, allow_inf_nan=False)

    # data
    dataset: str = Field("market1501", min_length=1)
    data_dir: Path = Path("data")
    height: int = Field(256, ge=16, le=4096)
    width: int = Field(128, ge=16, le=4096)
    workers: int = Field(4, ge=0, le=256)
    shard_images: bool | None = None
    """Whether each process holds only its share of the decoded images; None: where several machines train."""
    # batches
    batch_size: int = Field(256, ge=2)
    num_instances: int = Field(16, ge=1)
    use_cameras: bool = True
    # pseudo-labels
    cluster: Literal["dbscan", "infomap"] = "dbscan"
    eps: float = Field(0.6, gt=0, le=2)
    k1: int = Field(30, ge=1)
    k2: int = Field(6, ge=1)
    min_samples: int = Field(4, ge=1)
    # model
    arch: str = "resnet50"
    weights: str = "imagenet"
    pooling_type: Literal["gem", "avg", "max"] = "gem"
    features: int = Field(0, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    samples_per_bn: int = Field(64, ge=2)
    # memory
    momentum: float = Field(0.1, ge=0, le=1)
    temp: float = Field(0.05, gt=0)
    use_hard: bool = False
    # optimiser
    lr: float = Field(3.5e-4, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    epochs: int = Field(50, ge=1)
    iters: int = Field(200, ge=1)
    step_size: int = Field(20, ge=1)
    # run
    logs_dir: Path = Path("logs")
    name: str | None = None
    seed: int = Field(1, ge=0, lt=2**31)
    eval_step: int = Field(10, ge=1)
    print_freq: int = Field(10, ge=1)
    save_every: int = Field(0, ge=0)
    keep: int = Field(2, ge=1)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: bool = False
    tensorboard: bool = False
    wandb: bool = False

    def to_toml(self) -> str:
        """Return the settings as a recipe file that gives the same run."""
        values = self.model_dump(mode="json", exclude_none=True)
        # TOML reads JSON's strings, but neither its surrogate pairs nor a bare DEL.
        lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
        return "[train]\n" + "".join(lines).replace("\x7f", "\\u007f")


MAY_CHANGE_ON_RESUME = frozenset(
    {"epochs", "workers", "device", "eval_step", "print_freq", "save_every", "keep", "data_dir", "logs_dir"}
    | {"shard_images", "tensorboard", "wandb"}
)
"""Settings that do not alter what is computed. Every other one is fixed by the checkpoint."""


class RecipeAbout(BaseModel):
    """Where a recipe comes from and what was published for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    source: str = ""
    published: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Per architecture: mAP and rank-1, in percent."""


@dataclass(frozen=True)
class Recipe:
    """A named set of training settings."""

    name: str
    about: RecipeAbout
    values: dict[str, Any]


@dataclass(frozen=True)
class ResolvedConfig:
    """Settings with the source of each value.

    Attributes:
        config: The settings.
        sources: Setting name -> "default", "recipe NAME", "environment VARIABLE" or "flag".
        recipe: The recipe they started from, if any.
    """

    config: TrainConfig
    sources: dict[str, str]
    recipe: Recipe | None


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    folder = resources.files("ccreid_cli") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """Read a shipped recipe by name, or a recipe file by path.

    Raises:
        UsageError: No such recipe; the file is not TOML; a key or value is wrong.
    """
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"recipe file {path} does not exist.", "`ccreid recipes` lists the shipped ones.")
        text = path.read_text(encoding="utf-8", errors="replace")
    elif name in recipe_names():
        text = (resources.files("ccreid_cli") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        guess = did_you_mean(name, recipe_names())
        raise UsageError(f'there is no recipe "{name}"; {guess or "the shipped ones are:"}', ", ".join(recipe_names()))
    return parse_recipe(name, text)


def parse_recipe(name: str, text: str) -> Recipe:
    """Read a recipe from its TOML text: a table ``[train]`` and, optionally, ``[about]``.

    Raises:
        UsageError: The text is not TOML; a table, key or value is wrong.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {name} is not valid TOML: {error}.") from error
    unknown = [table for table in tables if table not in {"about", "train"}]
    if unknown:
        raise UsageError(
            f"recipe {name}: unexpected top-level key {unknown[0]!r}.", "Settings belong under a [train] table."
        )
    values = tables.get("train", {})
    validate(values, f"recipe {name}")
    try:
        about = RecipeAbout(**tables.get("about", {"title": name}))
    except ValidationError as error:
        raise UsageError(f"recipe {name}, [about]: {_first_problem(error)}") from error
    return Recipe(name, about, values)


def validate(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Check settings and return them completed by the defaults.

    Args:
        values: Setting name -> value.
        where: What to call the source of the values in an error.

    Raises:
        UsageError: An unknown name or a value out of range, in plain words.
    """
    for key in values:
        if key not in TrainConfig.model_fields:
            guess = did_you_mean(key, TrainConfig.model_fields)
            raise UsageError(f'{where}: unknown setting "{key}"; {guess or "see `ccreid train --help`."}')
    try:
        config = TrainConfig(**values)
    except ValidationError as error:
        raise UsageError(f"{where}: {_first_problem(error)}") from error
    _check_together(config, where)
    return config


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    text = problem["msg"].replace("Input should be", "it should be")
    return f"{name} = {problem['input']!r}: {text}."


def _check_together(config: TrainConfig, where: str) -> None:
    if config.num_instances > config.batch_size:
        raise UsageError(
            f"{where}: --num-instances {config.num_instances} is more than the batch size {config.batch_size}.",
            "A batch holds batch-size / num-instances clusters; make it at least one, better four.",
        )


def resolve_config(
    flags: Mapping[str, Any], environment: Mapping[str, str], recipe_name: str | None = None
) -> ResolvedConfig:
    """Put defaults, recipe, environment and flags together, in this order.

    Without `recipe_name` the recipe named like the dataset is used, if there is one.

    Args:
        flags: What the command line sets: setting name -> value.
        environment: Usually ``os.environ``.
        recipe_name: A shipped recipe's name or a file, or None.

    Raises:
        UsageError: As `load_recipe` and `validate`; or no dataset is named.
    """
    dataset = flags.get("dataset")
    if recipe_name is None and dataset is None:
        raise UsageError("no dataset is named.", "Try `ccreid train -d toy`, or `ccreid data list` for the others.")
    if recipe_name is None and dataset in recipe_names():
        recipe_name = dataset
    recipe = load_recipe(recipe_name) if recipe_name else None
    values: dict[str, Any] = {}
    sources = dict.fromkeys(TrainConfig.model_fields, "default")

    def put(new: Mapping[str, Any], source: str) -> None:
        values.update(new)
        sources.update(dict.fromkeys(new, source))

    if recipe:
        put(recipe.values, f"recipe {recipe.name}")
    cluster = flags.get("cluster")
    if cluster in CLUSTER_DEFAULTS and cluster != values.get("cluster", "dbscan"):
        put(CLUSTER_DEFAULTS[cluster], f"default of {cluster}")
    for variable, key in ENVIRONMENT.items():
        if environment.get(variable):
            put({key: environment[variable]}, f"environment {variable}")
    put(flags, "flag")
    return ResolvedConfig(validate(values, "settings"), sources, recipe)
