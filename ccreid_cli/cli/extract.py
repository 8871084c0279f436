"""Commands that use a trained model: `ccreid extract` and `ccreid search`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import data_dir_or_default, logs_dir_or_default, refuse_existing
from ccreid_cli.cli.completion import values as completion_values
from ccreid_cli.core.config import DATA

if TYPE_CHECKING:
    from ccreid_cli.inference.loading import ModelRequest

Strict = Annotated[
    bool,
    typer.Option("--strict", help="Stop at images that cannot be read, not skip them.", rich_help_panel=DATA),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("extract", rich_help_panel="Use a model")(extract)
    app.command("search", rich_help_panel="Use a model")(search)


def extract(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|DATASET",
            help="A folder of images (with all folders below it), a dataset by name, or a manifest.",
            autocompletion=completion_values.datasets,
        ),
    ],
    resume: opt.Resume = None,
    out: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Where the features go: .npz, .npy (with .txt and .json beside it) or .parquet.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = Path("features.npz"),
    split: Annotated[
        str | None,
        typer.Option("--split", help="train, query or gallery of a dataset. Default: all of it.", rich_help_panel=DATA),
    ] = None,
    force: opt.Force = False,
    strict: Strict = False,
    checkpoint: opt.Checkpoint = "last",
    pooling_type: opt.Pooling = None,
    columns: opt.Columns = None,
    data_dir: opt.DataDir = None,
    logs_dir: opt.LogsDir = None,
    height: opt.Height = None,
    width: opt.Width = None,
    resize: opt.Resize = None,
    workers: opt.Workers = None,
    batch_size: opt.ExtractBatch = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Turn images into features of unit length, with their names and the model they come from.

    `ccreid cluster`, `score` and `search` read all three forms. Ids and cameras keep their names.

    Examples: `ccreid extract crops/ --resume logs/RUN -o crops.npz`,
    `ccreid extract market1501 --split query --resume logs/RUN -o query.npz`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.files import free_bytes, write_or_keep
    from ccreid_cli.inference.embedder import embed_images, open_embedder
    from ccreid_cli.inference.embedding_file import check_form, check_image_names, files_of, write_embeddings
    from ccreid_cli.inference.image_list import list_source

    check_form(out)
    refuse_existing(force, *files_of(out))
    reporter = make_reporter(progress)
    images = list_source(source, split, data_dir_or_default(data_dir), reporter, columns=columns)
    check_image_names(out, images)
    embedder = open_embedder(
        model_request(resume, checkpoint, pooling_type),
        logs_dir=logs_dir_or_default(logs_dir),
        device=device or "auto",
        precision=precision or "auto",
        height=height,
        width=width,
        resize=resize,
        num_images=len(images),
        reporter=reporter,
    )
    if (needed := 4 * len(images) * embedder.embedding_dim) > (free := free_bytes(out.parent)):
        reporter.warning(f"{out} will need {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there.")
    start = time.perf_counter()
    content, broken = embed_images(
        embedder, images, workers=workers, batch_size=batch_size, strict=strict, reporter=reporter
    )
    seconds = time.perf_counter() - start
    write_or_keep(out, lambda path: write_embeddings(path, content))
    result = {
        "output": str(out),
        "num_images": len(content),
        "num_broken": len(broken),
        "embedding_dim": embedder.embedding_dim,
        "model": embedder.fingerprint,
        "source": embedder.source,
        "preprocess": embedder.about()["preprocess"],
        "seconds": round(seconds, 3),
        "images_per_second": round(len(images) / seconds, 1),
        "broken": broken,
    }
    if as_json:
        output.print_json(result)
        return
    skipped = f", {len(broken):,} skipped" if broken else ""
    output.print_line(f"{out}: {len(content):,} x {embedder.embedding_dim}{skipped}")


def search(
    queries: Annotated[list[Path], typer.Argument(metavar="QUERY.jpg", help="The images to search for.")],
    gallery: Annotated[
        str,
        typer.Option(
            "--gallery",
            "-g",
            rich_help_panel=DATA,
            help="Where to search: a folder of images, a feature file of `ccreid extract`, or a dataset (its gallery).",
            autocompletion=completion_values.datasets,
        ),
    ],
    resume: opt.Resume = None,
    top: Annotated[
        int, typer.Option("--top", "-k", min=1, help="How many matches to show.", rich_help_panel=opt.OUTPUT)
    ] = 10,
    index: Annotated[
        str | None,
        typer.Option(
            "--index",
            help="ivf: read a few rows of the gallery, not all, through an index beside its file, which is built the "
            "first time. Default: all are compared.",
            autocompletion=completion_values.choices("ivf"),
            rich_help_panel=DATA,
        ),
    ] = None,
    recall: Annotated[
        float,
        typer.Option(
            "--recall",
            help="With --index: share of the ten best matches that is to be found; measured and shown.",
            min=0.01,
            max=1,
            rich_help_panel=DATA,
        ),
    ] = 0.95,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Also draw the matches: a .png, .jpg or .webp file.", rich_help_panel=opt.OUTPUT),
    ] = None,
    force: opt.Force = False,
    strict: Strict = False,
    checkpoint: opt.Checkpoint = "last",
    pooling_type: opt.Pooling = None,
    columns: opt.Columns = None,
    data_dir: opt.DataDir = None,
    logs_dir: opt.LogsDir = None,
    height: opt.Height = None,
    width: opt.Width = None,
    resize: opt.Resize = None,
    workers: opt.Workers = None,
    batch_size: opt.ExtractBatch = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Find the gallery images most similar to each query, by the cosine of their features.

    A gallery that is searched often is extracted once: as .npy it is read in place, however large it is.

    Examples: `ccreid search query.jpg --gallery crops/ --resume logs/RUN --sheet matches.png`,
    `ccreid search a.jpg b.jpg -g crops.npz --resume logs/RUN --top 5 --json`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.side_tasks import side_task
    from ccreid_cli.data.catalog import CATALOG
    from ccreid_cli.images.sheet import check_sheet
    from ccreid_cli.inference.embedder import embed_images, open_embedder
    from ccreid_cli.inference.image_list import list_source
    from ccreid_cli.inference.search import best_matches, matches_as_json, open_gallery, search_sheet
    from ccreid_cli.inference.search_index import check_index, open_index

    check_index(index, gallery, is_features=Path(gallery).suffix.lower() in {".npz", ".npy", ".parquet"})
    if sheet:
        check_sheet(sheet)
        refuse_existing(force, sheet)
    reporter = make_reporter(progress)
    images = None
    if Path(gallery).suffix.lower() not in {".npz", ".npy", ".parquet"}:
        split = "gallery" if gallery in CATALOG else None
        images = list_source(gallery, split, data_dir_or_default(data_dir), reporter, columns=columns)
    embedder = open_embedder(
        model_request(resume, checkpoint, pooling_type),
        logs_dir=logs_dir_or_default(logs_dir),
        device=device or "auto",
        precision=precision or "auto",
        height=height,
        width=width,
        resize=resize,
        num_images=len(images or ()),
        reporter=reporter,
    )
    query_features = embedder.embed(queries, batch_size=batch_size)
    if images is None:
        content = open_gallery(Path(gallery), embedder, reporter, all_rows=index is None)
    else:
        content, _ = embed_images(
            embedder, images, workers=workers, batch_size=batch_size, strict=strict, reporter=reporter
        )
    opened = None if index is None else open_index(Path(gallery), content, recall, reporter)
    start = time.perf_counter()
    matches = (
        opened.best_matches(query_features, top) if opened else best_matches(query_features, content.features, top)
    )
    seconds = time.perf_counter() - start
    found = [matches_as_json(str(query), row, matches, content.images) for row, query in enumerate(queries)]
    result = {
        "gallery": gallery,
        "num_gallery": len(content),
        "model": embedder.fingerprint,
        "source": embedder.source,
        "search_seconds": round(seconds, 4),
        **({"index": index, "index_recall": round(opened.about.recall, 4)} if opened else {}),
        "queries": found,
    }
    if as_json:
        output.print_json(result)
    else:
        _show(found)
    if sheet:
        with side_task(f"the contact sheet {sheet} was not drawn", reporter):
            search_sheet(found, sheet, reporter=reporter)
            reporter.message(f"contact sheet: {sheet}")


def model_request(resume: str | None, checkpoint: str, pooling_type: str | None) -> ModelRequest:
    """Return which network the command line means.

    Raises:
        UsageError: None is named.
    """
    from ccreid_cli.core.errors import UsageError
    from ccreid_cli.inference.loading import ModelRequest

    if resume is None:
        raise UsageError(
            "no trained model is named.", "Name a run or a checkpoint with --resume; see `ccreid runs list`."
        )
    return ModelRequest(resume, checkpoint, pooling_type=pooling_type)


def _show(found: Sequence[Mapping[str, Any]]) -> None:
    """Show one table per query."""
    for query in found:
        with_ids = any("id" in match for match in query["matches"])
        rows = []
        for match in query["matches"]:
            known = [match["id"], match["camera"]] if with_ids else []
            rows.append([str(match["rank"]), f"{match['similarity']:.4f}", *known, match["name"]])
        headers = ["rank", "similarity", *(["id", "camera"] if with_ids else []), "image"]
        output.print_line(query["query"])
        output.print_table("", headers, rows)
