"""`ccreid doctor`: is everything here that training needs?"""

from __future__ import annotations

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import data_dir_or_default, logs_dir_or_default


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("doctor", rich_help_panel="System")(doctor)


def doctor(data_dir: opt.DataDir = None, logs_dir: opt.LogsDir = None, as_json: opt.Json = False) -> None:
    """Show versions, devices, disk, data and weights, each tried with a tiny computation.

    Example: `ccreid doctor`.
    """
    from ccreid_cli.bench.doctor import diagnose

    findings = diagnose(data_dir_or_default(data_dir), logs_dir_or_default(logs_dir))
    if as_json:
        output.print_json({found.name: {"status": found.status, "detail": found.detail} for found in findings})
        return
    rows = [[finding.status, finding.name, finding.detail] for finding in findings]
    output.print_table("", ["", "what", "found"], rows)
    if any(finding.status == "FAILED" for finding in findings):
        raise typer.Exit(5)
