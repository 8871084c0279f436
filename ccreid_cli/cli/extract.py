"""Commands that use a trained model: `ccreid extract` and `ccreid search`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import (
    data_dir_or_default,
    place_of_shards,
    processes,
    refuse_existing,
    started_processes,
)
from ccreid_cli.cli.completion import values as completion_values
from ccreid_cli.cli.model_use import ModelUse
from ccreid_cli.core.config import DATA

if TYPE_CHECKING:
    from ccreid_cli.core.reporter import Reporter
    from ccreid_cli.inference.image_parts import Parts
    from ccreid_cli.inference.sharded_extraction import Extraction

Strict = Annotated[
    bool,
    typer.Option("--strict", help="Stop at images that cannot be read, not skip them.", rich_help_panel=DATA),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("extract", rich_help_panel="Use a model")(extract)
    app.command("search", rich_help_panel="Use a model")(search)


def extract(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER|DATASET|LIST|TAR",
            help="A folder of images (with all folders below it), a dataset by name, a manifest, image files, a list "
            "(.txt: a path a line; .parquet: a column path), or tars. Addresses (s3://, https://) need ccreid[remote].",
            autocompletion=completion_values.datasets,
        ),
    ],
    use: ModelUse,
    out: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Where the features go: .npz, .npy (with .txt and .json beside it), .parquet, or FOLDER/ for shards.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = "features.npz",
    shard_size: Annotated[
        int | None,
        typer.Option(
            "--shard-size", help="Images in a shard of FOLDER/. Default: 8192.", min=1, rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="train, query or gallery of a dataset. Default: all of it.", rich_help_panel=DATA),
    ] = None,
    force: opt.Force = False,
    strict: Strict = False,
    columns: opt.Columns = None,
    data_dir: opt.DataDir = None,
    gpus: opt.GpusInUse = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Turn images into features of unit length, with their names and the model they come from.

    All commands that read features read all four forms. Ids and cameras keep their names. What is interrupted goes on
    where it was when the command is repeated.

    Examples: `ccreid extract crops/ --resume logs/RUN -o crops.npz`,
    `ccreid extract market1501 --split query --resume logs/RUN -o query.npz`,
    `ccreid extract list.parquet --resume logs/RUN -o features/ --gpus 8`,
    `ccreid extract shards/{000000..000009}.tar --resume logs/RUN -o features/`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.errors import UsageError
    from ccreid_cli.inference.image_parts import parts_of
    from ccreid_cli.inference.shard_index import recorded_precision
    from ccreid_cli.inference.sharded_extraction import KEPT_SIZE, SHARD_SIZE, Extraction

    target = Path(out)
    to_folder = out.endswith("/") or target.is_dir() or (shard_size is not None and not target.suffix)
    if shard_size is not None and not to_folder:
        raise UsageError(f"--shard-size: {out} is one file.", "Name a folder, as in -o features/.")
    folder = target if to_folder else place_of_shards(target)
    if started_processes(gpus, use.device):
        return
    reporter = make_reporter(progress)
    with processes(use.device) as (group, own_device):
        group.on_main(lambda: _check_output(target, to_folder, force))
        places, usual_size = data_dir_or_default(data_dir), SHARD_SIZE if to_folder else KEPT_SIZE
        parts = group.on_main(
            lambda: parts_of(sources, split, places, reporter, size=shard_size, usual_size=usual_size, columns=columns)
        )
        if not to_folder:
            _check_names(target, parts)
        embedder = use.open(
            parts.num_images or len(parts) * SHARD_SIZE,
            reporter,
            device=own_device,
            precision=None if force and to_folder else recorded_precision(folder),
            group=group,
        )
        _warn_of_space(target, 4 * parts.num_images * embedder.embedding_dim, reporter)
        how = Extraction(embedder, folder, use.batch_size, use.workers, strict, group)
        start = time.perf_counter()
        count, broken = _extract(parts, how, target, to_folder, force, reporter)
        seconds = time.perf_counter() - start
        if not group.is_main:
            return
    result = {
        "output": out,
        "num_images": count,
        "num_broken": len(broken),
        "embedding_dim": embedder.embedding_dim,
        "model": embedder.fingerprint,
        "source": embedder.source,
        "preprocess": embedder.about()["preprocess"],
        "seconds": round(seconds, 3),
        "images_per_second": round((count + len(broken)) / seconds, 1),
        "broken": broken,
    }
    if as_json:
        output.print_json(result)
        return
    skipped = f", {len(broken):,} skipped" if broken else ""
    output.print_line(f"{out}: {count:,} x {embedder.embedding_dim}{skipped}")


def _check_output(target: Path, to_folder: bool, force: bool) -> None:
    """Refuse, before any work is done, a result that could not be written or would replace something."""
    from ccreid_cli.inference.embedding_file import check_form, files_of
    from ccreid_cli.inference.shard_index import check_feature_folder

    if to_folder:
        check_feature_folder(target)
        return
    check_form(target)
    refuse_existing(force, *files_of(target))


def _check_names(target: Path, parts: Parts) -> None:
    """Refuse names that the form of the result cannot hold, as far as they are known."""
    from ccreid_cli.inference.embedding_file import check_image_names
    from ccreid_cli.inference.image_parts import ListParts

    if isinstance(parts, ListParts):
        check_image_names(target, parts.images)


def _warn_of_space(target: Path, needed: int, reporter: Reporter) -> None:
    from ccreid_cli.core.files import free_bytes

    if needed > (free := free_bytes(target.parent)):
        reporter.warning(f"{target} will need {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there.")


def _extract(
    parts: Parts, how: Extraction, target: Path, to_folder: bool, force: bool, reporter: Reporter
) -> tuple[int, list[dict[str, str]]]:
    """Write the features where they belong; return how many there are, and what was left out."""
    from ccreid_cli.core.files import write_or_keep
    from ccreid_cli.inference.embedding_file import write_embeddings
    from ccreid_cli.inference.shard_index import remove_shards
    from ccreid_cli.inference.sharded_extraction import embed_in_shards, write_shards

    if to_folder:
        return write_shards(parts, how, reporter, replace=force)
    content, broken = embed_in_shards(parts, how, reporter, everywhere=False)
    if how.group.is_main:
        write_or_keep(target, lambda path: write_embeddings(path, content))
        if how.folder:
            remove_shards(how.folder)
    return len(content), broken


def search(
    queries: Annotated[list[Path], typer.Argument(metavar="QUERY.jpg", help="The images to search for.")],
    gallery: Annotated[
        str,
        typer.Option(
            "--gallery",
            "-g",
            rich_help_panel=DATA,
            help="Where to search: a folder of images, what `ccreid extract` wrote or takes, or a dataset (its "
            "gallery).",
            autocompletion=completion_values.datasets,
        ),
    ],
    use: ModelUse,
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
    columns: opt.Columns = None,
    data_dir: opt.DataDir = None,
    gpus: opt.GpusInUse = None,
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
    from ccreid_cli.inference.image_parts import parts_of
    from ccreid_cli.inference.search import best_matches, matches_as_json, open_gallery, search_sheet
    from ccreid_cli.inference.search_index import check_index, open_index
    from ccreid_cli.inference.shard_index import remove_shards
    from ccreid_cli.inference.sharded_extraction import KEPT_SIZE, Extraction, embed_in_shards
    from ccreid_cli.inference.stored_arrays import holds_features

    check_index(index, gallery, is_features=holds_features(Path(gallery)))
    if started_processes(gpus, use.device):
        return
    if sheet:
        check_sheet(sheet)
        refuse_existing(force, sheet)
    reporter = make_reporter(progress)
    with processes(use.device) as (group, own_device):
        parts: Parts | None = None
        if not holds_features(Path(gallery)):
            split, places = "gallery" if gallery in CATALOG else None, data_dir_or_default(data_dir)
            parts = group.on_main(
                lambda: parts_of([gallery], split, places, reporter, usual_size=KEPT_SIZE, columns=columns)
            )
        embedder = use.open(parts.num_images if parts else 0, reporter, device=own_device, group=group)
        query_features = group.on_main(lambda: embedder.embed(queries, batch_size=use.batch_size))
        if parts is not None:
            # Alone, nothing need be kept: what is found is shown, and gone.
            folder = place_of_shards(None, "search") if group.world > 1 else None
            how = Extraction(embedder, folder, use.batch_size, use.workers, strict, group)
            content, _ = embed_in_shards(parts, how, reporter, everywhere=False)
            if folder and group.is_main:
                remove_shards(folder)
        if not group.is_main:
            return
        if parts is None:
            content = open_gallery(Path(gallery), embedder, reporter, all_rows=index is None)
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
