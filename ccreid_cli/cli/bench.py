"""`ccreid bench`: the speed of every stage on this machine, and what it predicts for many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.completion import values as completion_values
from ccreid_cli.core.words import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ccreid_cli.bench.base import BenchSettings, StageResult
    from ccreid_cli.core.config import TrainConfig
    from ccreid_cli.core.reporter import Reporter

STAGES = ("store", "extract", "labels", "step", "eval")
BENCH_SETTINGS = ("arch", "height", "width", "cluster", "eps", "k1", "k2", "samples_per_bn", "device", "precision")
SIZES = "Sizes"
PLAN = "Many GPUs"
PLAN_IMAGES = [1e6, 1e7]
PLAN_GPUS = [8, 64]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("bench", rich_help_panel="System")(bench)


def bench(
    settings: Annotated[dict[str, Any], opt.settings_of(*BENCH_SETTINGS)],
    stages: Annotated[
        list[str] | None,
        typer.Argument(
            help="labels, store, step, extract, eval or all. Default: all.",
            autocompletion=completion_values.choices(*STAGES, "all"),
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option("-n", "--num-images", help="Images. Default: what suits stage and device.", rich_help_panel=SIZES),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            "-b",
            help="Images of a step or an extraction batch. Default: what suits the device.",
            rich_help_panel=SIZES,
        ),
    ] = None,
    dim: Annotated[int, typer.Option("--dim", help="Width of made features.", rich_help_panel=SIZES)] = 2048,
    queries: Annotated[int, typer.Option("--queries", help="Queries of eval.", rich_help_panel=SIZES)] = 3368,
    gallery: Annotated[int, typer.Option("--gallery", help="Gallery images of eval.", rich_help_panel=SIZES)] = 15913,
    features: Annotated[
        Path | None,
        typer.Option(
            "--features", help="An .npz with `features` for labels, instead of made ones.", rich_help_panel=SIZES
        ),
    ] = None,
    growth: Annotated[
        bool,
        typer.Option(
            "--growth",
            help="Labels at an eighth, a quarter, a half and all of -n (64,000): how time and memory grow.",
            rich_help_panel=SIZES,
        ),
    ] = False,
    recipe: opt.RecipeNames = None,
    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            help="Seconds after which a measurement is not repeated; on a GPU each is repeated once at least.",
            rich_help_panel=SIZES,
        ),
    ] = 8.0,
    plan: Annotated[
        bool, typer.Option("--plan", help="Predict an epoch on many images and GPUs.", rich_help_panel=PLAN)
    ] = False,
    images: Annotated[
        list[float] | None,
        typer.Option("--images", help="Training images of the plan. Default: 1e6 and 1e7.", rich_help_panel=PLAN),
    ] = None,
    gpus: Annotated[
        list[int] | None, typer.Option("--gpus", help="GPUs of the plan. Default: 8 and 64.", rich_help_panel=PLAN)
    ] = None,
    bandwidth: Annotated[
        float,
        typer.Option("--bandwidth", help="GB/s that each process sends and receives.", rich_help_panel=PLAN),
    ] = 50.0,
    rates: Annotated[
        Path | None,
        typer.Option(
            "--rates",
            help="What `ccreid bench all --json` printed, on any machine. Default: measure here.",
            rich_help_panel=PLAN,
        ),
    ] = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Measure every stage of training here: time, memory, share of what the machine can do, and a whole epoch.

    The stages run on made images and features, with the functions that training runs. With --plan it predicts what
    many images on many GPUs would need.

    Examples: `ccreid bench step -a resnet50 -b 64`, `ccreid bench --plan --images 1e6 --gpus 64`.
    """
    from ccreid_cli.bench.base import BenchSettings, read_rows
    from ccreid_cli.bench.run import run_bench
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.recipes import load_recipe
    from ccreid_cli.engine.settings import resolve_config

    recipes = recipe or []
    if all(load_recipe(name).is_layer for name in recipes):
        recipes = ["market1501", *recipes]
    config = resolve_config(settings, {}, recipes).config
    rows = None if features is None else read_rows(features)
    name = "" if features is None else f"features of {features.name}"
    bench_settings = BenchSettings(config, num_images, batch_size, dim, queries, gallery, rows, name, growth, budget)
    reporter = make_reporter(progress)
    if plan:
        _show_plan(bench_settings, rates, images or PLAN_IMAGES, gpus or PLAN_GPUS, bandwidth * 1e9, reporter, as_json)
        return
    found = run_bench(stages or ["all"], bench_settings, reporter)
    if as_json:
        output.print_json({**found, "results": [result.as_json() for result in found["results"]]})
        return
    _show(found, config)
    if all(result.error for result in found["results"]):
        raise typer.Exit(5)


