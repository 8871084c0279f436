"""What the shell offers for option values. Nothing here imports torch, numpy or pydantic: it must answer at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from ccreid_cli.core.setting import SettingField

Offer = Callable[[str], list[str]] | Callable[[str], list[tuple[str, str]]]


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


def choices(*names: str) -> Offer:
    """Return what offers fixed names."""
    return lambda incomplete: _starting(names, incomplete)


def rows(setting: str, *others: str, paths: bool = False) -> Offer:
    """Return what offers the rows of a setting's registry, each with what it is.

    Args:
        setting: A name in `engine.settings.REGISTRIES`.
        others: What may stand there besides.
        paths: Whether a path may, too.
    """

    def offer(incomplete: str) -> list[tuple[str, str]]:
        from ccreid_cli.engine.settings import REGISTRIES

        registry = REGISTRIES[setting]
        names = [*registry, *others]
        found = _names_and_paths(names, incomplete) if paths else _starting(names, incomplete)
        return [(name, registry[name].help if name in registry else "") for name in found]

    return offer


def of_setting(field: SettingField) -> Offer | None:
    """Return what offers the values of a setting; None where the shell offers files, or nothing can be offered."""
    names, paths = field.setting.names, field.setting.besides == "path"
    if isinstance(names, str):
        return rows(field.name, paths=paths)
    if paths:
        return lambda incomplete: _names_and_paths(names, incomplete)
    return choices(*names) if names else None


def recipes(incomplete: str) -> list[str]:
    """Offer the shipped recipes, then paths."""
    from ccreid_cli.core.recipes import recipe_names

    return _names_and_paths(recipe_names(), incomplete)


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the runs of ``--logs-dir`` by name, then paths."""
    logs = Path(context.params.get("logs_dir") or os.environ.get("CCREID_LOGS_DIR") or "logs")
    return _names_and_paths(sorted(path.parent.name for path in logs.glob("*/recipe.toml")), incomplete)


datasets = rows("dataset", paths=True)
checkpoints = choices("last", "best")
progress_styles = choices("auto", "rich", "plain", "json", "none")
shells = choices("bash", "zsh", "fish", "powershell")
