"""Where the settings of a run come from, and the registries that some of them name a row of. Imports no torch.

Precedence, weakest first: defaults < recipes, in their order < what a component asked for by flag brings along <
environment (``CCREID_DATA_DIR``, ``CCREID_LOGS_DIR``) < flags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccreid_cli.core.checking import validate
from ccreid_cli.core.components import Component, find_row, look_up, require
from ccreid_cli.core.config import LABELS, TrainConfig, may_change_on_resume, settings
from ccreid_cli.core.errors import UsageError
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.method.registry import METHODS
from ccreid_cli.models.registry import BACKBONES, POOLINGS
from ccreid_cli.pseudo_labels.registry import CLUSTERERS, check_eps

if TYPE_CHECKING:
    from ccreid_cli.core.recipes import Recipe

REGISTRIES: dict[str, Mapping[str, Any]] = {
    "dataset": CATALOG,
    "cluster": CLUSTERERS,
    "arch": BACKBONES,
    "pooling_type": POOLINGS,
    "method": METHODS,
}
"""The settings whose value is a name of a registry's row."""


@dataclass(frozen=True)
class ResolvedConfig:
    """Settings with the source of each value.

    Attributes:
        config: The settings.
        sources: Setting name -> "default", "recipe NAME", "default of ROW", "environment VARIABLE" or "flag".
        recipe: The recipe they started from, if any; several laid over one another are one here.
    """

    config: TrainConfig
    sources: dict[str, str]
    recipe: Recipe | None


def resolve_config(
    flags: Mapping[str, Any], environment: Mapping[str, str], recipes: Sequence[str] = ()
) -> ResolvedConfig:
    """Put defaults, recipes, environment and flags together, in this order.

    Where no recipe is for a dataset, the one named like the dataset goes under the others, if there is one.

    Args:
        flags: What the command line sets: setting name -> value.
        environment: Usually ``os.environ``.
        recipes: Shipped recipes' names or files, each laid over the one before.

    Raises:
        UsageError: No dataset is named; --recall is given for exact neighbours; or as `recipe_layers`, `validate` and
            `check_names`.
    """
    from ccreid_cli.core.recipes import combined, recipe_layers

    layers = recipe_layers(recipes, flags.get("dataset"))
    if "dataset" not in flags and all(recipe.is_layer for recipe in layers):
        raise UsageError("no dataset is named.", "Try `ccreid train -d toy`, or `ccreid data list` for the others.")
    values: dict[str, Any] = {}
    sources = dict.fromkeys(settings(), "default")

    def put(new: Mapping[str, Any], source: str) -> None:
        values.update(new)
        sources.update(dict.fromkeys(new, source))

    for recipe in layers:
        put(recipe.values, f"recipe {recipe.name}")
    for name in REGISTRIES:
        if name in flags and flags[name] != values.get(name, settings()[name].default):
            put(brought_along(name, flags[name]), f"default of {flags[name]}")
    for name, field in settings().items():
        variable = field.setting.environment
        if variable and environment.get(variable):
            put({name: environment[variable]}, f"environment {variable}")
    put(flags, "flag")
    config = validate(values, "settings")
    check_names(config)
    _check_recall(config, flags)
    return ResolvedConfig(config, sources, combined(layers))


def label_settings(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> TrainConfig:
    """Return settings for pseudo-labels outside a training: those given, else those of a run, else the defaults.

    Args:
        recorded: The settings of a run, or none.
        given: What the command line sets.

    Raises:
        UsageError: A value is not known or out of range, or --recall is given for exact neighbours.
    """
    names = [name for name, field in settings().items() if field.setting.panel == LABELS]
    own = {name: recorded[name] for name in names if name in recorded}
    clusterer = given.get("cluster", own.get("cluster"))
    along = brought_along("cluster", clusterer) if clusterer != own.get("cluster") else {}
    config = validate({**own, **along, **given}, "settings")
    check_names(config)
    _check_recall(config, given)
    return config


def _check_recall(config: TrainConfig, flags: Mapping[str, Any]) -> None:
    if "recall" in flags and config.neighbors == "exact":
        raise UsageError(
            "--recall says how many of the true neighbours are to be found; exact neighbours are all of them.",
            "Add --neighbors approximate, or leave --recall out.",
        )


def brought_along(name: str, value: str) -> Mapping[str, Any]:
    """Return the settings that a component brings along: those of the row `value` in the registry of setting `name`."""
    row = look_up(REGISTRIES[name], value)
    return row.defaults if isinstance(row, Component) else {}


def check_names(config: TrainConfig) -> None:
    """Check that what the settings name exists. A dataset may be a path and is looked for when it is read.

    Raises:
        UsageError: There is no such row, or the clusterer cannot choose eps.
    """
    for name, registry in REGISTRIES.items():
        setting = settings()[name].setting
        if not setting.besides:
            find_row(registry, str(setting.names), getattr(config, name))
    check_eps(config.cluster, config.eps)


def check_packages(config: TrainConfig) -> None:
    """Check that the optional packages of what the settings name are installed.

    Raises:
        UsageError: One is not.
    """
    for name, registry in REGISTRIES.items():
        row = look_up(registry, getattr(config, name))
        if isinstance(row, Component) and row.needs:
            require(*row.needs)


def check_places(config: TrainConfig) -> None:
    """Check that the run's name can be a folder's, and that a recipe, which is text, can hold all paths.

    Raises:
        UsageError: One of them is not so.
    """
    if config.name is not None and (config.name in {"", ".", ".."} or any(part in config.name for part in "/\\\0")):
        raise UsageError(f'--name "{config.name}" is no name of a folder.', "Use --logs-dir for where it lies.")
    for name in ("dataset", "data_dir", "logs_dir", "weights"):
        value = str(getattr(config, name))
        if not value.isascii() and value != value.encode("utf-8", "replace").decode():
            raise UsageError(
                f"{settings()[name].option} {value} holds bytes that are not Unicode (UTF-8); no recipe can name it.",
                "Rename it, or give a link of another name that leads there.",
            )


def merge_for_resume(stored: TrainConfig, flags: Mapping[str, Any]) -> TrainConfig:
    """Return the run's settings with what may change taken from `flags`.

    Raises:
        UsageError: A flag differs from the run's own setting and would alter what is computed.
    """
    wanted = validate({**asdict(stored), **flags}, "settings")
    for name in flags:
        old, new = getattr(stored, name), getattr(wanted, name)
        if old != new and name not in may_change_on_resume():
            raise UsageError(
                f"{settings()[name].option} cannot change when a run is resumed: it was {old}, now {new}.",
                f"Start a new run for that. May change: {', '.join(sorted(may_change_on_resume()))}.",
            )
    return wanted


def with_absolute_places(config: TrainConfig) -> TrainConfig:
    """Make paths absolute, so that the run can be resumed from anywhere."""
    update: dict[str, Any] = {"data_dir": config.data_dir.absolute(), "logs_dir": config.logs_dir.absolute()}
    for name in ("dataset", "weights"):
        value = getattr(config, name)
        if ("/" in value or "." in value) and Path(value).exists():
            update[name] = str(Path(value).absolute())
    return replace(config, **update)
