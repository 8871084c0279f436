"""`ccreid identify`: which images show the same person, vehicle or animal."""

from __future__ import annotations

import time
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
from ccreid_cli.cli.extract import Strict
from ccreid_cli.cli.model_use import ModelUse
from ccreid_cli.core.config import DATA, LABELS

if TYPE_CHECKING:
    from ccreid_cli.core.reporter import Reporter
    from ccreid_cli.inference.identify import Gathered, KnownImages
    from ccreid_cli.inference.identities import Identities
    from ccreid_cli.inference.image_list import ImageList


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("identify", rich_help_panel="Main")(identify)


def identify(
    settings: Annotated[
        dict[str, Any], opt.settings_of("cluster", "eps", "k1", "k2", "min_samples", "neighbors", "recall")
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER|DATASET|FILE",
            help="A folder of images (with all folders below it), a dataset by name, a manifest, a feature file or "
            "folder of `ccreid extract`, or image files.",
            autocompletion=completion_values.datasets,
        ),
    ],
    use: ModelUse,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where the lines go: .csv, which -d reads again, or .json. Default: CSV on stdout.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    folders: Annotated[
        Path | None,
        typer.Option(
            "--folders",
            help="Also make this folder, with one folder per identity in it. Default: none.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    symlink: Annotated[
        bool, typer.Option("--symlink", help="Fill the folders by symbolic links.", rich_help_panel=opt.OUTPUT)
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Fill the folders by copies.", rich_help_panel=opt.OUTPUT)
    ] = False,
    known: Annotated[
        str | None,
        typer.Option(
            "--known",
            help="Images whose identities are known: what identify wrote before, or any other manifest, folder or "
            "dataset with identities. Default: none.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    false_match_rate: Annotated[
        float,
        typer.Option(
            "--false-match-rate",
            help="With --known: share of strangers that may be taken for a known identity. Default: 0.001.",
            min=0,
            max=1,
            rich_help_panel=LABELS,
        ),
    ] = 0.001,
    split: Annotated[
        str | None,
        typer.Option("--split", help="train, query or gallery of a dataset. Default: all of it.", rich_help_panel=DATA),
    ] = None,
    force: opt.Force = False,
    strict: Strict = False,
    columns: opt.Columns = None,
    pattern: opt.Pattern = None,
    data_dir: opt.DataDir = None,
    gpus: opt.GpusInUse = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Say which images show the same person, vehicle or animal: one line per image, with a name and a confidence.

    Images are clustered by the settings of the run; those in no cluster have an empty id. With --known, identities that
    are known keep their names; an image between known and new is unsure: its id is empty, its confidence below zero.
    What is interrupted goes on where it was when the command is repeated.

    Examples: `ccreid identify crops/ --resume logs/RUN -o identities.csv`,
    `ccreid identify crops/ --resume logs/RUN --folders out/`,
    `ccreid identify new-crops/ --resume logs/RUN --known identities.csv -o new.csv`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.errors import UsageError
    from ccreid_cli.core.files import write_or_keep
    from ccreid_cli.engine.settings import label_settings
    from ccreid_cli.inference.embedding_file import read_embeddings
    from ccreid_cli.inference.identify import gather, quality_of, rows_of
    from ccreid_cli.inference.identify import identify as identify_images
    from ccreid_cli.inference.identity_file import (
        check_identity_form,
        check_paths,
        identities_as_csv,
        write_identities,
    )
    from ccreid_cli.inference.identity_folders import COPY, HARD, SYMBOLIC, check_folder, write_folders
    from ccreid_cli.inference.image_list import ImageList, list_sources
    from ccreid_cli.inference.shard_index import recorded_precision, remove_shards
    from ccreid_cli.inference.sharded_extraction import Extraction
    from ccreid_cli.inference.stored_arrays import holds_features
    from ccreid_cli.machine.device import resolve_device
    from ccreid_cli.machine.distributed import Group
    from ccreid_cli.pseudo_labels.clustering import ClusterSettings

    if symlink and copy:
        raise UsageError("--symlink and --copy exclude each other.", "Give one of them, or none for hard links.")
    if (symlink or copy) and folders is None:
        raise UsageError("--symlink and --copy are for --folders.", "Name a folder with --folders.")
    if started_processes(gpus, use.device):
        return
    reporter = make_reporter(progress)
    places = data_dir_or_default(data_dir)
    is_features = len(sources) == 1 and holds_features(Path(sources[0]))
    start = time.perf_counter()

    def check_results() -> None:
        if out is not None:
            check_identity_form(out)
            refuse_existing(force, out)
        if folders is not None:
            check_folder(folders)

    def list_images() -> ImageList:
        return list_sources(sources, split, places, reporter, columns=columns, pattern=pattern)

    with processes(use.device) as (group, own_device):
        group.on_main(check_results)
        source = read_embeddings(Path(sources[0])) if is_features else group.on_main(list_images)
        images = source if isinstance(source, ImageList) else source.images
        if out.suffix.lower() == ".csv" if out else not (as_json or folders):
            check_paths(images.names)
        known_images = group.on_main(lambda: _known(known, places, reporter))
        kept = place_of_shards(out or folders, "identify")
        embedder = None
        if use.resume is not None or not is_features:
            embedder = use.open(
                0 if is_features else len(images),
                reporter,
                device=own_device,
                precision=recorded_precision(kept),
                group=group,
            )
        config = label_settings(embedder.loaded.settings() if embedder else {}, settings)
        extraction = Extraction(embedder, kept, use.batch_size, use.workers, strict, group)
        gathered = gather(source, known_images, extraction, Path(sources[0]), reporter)
        own = embedder.device if embedder else resolve_device(use.device or "auto").device
        found = identify_images(
            gathered,
            known_images,
            ClusterSettings.of(config),
            false_match_rate=false_match_rate,
            group=group if group.world > 1 else Group(device=own),
            reporter=reporter,
        )
        if not group.is_main:
            return
    rows = rows_of(gathered, found, known_images, split, out.parent if out else Path())
    if out is not None:
        write_or_keep(out, lambda path: write_identities(path, rows))
    made = None
    if folders is not None:
        files = [file for file, asked in zip(gathered.content.images.paths, gathered.asked, strict=True) if asked]
        how = SYMBOLIC if symlink else COPY if copy else HARD
        made = write_folders(folders, files, [row.id for row in rows], how, reporter)
    remove_shards(kept)
    summary = _summary(gathered, found) | quality_of(gathered, found, reporter)
    _say(reporter, summary, out, folders, made)
    if as_json:
        where = {"output": out and str(out), "folders": folders and str(folders), "folders_hold": made}
        listed = {} if out else {"images": [row.as_json() for row in rows]}
        seconds = round(time.perf_counter() - start, 3)
        output.print_json({**where, **summary, "seconds": seconds, "broken": gathered.broken, **listed})
    elif out is None and folders is None:
        output.print_text(identities_as_csv(rows))


def _known(source: str | None, data_dir: Path, reporter: Reporter) -> KnownImages | None:
    """Read the images of ``--known``."""
    from ccreid_cli.core.errors import DataError
    from ccreid_cli.inference.identify import KnownImages
    from ccreid_cli.inference.image_list import list_labelled

    if source is None:
        return None
    images = list_labelled(source, data_dir, reporter)
    if not any(images.ids or ()):
        raise DataError(f"{source} names no identity.", "--known takes what `ccreid identify` wrote, or a manifest.")
    return KnownImages.of(images)


def _summary(gathered: Gathered, found: Identities) -> dict[str, Any]:
    asked = [name for name, is_asked in zip(found.names, gathered.asked, strict=True) if is_asked]
    summary = {
        "num_images": len(asked),
        "num_broken": len(gathered.broken),
        "num_identities": len(set(asked) - {""}),
        "num_new_identities": found.num_new,
        "num_unsure": found.num_unsure,
        "num_outliers": asked.count("") - found.num_unsure,
    }
    return summary | ({"thresholds": found.thresholds.as_json()} if found.thresholds else {})


def _say(reporter: Reporter, summary: dict[str, Any], out: Path | None, folders: Path | None, made: str | None) -> None:
    """Say what was found, and where it is."""
    from ccreid_cli.core.words import plural

    text = (
        f"{plural(summary['num_images'], 'image')}: {plural(summary['num_identities'], 'identity', 'identities')} "
        f"({summary['num_new_identities']:,} new), {summary['num_outliers']:,} images in none"
    )
    if "thresholds" in summary:
        limits = summary["thresholds"]
        reporter.message(
            f"known from a similarity above {limits['accept']:.3f} (false matches: {limits['false_match_rate']:.2%} of "
            f"{limits['num_known_images']:,} known images), new below {limits['refuse']:.3f}, unsure between"
        )
        text += f", {summary['num_unsure']:,} unsure"
    reporter.message(text)
    if "purity" in summary:
        reporter.message(
            f"beside the dataset's own identities: ARI {summary['ari']:.3f}, NMI {summary['nmi']:.3f}, "
            f"purity {summary['purity']:.3f}"
        )
    if out is not None:
        reporter.message(f"identities: {out}")
    if folders is not None:
        reporter.message(f"a folder per identity: {folders} ({made})")
