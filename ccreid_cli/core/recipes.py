"""Recipes: named sets of training settings, one TOML file each. To add one, put a file into ``ccreid_cli/recipes``.

A recipe that names a dataset stands by itself; one that names none is laid over another (`recipe_layers`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ccreid_cli.core.checking import check_fields, validate
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.suggest import did_you_mean

FOLDER = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class RecipeAbout:
    """Where a recipe comes from and what was published for it.

    Attributes:
        title: What it is, in a few words.
        source: Where its settings were published.
        published: Per architecture: mAP and rank-1, in percent.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    title: str
    source: str = ""
    published: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A named set of training settings."""

    name: str
    about: RecipeAbout
    values: dict[str, Any]

    @property
    def is_layer(self) -> bool:
        """Whether it names no dataset, and so fits over the recipe of any."""
        return "dataset" not in self.values


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


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
        text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
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
    about = check_fields(RecipeAbout, tables.get("about", {"title": name}), f"recipe {name}, [about]")
    return Recipe(name, about, values)


def recipe_layers(names: Sequence[str], dataset: str | None) -> list[Recipe]:
    """Load recipes, the first under the others; where all are layers, the dataset's own recipe goes under them.

    Args:
        names: Names or files, as for `load_recipe`.
        dataset: The dataset that was asked for, if any.

    Raises:
        UsageError: As `load_recipe`; or two of them name a dataset.
    """
    layers = [load_recipe(name) for name in names]
    whole = [recipe for recipe in layers if not recipe.is_layer]
    if len(whole) > 1:
        raise UsageError(
            f"the recipes {whole[0].name} and {whole[1].name} are each for a dataset; only one can be used.",
            "Add recipes that name no dataset, such as camera.",
        )
    if not whole and dataset in recipe_names():
        layers.insert(0, load_recipe(dataset))
    return sorted(layers, key=lambda recipe: recipe.is_layer)


def combined(layers: Sequence[Recipe]) -> Recipe | None:
    """Return what recipes laid over one another are together; published scores hold for one alone."""
    if len(layers) < 2:
        return layers[0] if layers else None
    values = {name: value for recipe in layers for name, value in recipe.values.items()}
    about = RecipeAbout(", with ".join(recipe.about.title for recipe in layers), layers[0].about.source)
    return Recipe(" + ".join(recipe.name for recipe in layers), about, values)
