"""The pages of ``--help``: how to call a command, what it does, and its options in groups.

Typer's own pages take half as long again, since they load a Markdown parser, and give names and types of options five
columns: in a terminal of 60 columns they cut names off and leave 13 columns for what an option does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ccreid_cli.cli import output
from ccreid_cli.cli.options import refuse_options_without_effect

PANELS = ("Main", "Use a model", "Data and weights", "Runs", "Features", "System")
"""The groups of commands, in the order in which a person comes to need them."""

Sections = dict[str, list[tuple[str, str]]]


class PageCommand(TyperCommand):
    """A command with a page of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what has no effect in this method; leave values unchecked while the line is still being typed."""
        if ctx.resilient_parsing:
            return self._take_unchecked(ctx, args)
        refuse_options_without_effect(args)
        return super().parse_args(ctx, args)

    def _take_unchecked(self, ctx: Any, args: list[str]) -> list[str]:
        """Do as Typer does, but for checking values: that loads pydantic, which takes longer than all the rest."""
        given, rest, _ = self.make_parser(ctx).parse_args(args=args)
        for parameter in self.get_params(ctx):
            ctx.params[parameter.name], source = parameter.consume_value(ctx, given)
            ctx.set_parameter_source(parameter.name, source)
        ctx.args = rest
        return rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page; `formatter`, which would hold it as plain text, stays empty."""
        _show_page(self, ctx, _option_sections(self, ctx))


class PageGroup(TyperGroup):
    """A group of commands with a page of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the group's own options, which are flags, without loading pydantic to check those that are not set."""
        for parameter in self.get_params(ctx):
            parameter.default = parameter.default or False
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page; `formatter`, which would hold it as plain text, stays empty."""
        sections: Sections = {panel: [] for panel in PANELS}
        for name, command in self.commands.items():
            if not command.hidden:
                panel = str(getattr(command, "rich_help_panel", None) or "Commands")
                sections.setdefault(panel, []).append((name, command.get_short_help_str()))
        _show_page(self, ctx, {**sections, **_option_sections(self, ctx)})


def use_pages(app: typer.Typer) -> None:
    """Give every command and group of `app` such a page."""
    for command in app.registered_commands:
        command.cls = PageCommand
        if command.callback is not None:
            command.short_help = first_sentence(command.callback.__doc__)
    for group in app.registered_groups:
        group.cls = PageGroup
        if group.typer_instance is not None:
            use_pages(group.typer_instance)


def _show_page(command: Any, ctx: Any, sections: Sections) -> None:
    output.print_help(
        f"{ctx.command_path} {usage_of(command)}",
        paragraphs(command.help),
        {title: rows for title, rows in sections.items() if rows},
    )


def _option_sections(command: Any, ctx: Any) -> Sections:
    """Return arguments, options by group, and the options of every command last."""
    sections: Sections = {"Arguments": []}
    common = []
    for parameter in command.get_params(ctx):
        is_option = parameter.param_type_name == "option"
        if getattr(parameter, "hidden", False):
            continue
        row = (", ".join(names_of(parameter)), text_of(parameter))
        panel = getattr(parameter, "rich_help_panel", None)
        if panel or not is_option:
            sections.setdefault(str(panel or "Arguments"), []).append(row)
        else:
            common.append(row)
    return {**sections, "Options": common}


def usage_of(command: Any) -> str:
    """Return what follows a command's name: what it needs, in order."""
    if hasattr(command, "commands"):
        return "[OPTIONS] COMMAND [ARGS]..."
    words = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            words += names_of(parameter)
        elif parameter.required:
            words.append(f"{names_of(parameter)[0]} {parameter.name.upper()}")
    return " ".join([*words, "[OPTIONS]"])


def names_of(parameter: Any) -> list[str]:
    """Return an option's names, the long ones first, or what an argument is called."""
    if parameter.param_type_name == "option":
        return sorted([*parameter.opts, *parameter.secondary_opts], key=lambda name: not name.startswith("--"))
    name = parameter.metavar or parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return [name if parameter.required else f"[{name}]"]


def text_of(parameter: Any) -> str:
    """Return an option's or argument's help on one line, with its default."""
    text = plain(parameter.help)
    is_flag = getattr(parameter, "is_flag", False)
    if parameter.param_type_name == "option" and parameter.required:
        text += " Required."
    elif not is_flag and isinstance(parameter.default, str | int | float | Path) and "Default" not in text:
        default = f"{parameter.default:g}" if isinstance(parameter.default, float) else parameter.default
        text += f" Default: {default}."
    return text


def plain(text: str | None) -> str:
    """Return help on one line, without the marks that only Rich needs."""
    return " ".join((text or "").replace("\\[", "[").split())


def paragraphs(text: str | None) -> list[str]:
    """Return the paragraphs of a command's help."""
    return [plain(paragraph) for paragraph in (text or "").split("\n\n")]


def first_sentence(text: str | None) -> str:
    """Return what a list of commands says of a command."""
    return paragraphs(text)[0].split(". ")[0].rstrip(".")
