"""`ccreid train` and `ccreid resume`."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import logs_dir_or_default, refuse_file, show_dataset
from ccreid_cli.cli.completion import values as completion_values
from ccreid_cli.core.config import MODEL, RUN
from ccreid_cli.machine.ranks import is_main_process

if TYPE_CHECKING:
    from ccreid_cli.core.reporter import Reporter
    from ccreid_cli.engine.settings import ResolvedConfig


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("train", rich_help_panel="Main")(train)
    app.command("resume", rich_help_panel="Main")(resume)
    app.command("recipes", rich_help_panel="Main")(recipes)


def train(
    settings: opt.AllSettings,
    recipe: opt.RecipeNames = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            help="Start from the weights of a run or checkpoint, as a new run. Example: --init-from logs/RUN",
            rich_help_panel=MODEL,
            autocompletion=completion_values.runs,
        ),
    ] = None,
    gpus: opt.Gpus = None,
    timeout: opt.Timeout = 600.0,
    resume_run: Annotated[
        str | None,
        typer.Option(
            "--resume",
            help="Go on with this run instead; as `ccreid resume`.",
            rich_help_panel=RUN,
            autocompletion=completion_values.runs,
        ),
    ] = None,
    report: opt.Report = True,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show every setting and where it comes from; train nothing.", rich_help_panel=opt.OUTPUT
        ),
    ] = False,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Train a re-identification model without labels.

    The dataset's published recipe gives every value that no flag sets; `--recipe camera` goes over it and gives the
    best that is known with camera labels.

    Examples: `ccreid train -d toy`, `ccreid train -d market1501 -a resnet_ibn50a --iters 400 --use-hard`.
    """
    if resume_run is not None:
        _resume(resume_run, settings, gpus, timeout, report, as_json, progress)
        return
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.engine.settings import resolve_config

    if init_from is not None:
        settings["weights"] = _weights_of(init_from, settings.get("logs_dir"))
    resolved = resolve_config(settings, os.environ, recipe or ())
    refuse_file(resolved.config.data_dir)
    reporter = make_reporter(progress)
    if dry_run:
        from ccreid_cli.engine.adopting import adopt_weights_file

        _show_settings(adopt_weights_file(resolved, reporter), as_json)
        return
    if _launched(gpus, resolved.config.device, resolved.config.batch_size, resolved.config.samples_per_bn):
        return
    from ccreid_cli.engine.start import train as run_training

    result = run_training(resolved, reporter=reporter, on_dataset=show_dataset, timeout=timeout)
    _finish(result, report, reporter, as_json)


def resume(
    run: opt.Run,
    settings: opt.SettingsOnResume,
    gpus: opt.Gpus = None,
    timeout: opt.Timeout = 600.0,
    report: opt.Report = True,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Go on with a run from its last save, as if it had never stopped.

    What no option sets stays as the run has it.

    Example: `ccreid resume market1501-resnet50-20260101-120000 --epochs 60`.
    """
    _resume(run, settings, gpus, timeout, report, as_json, progress)


def recipes(as_json: opt.Json = False) -> None:
    """List the shipped recipes, with the published mAP and rank-1 of each. Example: `ccreid recipes`."""
    from ccreid_cli.core.recipes import load_recipe, recipe_names

    loaded = [load_recipe(name) for name in recipe_names()]
    if as_json:
        output.print_json({recipe.name: {**asdict(recipe.about), "train": recipe.values} for recipe in loaded})
        return
    rows = []
    for recipe in loaded:
        published = ", ".join(f"{arch} {scores[0]} / {scores[1]}" for arch, scores in recipe.about.published.items())
        rows.append([recipe.name, recipe.about.title, published or "–"])
    output.print_table("", ["recipe", "what", "published mAP / rank-1, %"], rows)


def _resume(
    run: str,
    flags: dict[str, Any],
    gpus: int | None,
    timeout: float,
    report: bool,
    as_json: bool,
    progress: str,
) -> None:
    from ccreid_cli.engine.run_folder import find_run
    from ccreid_cli.machine.device import device_for_resume

    if "data_dir" in flags:
        refuse_file(flags["data_dir"])
    folder = find_run(run, logs_dir_or_default(flags.pop("logs_dir", None)))
    config = folder.read_config()
    device = str(flags.get("device") or device_for_resume(config.device))
    if _launched(gpus, device, config.batch_size, config.samples_per_bn):
        return
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.engine.start import resume as run_resume

    reporter = make_reporter(progress)
    result = run_resume(folder, flags, reporter=reporter, on_dataset=show_dataset, timeout=timeout)
    _finish(result, report, reporter, as_json)


def _weights_of(init_from: str, logs_dir: Path | None) -> str:
    from ccreid_cli.inference.loading import checkpoint_file

    return str(checkpoint_file(init_from, "last", logs_dir_or_default(logs_dir)))


def _launched(gpus: int | None, device: str, batch_size: int, samples_per_bn: int) -> bool:
    """Start one process per GPU when there are several to use; tell whether that was done."""
    from ccreid_cli.machine.launch import launch, num_processes

    count = num_processes(gpus, device, batch_size, samples_per_bn, output.say)
    if count == 1:
        return False
    launch(count)
    return True


def _show_settings(resolved: ResolvedConfig, as_json: bool) -> None:
    values = resolved.config.as_json()
    if as_json:
        output.print_json({name: {"value": value, "source": resolved.sources[name]} for name, value in values.items()})
        return
    rows = [[name, "auto" if value is None else str(value), resolved.sources[name]] for name, value in values.items()]
    output.print_table("", ["setting", "value", "from"], rows)


def _finish(result: dict[str, Any], report: bool, reporter: Reporter, as_json: bool) -> None:
    """Write the report and show the result, in the first of several processes."""
    if not is_main_process():
        return
    if report:
        _write_report(result, reporter)
    _show_result(result, as_json)


def _write_report(result: dict[str, Any], reporter: Reporter) -> None:
    """Write RUN/report.html; a run is not lost because its report could not be written."""
    from ccreid_cli.core.side_tasks import side_task

    with side_task("the report was not written", reporter):
        from ccreid_cli.engine.run_folder import RunFolder
        from ccreid_cli.report.gather import write_report

        run = RunFolder(Path(result["run"]))
        # Where it was trained, and that has been said.
        path = write_report(run, device=run.read_config().device, reporter=reporter, say_device=False)
        result["report"] = str(path)


def _show_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.print_json(result)
        return
    if "last" in result:
        last, best = result["last"], result["best"]
        named = {f"last (epoch {last['epoch'] + 1})": last, f"best (epoch {best['epoch'] + 1})": best}
        output.print_evaluations("final evaluation", named)
        output.say("last is the honest score: best was chosen by looking at the test set.")
    if "not_scored" in result:
        output.warn(f"the last epoch was not scored; `ccreid eval --resume {shlex.quote(result['run'])}` tries again.")
    output.print_stages("where the time went", result["seconds"], result["epochs"])
    output.say(f"run: {result['run']}")
    if "report" in result:
        output.say(f"report: {result['report']}")
