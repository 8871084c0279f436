"""Registries: one plain dict per kind of component, one row per component. Reading a row imports nothing heavy.

The dicts are `data.catalog.CATALOG`, `models.registry.BACKBONES` and `POOLINGS`, `pseudo_labels.registry.CLUSTERERS`
and `method.registry.METHODS`. Help texts, completion, defaults and advice in errors are made from them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.suggest import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Component(Generic[T]):
    """One row of a registry.

    Attributes:
        help: What it is in a few words, as completion shows it.
        load: Imports and returns the implementation: called when it is used, never to list names.
        defaults: Settings that it brings along when the command line asks for it by name: setting name -> value.
        needs: Import name and extra of the optional package it needs, if any: see `require`.
        member: For a row whose name ends in a colon: makes the row of a longer name, as in ``timm:NAME``.
    """

    help: str
    load: Callable[[], T]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, str] | None = None
    member: Callable[[str], Any] | None = None


R = TypeVar("R")


def look_up(registry: Mapping[str, R], name: str) -> R | None:
    """Return the row called `name`, or None; see `Component.member` for names with a colon.

    Raises:
        UsageError: A name with a colon lacks what follows it, or there is no such member.
    """
    prefix, colon, rest = name.partition(":")
    family = registry.get(prefix + colon) if colon else None
    if not isinstance(family, Component) or family.member is None:
        return registry.get(name)
    if not rest:
        raise UsageError(f'"{name}" needs a name after the colon.', f"That is {family.help}.")
    row: R = family.member(rest)
    return row


def find_row(registry: Mapping[str, R], kind: str, name: str) -> R:
    """Return the row called `name`.

    Args:
        registry: Name -> row.
        kind: What a row is, for the message: "architecture", "clusterer".
        name: What the user typed.

    Raises:
        UsageError: There is no such row.
    """
    row = look_up(registry, name)
    if row is None:
        known = f"Known: {', '.join(registry)}."
        raise UsageError(f'there is no {kind} "{name}".', f"{did_you_mean(name, registry) or ''} {known}".strip())
    return row


def require(module: str, extra: str | None = None, package: str | None = None) -> Any:
    """Import an optional package.

    Args:
        module: What to import.
        extra: The extra of ccreid that brings it; None where it is installed by its own name.
        package: The package's name, where `module` does not start with it.

    Raises:
        UsageError: It cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module.partition(".")[0]
        raise UsageError(
            f"this needs the package {package}, which cannot be imported ({error}).",
            f"pip install 'ccreid[{extra}]'" if extra else f"pip install {package}",
        ) from error
