"""Where the settings of a run come from, and the registries that some of them name a row of. Imports no torch.

Precedence, weakest first: defaults < recipe < what a component asked for by flag brings along < environment
(``CCREID_DATA_DIR``, ``CCREID_LOGS_DIR``) < flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ccreid_cli.core.components import Component, find_row, require
from ccreid_cli.core.config import TrainConfig, settings, validate
from ccreid_cli.core.errors import UsageError
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.method.registry import METHODS
from ccreid_cli.models.registry import BACKBONES, POOLINGS
from ccreid_cli.pseudo_labels.registry import CLUSTERERS

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
        recipe: The recipe they started from, if any.
    """

    config: TrainConfig
    sources: dict[str, str]
    recipe: Recipe | None


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
        UsageError: No dataset is named; or as `load_recipe`, `validate` and `check_names`.
    """
    from ccreid_cli.core.recipes import load_recipe, recipe_names

    dataset = flags.get("dataset")
    if recipe_name is None and dataset is None:
        raise UsageError("no dataset is named.", "Try `ccreid train -d toy`, or `ccreid data list` for the others.")
    if recipe_name is None and dataset in recipe_names():
        recipe_name = dataset
    recipe = load_recipe(recipe_name) if recipe_name else None
    values: dict[str, Any] = {}
    sources = dict.fromkeys(settings(), "default")

    def put(new: Mapping[str, Any], source: str) -> None:
        values.update(new)
        sources.update(dict.fromkeys(new, source))

    if recipe:
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
    return ResolvedConfig(config, sources, recipe)


def brought_along(name: str, value: str) -> Mapping[str, Any]:
    """Return the settings that a component brings along: those of the row `value` in the registry of setting `name`."""
    row = REGISTRIES[name].get(value)
    return row.defaults if isinstance(row, Component) else {}


def check_names(config: TrainConfig) -> None:
    """Check that what the settings name exists. A dataset may be a path and is looked for when it is read.

    Raises:
        UsageError: There is no such row.
    """
    for name, registry in REGISTRIES.items():
        setting = settings()[name].setting
        if not setting.besides:
            find_row(registry, str(setting.names), getattr(config, name))


def check_packages(config: TrainConfig) -> None:
    """Check that the optional packages of what the settings name are installed.

    Raises:
        UsageError: One is not.
    """
    for name, registry in REGISTRIES.items():
        row = registry.get(getattr(config, name))
        if isinstance(row, Component) and row.needs:
            require(*row.needs)