def _show(found: dict[str, Any], config: TrainConfig) -> None:
    machine = found["machine"]
    products = ", ".join(f"{rate:,.0f} GFLOP/s {name}" for name, rate in machine["matrix_product_gflops"].items())
    copy = machine["copy_gb_per_second"]
    ceilings = "; ".join(filter(None, [products and f"matrix product {products}", copy and f"copy {copy:.1f} GB/s"]))
    title = (
        f"{machine['device']} ({machine['reason']}), {plural(machine['threads'], 'thread')}, PyTorch {machine['torch']}"
    )
    columns = [
        "stage",
        "size",
        "seconds",
        "per second",
        "extra MB",
        "of ceiling",
        "baseline s",
        "times as fast",
        "also",
    ]
    output.print_table(title, columns, [_row(result) for result in found["results"]])
    if ceilings:
        output.print_line(f"ceilings measured here: {ceilings}")
    for result in found["results"]:
        if result.baseline:
            output.print_line(f"baseline of {result.stage}: {result.baseline}")
    if found["epoch"]:
        _show_epoch(found["epoch"], config)


def _row(result: StageResult) -> list[object]:
    if result.error:
        return [result.stage, result.error, *[None] * 6, ""]
    also = [f"{name} {seconds:.3f} s" for name, seconds in result.parts.items()]
    return [
        result.stage,
        result.size,
        f"{result.seconds:.3f}",
        f"{result.rate:,.0f}" if result.rate >= 100 else f"{result.rate:.1f}",
        None if result.peak_bytes is None else f"{result.peak_bytes / 1e6:,.0f}",
        None if result.ceiling_share is None else f"{100 * result.ceiling_share:.0f} % {result.ceiling}",
        None if result.baseline_seconds is None else f"{result.baseline_seconds:.3f}",
        None if result.ratio is None else f"{result.ratio:.2f}",
        "; ".join([*also, *filter(None, [result.note])]),
    ]


def _show_epoch(seconds: dict[str, float], config: TrainConfig) -> None:
    shape = f"{config.arch} {config.height}x{config.width}, {config.iters} steps of {config.batch_size}"
    names = {
        "extract": "extract, an epoch",
        "labels": "labels, an epoch",
        "train": "train, an epoch",
        "evaluate": "evaluate, once",
        "epoch": f"an epoch, evaluation every {config.eval_step}",
        "run": f"the run, {plural(config.epochs, 'epoch')}",
    }
    rows = [[names[name], f"{value:,.1f}", f"{value / 60:,.1f}"] for name, value in seconds.items()]
    output.print_table(f"predicted for {config.dataset}: {shape}", ["", "seconds", "minutes"], rows)


def _show_plan(
    settings: BenchSettings,
    rates_file: Path | None,
    images: Sequence[float],
    gpus: Sequence[int],
    bandwidth: float,
    reporter: Reporter,
    as_json: bool,
) -> None:
    from ccreid_cli.bench.plan import ASSUMPTIONS, plan_recipe, rates_from_results
    from ccreid_cli.bench.run import read_results, run_bench

    measured = (
        run_bench(["extract", "labels", "step"], settings, reporter)["results"]
        if rates_file is None
        else read_results(rates_file)
    )
    rates = rates_from_results(measured)
    plans = plan_recipe(settings.config, measured, rates, images, gpus, bandwidth)
    if as_json:
        output.print_json({"rates": vars(rates), "plans": plans, "assumptions": list(ASSUMPTIONS)})
        return
    columns = ["", *(f"{one['images']:,} img, {one['gpus']} GPU" for one in plans)]
    rows: list[list[object]] = [["batch size", *(one["batch_size"] for one in plans)]]
    rows.append(["steps", *(one["iters"] for one in plans)])
    for key, unit, scale in (
        ("bytes_per_step", "MB received in a step", 1e6),
        ("bytes_per_epoch", "GB received once an epoch", 1e9),
        ("memory_per_gpu", "GB held at once", 1e9),
        ("seconds", "seconds", 1.0),
    ):
        rows += [
            [f"{unit}: {name}", *(f"{one[key][name] / scale:,.{2 if scale == 1e9 else 1}f}" for one in plans)]
            for name in plans[0][key]
        ]
    output.print_table("predicted for each GPU", columns, rows)
    for assumption in ASSUMPTIONS:
        output.print_line(f"assumed: {assumption}")
