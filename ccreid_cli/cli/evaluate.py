"""`ccreid eval`: score a trained or untrained network on a dataset."""

from __future__ import annotations

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import (
    data_dir_or_default,
    named_data_dir,
    processes,
    show_dataset,
    started_processes,
)
from ccreid_cli.cli.model_use import ModelUse


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("eval", rich_help_panel="Main")(evaluate)


def evaluate(
    use: ModelUse,
    dataset: opt.Dataset = None,
    columns: opt.Columns = None,
    pattern: opt.Pattern = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    features: opt.Features = None,
    dropout: opt.Dropout = None,
    data_dir: opt.DataDir = None,
    rerank: opt.Rerank = False,
    tracklets: opt.Tracklets = False,
    camera_norm: opt.CameraNorm = False,
    camera_batch_norm: opt.CameraBatchNorm = False,
    seed: opt.Seed = None,
    gpus: opt.GpusInUse = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Score a model on a dataset's query and gallery: mAP, CMC and mINP.

    With --resume RUN the run's own dataset, architecture and input size are used unless flags say otherwise. Without
    --resume the untrained network is scored: the direct-transfer baseline.

    Examples: `ccreid eval --resume logs/RUN`, `ccreid eval -d veri -a resnet_ibn50a --resume model_best.pth.tar`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.errors import UsageError
    from ccreid_cli.inference.evaluate import score_model
    from ccreid_cli.inference.loading import ModelRequest, load_network

    if use.resume is None and dataset is None:
        raise UsageError("no dataset is named.", "Name one with -d, or a trained run with --resume.")
    if started_processes(gpus, use.device):
        return
    data_dir = named_data_dir(data_dir)
    reporter = make_reporter(progress)
    request = ModelRequest(use.resume, use.checkpoint, arch, use.pooling_type, features, dropout, weights, seed or 1)
    with processes(use.device) as (group, own_device):
        loaded = load_network(request, use.logs, own_device, reporter)
        trained_on = loaded.trained_on()
        if dataset is None and trained_on is None:
            raise UsageError(f"{loaded.source} does not say what it was trained on.", "Name a dataset with -d.")
        if dataset is None and trained_on is not None:
            dataset, trained_in = trained_on
            # A run is scored where it was trained, unless a flag or the environment names another place.
            data_dir = data_dir or trained_in
            columns = columns or loaded.settings().get("columns")
            pattern = pattern or loaded.settings().get("pattern")
        result = score_model(
            loaded,
            str(dataset),
            data_dir=data_dir_or_default(data_dir),
            columns=columns,
            height=use.height,
            width=use.width,
            resize=use.resize,
            batch_size=use.batch_size,
            workers=4 if use.workers is None else use.workers,
            precision=use.precision or "auto",
            rerank=rerank,
            tracklets=tracklets,
            pattern=pattern,
            camera_norm=camera_norm,
            camera_batch_norm=camera_batch_norm,
            group=group if group.world > 1 else None,
            reporter=reporter,
            on_dataset=show_dataset if group.is_main else None,
        )
        if not group.is_main:
            return
    if as_json:
        cameras = {"camera_norm": camera_norm, "camera_batch_norm": camera_batch_norm}
        output.print_json({**result, "rerank": rerank, **cameras, "tracklets": tracklets})
        return
    how = output.how_scored(rerank, camera_norm, camera_batch_norm)
    label = how + (use.checkpoint if use.resume else "untrained")
    output.print_evaluations(f"{loaded.source}", {label: result})
