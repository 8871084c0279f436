"""Commands on feature matrices: `ccreid cluster` and `ccreid score`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import refuse_existing

if TYPE_CHECKING:
    from ccreid_cli.core.reporter import Reporter
    from ccreid_cli.pseudo_labels.choosing_eps import EpsChoice


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("cluster", rich_help_panel="Features")(cluster_features)
    app.command("score", rich_help_panel="Features")(score_features)


def cluster_features(
    settings: Annotated[
        dict[str, Any], opt.settings_of("cluster", "eps", "k1", "k2", "min_samples", "neighbors", "recall")
    ],
    file: Annotated[
        Path,
        typer.Argument(
            help="A feature file: .npz with `features` (N x D), .npy or .parquet, or a folder of `ccreid extract`; "
            "`ids` (N), if there, only rate the labels."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where the labels go: .npz with `labels`, or .npy; -1 is an outlier.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    force: opt.Force = False,
    device: opt.Device = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Give pseudo-labels to any feature matrix: k-reciprocal Jaccard distance, then DBSCAN or Infomap.

    Rows are L2-normalised first. Examples: `ccreid cluster features.npz --eps 0.6 -o labels.npz`, `ccreid cluster
    features.npz --eps auto` (shows what each eps gives). Under torchrun each process reads and holds its share of the
    rows alone; the labels are the same.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.checking import validate
    from ccreid_cli.core.errors import UsageError
    from ccreid_cli.core.files import write_or_keep
    from ccreid_cli.core.names import number_names
    from ccreid_cli.core.side_tasks import side_task
    from ccreid_cli.core.words import plural
    from ccreid_cli.engine.settings import brought_along, check_names
    from ccreid_cli.inference.feature_file import check_labels_form, names_of_rows, write_labels
    from ccreid_cli.inference.feature_rows import count_rows, read_unit_rows
    from ccreid_cli.inference.stored_arrays import load_arrays
    from ccreid_cli.machine.device import resolve_device
    from ccreid_cli.machine.distributed import process_group
    from ccreid_cli.pseudo_labels.clustering import ClusterSettings, label_quality
    from ccreid_cli.pseudo_labels.pipeline import pseudo_labels

    if out is not None:
        check_labels_form(out)
        refuse_existing(force, out)
        if out.exists() and file.exists() and out.samefile(file):
            raise UsageError(f"-o {out} would replace the features by their labels.", "Choose another name.")
    config = validate({**brought_along("cluster", settings.get("cluster", "dbscan")), **settings}, "settings")
    check_names(config)
    choice = resolve_device(device or "auto")
    with process_group(choice.device) as group:
        reporter = make_reporter(progress)
        total = count_rows(file)
        named = load_arrays(file, ("ids",), in_place=True)
        ids = names_of_rows(named, "ids", total) if "ids" in named.arrays and group.is_main else None
        features = read_unit_rows(file, *group.bounds(total))
        start = time.perf_counter()
        found = pseudo_labels(features, ClusterSettings.of(config), total=total, group=group, reporter=reporter)
        del features
    if not group.is_main:
        return
    reporter.message(
        f"{config.cluster}: {plural(found.num_clusters, 'cluster')}, "
        f"{found.num_outliers:,} of {len(found.labels):,} images in none"
    )
    seconds = time.perf_counter() - start
    choice_of_eps = found.eps_choice.as_json() if found.eps_choice else {}
    approximation = found.approximation.as_json() if found.approximation else {}
    if found.eps_choice:
        _say_choice(found.eps_choice, reporter)
    if out is not None:
        write_or_keep(out, lambda path: write_labels(path, found.labels))
    counts = {
        "num_samples": len(found.labels),
        "num_clusters": found.num_clusters,
        "num_outliers": found.num_outliers,
        "seconds": round(seconds, 3),
    }
    quality: dict[str, float] = {}
    if ids is not None:
        with side_task("the labels were not compared with `ids`", reporter):
            quality = label_quality(found.labels, *number_names(ids))
    if as_json:
        where = None if out is None else str(out)
        output.print_json(
            {"output": where, **counts, **choice_of_eps, **approximation, "stages": found.seconds, **quality}
        )
        return
    rows = [
        [name, f"{value:,}" if isinstance(value, int) else f"{value:.3f}"]
        for name, value in {**counts, **quality}.items()
    ]
    output.print_table("", ["", ""], rows)
    output.say("labels were not written; add -o labels.npz." if out is None else f"labels: {out}")


def _say_choice(choice: EpsChoice, reporter: Reporter) -> None:
    """Say what each value of eps gives, and which was chosen and why."""
    reporter.message("  eps    clusters   outliers   silhouette   smoothed")
    for trial in choice.trials:
        mark = "  <- chosen" if trial.eps == choice.eps else ""
        reporter.message(
            f"{trial.eps:.3f}  {trial.num_clusters:>10,} {trial.num_outliers:>10,} {trial.silhouette:>12.3f} "
            f"{trial.score:>10.3f}{mark}"
        )
    reporter.message(choice.why())


def score_features(
    query: Annotated[Path, typer.Option("--query", "-q", help="Query features, with ids and cameras.")],
    gallery: Annotated[Path, typer.Option("--gallery", "-g", help="Gallery features, likewise.")],
    rerank: opt.Rerank = False,
    camera_norm: opt.CameraNorm = False,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Score any features: mAP, CMC and mINP.

    Files are .npz (`features`, `ids`, `cams`), .npy with a .csv beside it (columns id, camera; a line per row),
    .parquet (feature, id, camera), or what `ccreid extract` writes. Ids and cameras are compared as they are written;
    -1 or nothing means none. Rows are L2-normalised first.

    Example: `ccreid score --query q.npz --gallery g.npz --json`.
    """
    import torch

    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.engine.retrieval_scores import evaluate_features
    from ccreid_cli.inference.scored_pair import read_scored_pair
    from ccreid_cli.machine.device import resolve_device
    from ccreid_cli.pseudo_labels.cameras import normalize_pair_by_camera

    queries, entries = read_scored_pair(query, gallery, make_reporter())
    rows, others = queries.features, entries.features
    if camera_norm:
        pair = normalize_pair_by_camera(torch.from_numpy(rows), queries.cams, torch.from_numpy(others), entries.cams)
        rows, others = (side.numpy() for side in pair)
    evaluation = evaluate_features(
        rows,
        queries.ids,
        queries.cams,
        others,
        entries.ids,
        entries.cams,
        device=resolve_device(device or "auto").device,
        rerank=rerank,
    )
    if as_json:
        left_out = {"num_queries_without_id": queries.num_left_out, "num_gallery_without_id": entries.num_left_out}
        output.print_json(evaluation.as_json() | left_out | {"rerank": rerank, "camera_norm": camera_norm})
        return
    output.print_evaluations("", {output.how_scored(rerank, camera_norm) + "features": evaluation.as_json()})
