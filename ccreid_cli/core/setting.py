"""What a setting is beside its type and default: help, limits, option, names. `core.config` has one per field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Literal, get_type_hints


@dataclass(frozen=True)
class Setting:
    """The annotation of one field of `TrainConfig`.

    Attributes:
        help: What it does, one line; ``{names}`` is replaced by the names of its registry.
        panel: The group of options it belongs to.
        short: Its one-letter option.
        option: Its long option, where that is not the field's name with dashes; both sides of an on/off pair.
        inverted: Whether the option turns the setting off.
        default: How the help names the default: ``{}`` is its value. Empty: not at all.
        names: What its value is a name of, as errors say it ("architecture"; `engine.settings.REGISTRIES` has the
            registry), or the fixed names it is one of.
        besides: What it may be besides one of its names: a "path", any other "text" or a "number" within the limits.
        environment: The environment variable that gives its value where no option does.
        may_change: Whether it may change when a run is resumed: it does not alter what is computed.
        ge: Smallest value.
        gt: Largest value that is too small.
        le: Largest value.
        lt: Smallest value that is too large.
        min_length: Smallest length of a text.
    """

    help: str
    panel: str
    short: str | None = None
    option: str | None = None
    inverted: bool = False
    default: str = "{}"
    names: str | tuple[str, ...] = ()
    besides: Literal["", "path", "text", "number"] = ""
    environment: str | None = None
    may_change: bool = False
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Tell pydantic the limits, so that they need no annotation of its own: `--help` must not load it."""
        if isinstance(self.names, tuple) and self.names and not self.besides:
            return {"type": "literal", "expected": list(self.names)}
        wanted = {name: getattr(self, name) for name in ("ge", "gt", "le", "lt", "min_length")}
        limits = {name: limit for name, limit in wanted.items() if limit is not None}
        if self.besides == "number":
            return self._name_or_number(limits)
        return {**handler(source), **limits}

    def _name_or_number(self, limits: dict[str, Any]) -> dict[str, Any]:
        words = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
        within = " and ".join(f"{words[name]} {limit:g}" for name, limit in limits.items())
        return {
            "type": "union",
            "choices": [{"type": "literal", "expected": list(self.names)}, {"type": "float", **limits}],
            "custom_error_type": "name_or_number",
            "custom_error_message": f"Input should be {' or '.join(self.names)} or a number {within}",
        }


@dataclass(frozen=True)
class SettingField:
    """One field of a class of settings.

    Attributes:
        name: Its name in code and in recipes.
        kind: Its type.
        default: Its default.
        setting: What else is known of it.
    """

    name: str
    kind: Any
    default: Any
    setting: Setting

    @property
    def option(self) -> str:
        """The long option, both sides of an on/off pair."""
        return self.setting.option or "--" + self.name.replace("_", "-")


@cache
def setting_fields(config: type) -> dict[str, SettingField]:
    """Return the fields of a dataclass of settings by name.

    Raises:
        TypeError: A field lacks its `Setting` or its default.
    """
    found = {}
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        hint = hints[field.name]
        setting = next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Setting)), None)
        if setting is None or field.default is MISSING:
            raise TypeError(f"{config.__name__}.{field.name} needs a default and Annotated[..., Setting(...)]")
        found[field.name] = SettingField(field.name, hint.__origin__, field.default, setting)
    return found
