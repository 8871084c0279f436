"""`ccreid runs`: what has been trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import logs_dir_or_default
from ccreid_cli.cli.completion import values as completion_values

if TYPE_CHECKING:
    from ccreid_cli.engine.run_folder import RunFolder

runs_app = typer.Typer(help="List, show, compare and remove runs.", no_args_is_help=True)

Run = Annotated[str, typer.Argument(help="A run: name or folder.", autocompletion=completion_values.runs)]
Runs = Annotated[list[str], typer.Argument(help="Runs: names or folders.", autocompletion=completion_values.runs)]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(runs_app, name="runs", rich_help_panel="Runs")


def _percent(result: dict[str, Any], which: str, key: str = "mAP") -> str | None:
    score = result.get(which, {}).get(key)
    return None if score is None else f"{100 * score:.1f}"


def _summary(run: RunFolder) -> dict[str, Any]:
    """Return what the list shows of a run."""
    config, metrics = run.read_config(), run.read_metrics()
    scored = [line for line in metrics if "mAP" in line]
    result = run.read_result()
    if scored:
        result = {"last": scored[-1], "best": max(scored, key=lambda line: line["mAP"])}
    return {
        "run": run.path.name,
        "folder": str(run.path),
        "dataset": config.dataset,
        "arch": config.arch,
        "epochs_done": len(metrics),
        "epochs": config.epochs,
        "state": _state(run, len(metrics), config.epochs),
        "last": result.get("last", {}),
        "best": result.get("best", {}),
        "seconds": round(sum(sum(line.get("seconds", {}).values()) for line in metrics), 1),
    }


def _summary_or_damage(run: RunFolder) -> dict[str, Any]:
    """Return what the list shows of a run, of one whose settings cannot be read too: it must not hide the others."""
    from ccreid_cli.core.errors import CcreidError

    try:
        return _summary(run)
    except CcreidError as error:
        output.warn(f"{run.path} is damaged: {error.message}")
    unknown: dict[str, Any] = {"dataset": "?", "arch": "?", "epochs": None, "last": {}, "best": {}, "seconds": None}
    done = len(run.read_metrics())
    return {"run": run.path.name, "folder": str(run.path), "epochs_done": done, "state": "damaged", **unknown}


def _state(run: RunFolder, done: int, epochs: int) -> str:
    from ccreid_cli.core.locks import read_owner

    owner = read_owner(run.path / ".lock")
    if owner and not owner.is_dead:
        return "training"
    return "finished" if done >= epochs else "stopped"


@runs_app.command("list")
def list_all(logs_dir: opt.LogsDir = None, as_json: opt.Json = False) -> None:
    """List the runs, oldest first. Example: `ccreid runs list`."""
    from ccreid_cli.engine.run_folder import list_runs

    folder = logs_dir_or_default(logs_dir)
    summaries = [_summary_or_damage(run) for run in list_runs(folder)]
    if as_json:
        output.print_json({"runs": summaries})
        return
    if not summaries:
        output.say(f"no runs in {folder} yet; `ccreid train -d toy` makes one.")
        return
    rows = [
        [
            summary["run"],
            Path(summary["dataset"]).name,
            summary["arch"],
            f"{summary['epochs_done']}/{summary['epochs'] or '?'}",
            summary["state"],
            _percent(summary, "last"),
            _percent(summary, "best"),
        ]
        for summary in summaries
    ]
    columns = ["run", "dataset", "arch", "epochs", "state", "last mAP %", "best mAP %"]
    output.print_table("", columns, rows)


@runs_app.command("show")
def show(run: Run, logs_dir: opt.LogsDir = None, as_json: opt.Json = False) -> None:
    """Show a run: settings, environment, and every epoch. Example: `ccreid runs show RUN`."""
    from ccreid_cli.engine.run_folder import find_run

    folder = find_run(run, logs_dir_or_default(logs_dir))
    summary, metrics = _summary(folder), folder.read_metrics()
    environment, config = folder.read_environment(), folder.read_config()
    if as_json:
        settings = config.as_json()
        output.print_json({**summary, "settings": settings, "environment": environment, "metrics": metrics})
        return
    output.print_table("", ["", ""], [[key, str(summary[key])] for key in ("folder", "state", "dataset", "arch")])
    plain = [[key, _shown(value)] for key, value in environment.items() if not isinstance(value, dict)]
    output.print_table("environment", ["", ""], plain)
    rows = [
        [line["epoch"] + 1, f"{line['loss']:.3f}", line["num_clusters"], line["num_outliers"]]
        + [f"{100 * line[key]:.1f}" if key in line else None for key in ("mAP", "rank1")]
        + [f"{sum(line.get('seconds', {}).values()):.1f}"]
        for line in metrics
    ]
    output.print_table("epochs", ["epoch", "loss", "clusters", "outliers", "mAP %", "rank-1 %", "seconds"], rows)


def _shown(value: object) -> str:
    return "–" if value is None else str(value)


@runs_app.command("compare")
def compare(names: Runs, logs_dir: opt.LogsDir = None, as_json: opt.Json = False) -> None:
    """Show several runs side by side: the settings that differ, and the scores. Example: `ccreid runs compare A B`."""
    from ccreid_cli.engine.run_folder import find_run

    logs = logs_dir_or_default(logs_dir)
    folders = [find_run(name, logs) for name in names]
    settings = [folder.read_config().as_json() for folder in folders]
    summaries = [_summary(folder) for folder in folders]
    differing = [key for key in settings[0] if key != "name" and len({str(values[key]) for values in settings}) > 1]
    if as_json:
        different = [{key: values[key] for key in differing} for values in settings]
        output.print_json({"runs": [{**a, "settings": b} for a, b in zip(summaries, different, strict=True)]})
        return
    rows: list[list[object]] = [[key, *(_shown(values[key]) for values in settings)] for key in differing]
    for label, which, key in (
        ("last mAP %", "last", "mAP"),
        ("last rank-1 %", "last", "rank1"),
        ("best mAP %", "best", "mAP"),
        ("best rank-1 %", "best", "rank1"),
    ):
        rows.append([label, *(_percent(summary, which, key) for summary in summaries)])
    rows.append(["seconds", *(f"{summary['seconds']:,.0f}" for summary in summaries)])
    output.print_table("", ["", *(folder.path.name for folder in folders)], rows)


@runs_app.command("rm")
def remove(
    names: Runs,
    logs_dir: opt.LogsDir = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete runs with their checkpoints. Asks first. Example: `ccreid runs rm RUN`."""
    from ccreid_cli.core.errors import UsageError
    from ccreid_cli.engine.run_folder import find_run

    logs = logs_dir_or_default(logs_dir)
    for folder in [find_run(name, logs) for name in names]:
        lock = folder.lock()
        lock.acquire(wait=False)
        try:
            if not yes and not output.ask(f"delete {folder.path} and all in it?"):
                raise UsageError(f"{folder.path} was not deleted.", "Answer y, or give --yes.")
            shutil.rmtree(folder.path)
        finally:
            lock.release()
        output.say(f"deleted {folder.path}")
