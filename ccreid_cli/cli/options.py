"""The options that commands share. Those of settings are made from `core.config` and the registries, by `bind`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from ccreid_cli.cli.completion import values as completion_values
from ccreid_cli.core.components import Component
from ccreid_cli.core.config import DATA, MODEL, RUN, may_change_on_resume, settings
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.setting import SettingField

OUTPUT = "Output"
M = TypeVar("M")


@dataclass(frozen=True)
class FromSetting:
    """In a command's annotations: the option of one setting."""

    name: str


@dataclass(frozen=True)
class FromSettings:
    """In a command's annotations: one option for each of several settings; the command gets those that are given."""

    names: Callable[[], Iterable[str]]


def settings_of(*names: str) -> FromSettings:
    """Return the options of the settings `names`, for a command's annotations."""
    return FromSettings(lambda: names)


AllSettings = Annotated[dict[str, Any], FromSettings(settings)]
SettingsOnResume = Annotated[dict[str, Any], FromSettings(may_change_on_resume)]
Dataset = Annotated[str | None, FromSetting("dataset")]
Columns = Annotated[str | None, FromSetting("columns")]
Pattern = Annotated[str | None, FromSetting("pattern")]
DataDir = Annotated[Path | None, FromSetting("data_dir")]
LogsDir = Annotated[Path | None, FromSetting("logs_dir")]
Workers = Annotated[int | None, FromSetting("workers")]
Height = Annotated[int | None, FromSetting("height")]
Width = Annotated[int | None, FromSetting("width")]
Resize = Annotated[str | None, FromSetting("resize")]
Arch = Annotated[str | None, FromSetting("arch")]
Weights = Annotated[str | None, FromSetting("weights")]
Pooling = Annotated[str | None, FromSetting("pooling_type")]
Features = Annotated[int | None, FromSetting("features")]
Dropout = Annotated[float | None, FromSetting("dropout")]
Seed = Annotated[int | None, FromSetting("seed")]
Device = Annotated[str | None, FromSetting("device")]
Precision = Annotated[str | None, FromSetting("precision")]


def _known_checkpoint(name: str) -> str:
    if name not in {"last", "best"}:
        raise UsageError(f'--checkpoint "{name}" is not known.', "Use last or best.")
    return name


RecipeNames = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        help="Settings to start from, by name or TOML file; flags override them. May be given again: each goes over "
        "the one before. Default: the recipe named like the dataset. Example: --recipe camera",
        rich_help_panel=DATA,
        autocompletion=completion_values.recipes,
    ),
]
Run = Annotated[
    str,
    typer.Argument(help="The run: name, folder, or a checkpoint in it.", autocompletion=completion_values.runs),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run (name or folder) or a checkpoint file, ours or the official code's.",
        autocompletion=completion_values.runs,
    ),
]
ExtractBatch = Annotated[
    int | None,
    typer.Option("--batch-size", "-b", help="Images at once. Default: what suits the device.", rich_help_panel=DATA),
]
Report = Annotated[
    bool,
    typer.Option("--report/--no-report", help="Write RUN/report.html at the end. Default: on.", rich_help_panel=RUN),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", help="Seconds that one process of several waits for the others.", min=1, rich_help_panel=RUN
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus", help="GPUs to train on, one process each. Default: every visible GPU.", rich_help_panel=RUN, min=1
    ),
]
GpusInUse = Annotated[
    int | None,
    typer.Option("--gpus", help="GPUs to use, one process each. Default: one.", rich_help_panel=RUN, min=1),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT)]
ProgressStyle = Annotated[
    str,
    typer.Option(
        "--progress",
        help="auto, rich (live bars), plain (lines), json (lines) or none.",
        rich_help_panel=OUTPUT,
        autocompletion=completion_values.progress_styles,
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        help="A run (name or folder) or a checkpoint file, ours or the official code's. Example: --resume logs/RUN",
        rich_help_panel=MODEL,
        autocompletion=completion_values.runs,
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        help="Which checkpoint of a run: last or best.",
        rich_help_panel=MODEL,
        autocompletion=completion_values.checkpoints,
        callback=_known_checkpoint,
    ),
]
Rerank = Annotated[bool, typer.Option("--rerank", help="Score k-reciprocal re-ranked distances.", rich_help_panel=DATA)]
CameraNorm = Annotated[
    bool,
    typer.Option(
        "--camera-norm",
        help="Standardise features within each camera first, by the gallery's statistics. It uses the test cameras, so "
        "it is named beside the score.",
        rich_help_panel=DATA,
    ),
]
CameraBatchNorm = Annotated[
    bool,
    typer.Option(
        "--camera-batch-norm",
        help="Let batch norms take the statistics of the test images of each image's camera (of all, where it has "
        "fewer than 30): for a network from other cameras. It uses the test images, so it is named beside the score.",
        rich_help_panel=DATA,
    ),
]

Tracklets = Annotated[
    bool,
    typer.Option(
        "--tracklets", help="Score tracklets by the mean of their features, not images.", rich_help_panel=DATA
    ),
]


def bind_all(app: typer.Typer, words: Sequence[str] | None = None) -> None:
    """Give the commands of `app` their options; where `words` are given, only those named there."""
    for command in app.registered_commands:
        if command.callback is not None:
            is_asked = words is None or any(str(command.name) in word for word in words)  # a word may be quoted
            command.callback = bind(command.callback) if is_asked else _without_options(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            bind_all(group.typer_instance, words)


def _without_options(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(inspect.unwrap(command))
    def bound() -> None:
        """Do nothing: this command is not asked for."""

    bound.__dict__["__signature__"] = inspect.Signature()
    bound.__annotations__ = {}
    return bound


def bind(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command as Typer takes it.

    Every `FromSetting` and `FromSettings` becomes options, and a parameter that is a dataclass one option for each of
    its fields. They are made anew at each call, so that they show the rows that the registries have now.
    """
    command = inspect.unwrap(command)
    groups: dict[str, _Group] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        group = _group(hints[name])
        if group:
            groups[name] = group
            parameters += group.parameters
        else:
            parameters.append(_parameter(name, _option_of(hints[name]), parameter.default))

    @wraps(command)
    def bound(**given: Any) -> Any:
        for name, group in groups.items():
            given[name] = group.gathered({option.name: given.pop(option.name) for option in group.parameters})
        return command(**given)

    bound.__dict__["__signature__"] = inspect.Signature(parameters)
    bound.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return bound


@dataclass(frozen=True)
class _Group:
    """Several options that a command gets as one value.

    Attributes:
        parameters: The options.
        gathered: Makes the value of what is given, by the options' names.
    """

    parameters: list[inspect.Parameter]
    gathered: Callable[[dict[str, Any]], Any]


def _group(hint: Any) -> _Group | None:
    """Return the options that one parameter of a command stands for, where they are several."""
    if isinstance(hint, type) and is_dataclass(hint):
        kinds = get_type_hints(hint, include_extras=True)
        parameters = [_parameter(field.name, _option_of(kinds[field.name]), field.default) for field in fields(hint)]
        return _Group(parameters, lambda given: hint(**given))
    mark = _mark(hint, FromSettings)
    if mark is None:
        return None
    asked = [settings()[name] for name in mark.names()]
    inverted = {field.name: field.setting.inverted for field in asked}
    return _Group(
        [_parameter(field.name, _annotation(field), None) for field in asked],
        lambda given: {
            name: not value if inverted[name] else value for name, value in given.items() if value is not None
        },
    )


def _option_of(hint: Any) -> Any:
    """Return the annotation of one option."""
    mark = _mark(hint, FromSetting)
    return _annotation(settings()[mark.name]) if mark else hint


def _mark(hint: Any, kind: type[M]) -> M | None:
    return next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, kind)), None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(field: SettingField) -> Any:
    setting = field.setting
    option = typer.Option(
        *filter(None, [field.option, setting.short]),
        help=setting_help(field),
        rich_help_panel=setting.panel,
        autocompletion=completion_values.of_setting(field),
    )
    # Typer knows no name-or-number: it hands on the words, and `validate` reads them.
    kind = str if setting.besides == "number" else field.kind
    return Annotated[kind | None, option]


def setting_help(field: SettingField) -> str:
    """Return what the option of a setting does, the names that it takes and its default."""
    from ccreid_cli.engine.settings import REGISTRIES

    rows = REGISTRIES.get(field.name, {})
    text = field.setting.help.replace("{names}", ", ".join(_name_of(name, row) for name, row in rows.items()))
    default = field.setting.default.replace("{}", "; ".join([_shown_default(field), *_defaults_of_rows(field)]))
    return f"{text} Default: {default}." if default else text


def _name_of(name: str, row: object) -> str:
    needs = row.needs if isinstance(row, Component) else None
    name += "NAME" if isinstance(row, Component) and row.member else ""
    return f"{name} (pip install 'ccreid[{needs[1]}]')" if needs else name


def _shown_default(field: SettingField) -> str:
    if field.setting.environment:
        return f"${field.setting.environment}, else ./{field.default}"
    return _shown(field.default != field.setting.inverted if isinstance(field.default, bool) else field.default)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _defaults_of_rows(field: SettingField) -> list[str]:
    """Return the default that a row of a registry brings along, where it is another one: "infomap 0.5"."""
    from ccreid_cli.engine.settings import REGISTRIES

    rows = [item for registry in REGISTRIES.values() for item in registry.items() if isinstance(item[1], Component)]
    values = [(name, row.defaults.get(field.name, field.default)) for name, row in rows]
    return [f"{name} {_shown(value)}" for name, value in values if value != field.default]


WITHOUT_EFFECT = ("--eps-gap", "--dsbn", "--test-source")
"""Options of the official code that alter nothing in Cluster Contrast: refused in plainer words than unknown ones."""


def refuse_options_without_effect(words: Iterable[str]) -> None:
    """Look for such an option among the words of a command line.

    Raises:
        UsageError: There is one.
    """
    for word in words:
        name = word.partition("=")[0]
        if name in WITHOUT_EFFECT:
            raise UsageError(f"{name} has no effect in Cluster Contrast, so it is not accepted.", "Leave it out.")
