"""`ccreid data`: get datasets, check them, look at them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import data_dir_or_default, refuse_existing
from ccreid_cli.cli.completion import values as completion_values
from ccreid_cli.core.words import plural

if TYPE_CHECKING:
    from ccreid_cli.data.catalog import DatasetInfo
    from ccreid_cli.data.install import BundleReport
    from ccreid_cli.data.statistics import DatasetStatistics

data_app = typer.Typer(help="List, fetch, verify and show datasets.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        help="Dataset. Example: market1501", autocompletion=completion_values.rows("dataset", "all"), show_default=False
    ),
]
Place = Annotated[
    str,
    typer.Argument(
        help="Dataset, or a path to own images.", autocompletion=completion_values.datasets, show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(data_app, name="data", rich_help_panel="Data and weights")


def _info(name: str) -> DatasetInfo:
    from ccreid_cli.core.components import find_row
    from ccreid_cli.data.catalog import CATALOG

    return find_row(CATALOG, "dataset", name)


@data_app.command("list")
def list_datasets(data_dir: opt.DataDir = None, as_json: opt.Json = False) -> None:
    """List datasets: what is on disk, how large they are, how to get them. Example: `ccreid data list`."""
    from ccreid_cli.data.catalog import CATALOG
    from ccreid_cli.data.reading import dataset_state

    folder = data_dir_or_default(data_dir)
    found = [(info, dataset_state(info, folder)) for info in CATALOG.values()]
    if as_json:
        output.print_json({"data_dir": str(folder), "datasets": [_as_json(info, state) for info, state in found]})
        return
    rows = []
    for info, state in found:
        images = " / ".join("?" if counts.num_images is None else f"{counts.num_images:,}" for counts in info.counts)
        cameras = len(info.cameras) if info.cameras is not None else None
        size = None if info.archive_size is None else f"{info.archive_size / 1e6:,.0f} MB"
        ids = " / ".join("?" if counts.num_ids is None else f"{counts.num_ids:,}" for counts in info.counts[:2])
        rows.append([info.name, state.state, images, ids, cameras, size, info.policy.value, info.homepage or None])
    columns = ["dataset", "on disk", "train / query / gallery images", "train / query ids", "cameras", "archive"]
    columns += ["terms", "from"]
    output.print_table("", columns, rows)
    output.say(f"data directory: {folder}. `ccreid data fetch NAME` gets one; `ccreid data info NAME` tells more.")


def _as_json(info: DatasetInfo, state: Any) -> dict[str, Any]:
    splits = ("train", "query", "gallery")
    return {
        **asdict(state),
        "title": info.title,
        "published": {
            split: {"images": counts.num_images, "ids": counts.num_ids}
            for split, counts in zip(splits, info.counts, strict=True)
        },
        "cameras": len(info.cameras) if info.cameras is not None else None,
        "archive_bytes": info.archive_size,
        "policy": info.policy.value,
        "terms": info.terms,
        "homepage": info.homepage,
        "sources": [source.url for source in info.sources],
    }


@data_app.command("fetch")
def fetch(
    name: Name,
    data_dir: opt.DataDir = None,
    url: Annotated[str | None, typer.Option("--url", help="Download from here instead of the known sources.")] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Use this archive (.zip, .tar, .tar.gz, .tar.bz2); no network.")
    ] = None,
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="Keep what was downloaded.")] = False,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Accept the authors' terms without being asked.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a dataset that is there, once the new one is complete and differs."),
    ] = False,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Download a dataset (or `all`: the official bundle of five), check it and lay it out.

    Examples: `ccreid data fetch market1501`, `ccreid data fetch veri --archive VeRi_with_plate.zip`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.data.catalog import BUNDLE_NAMES, CATALOG
    from ccreid_cli.data.install import install_bundle, install_dataset

    folder = data_dir_or_default(data_dir)
    how: dict[str, Any] = {"archive": archive, "url": url, "keep_archive": keep_archive, "force": force}
    how["reporter"] = make_reporter(progress)
    if name == "all":
        accepted = _accept([CATALOG[member] for member in BUNDLE_NAMES], folder, accept_terms)
        _show_bundle(install_bundle(folder, accepted=accepted, **how), as_json)
        return
    info = _info(name)
    root = install_dataset(info, folder, accepted=_accept([info], folder, accept_terms), **how)
    if as_json:
        output.print_json({"name": name, "root": str(root)})
        return
    output.say(f"{name} is in {root}")
    output.say(f"next: ccreid train -d {name}" + (f" --data-dir {folder}" if data_dir else ""))


def _show_bundle(report: BundleReport, as_json: bool) -> None:
    from ccreid_cli.core.errors import DataError

    if as_json:
        output.print_json(asdict(report))
    else:
        rows = [[name, str(root)] for name, root in report.roots.items()]
        output.print_table(
            "", ["dataset", "where, or why not"], rows + [list(item) for item in report.failures.items()]
        )
    if report.failures:
        raise DataError(f"{len(report.failures)} of the datasets could not be laid out: {', '.join(report.failures)}.")


def _accept(infos: list[DatasetInfo], folder: Path, accept_terms: bool) -> bool:
    """Show the terms of what is not on disk yet; ask on a terminal, unless they are accepted already."""
    from ccreid_cli.data.catalog import Policy
    from ccreid_cli.data.reading import dataset_state

    wanted = [info for info in infos if info.policy is not Policy.MADE]
    wanted = [info for info in wanted if dataset_state(info, folder).state != "present"]
    for info in wanted:
        output.say(f"{info.title} ({info.policy.value}): {info.terms}")
        output.say(f"  {info.homepage}")
    if accept_terms or not wanted:
        return True
    return output.ask("Do you accept these terms?")


@data_app.command("verify")
def verify(
    name: Place,
    columns: opt.Columns = None,
    data_dir: opt.DataDir = None,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every image.")] = False,
    workers: opt.Workers = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Check a dataset: published counts, disjoint identities, cameras, and that every image decodes.

    Exit code 3 when a check fails. Example: `ccreid data verify market1501 --decode`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.errors import DataError
    from ccreid_cli.data.verify import verify_dataset

    report = verify_dataset(
        name,
        data_dir_or_default(data_dir),
        columns=columns,
        decode=decode,
        workers=workers or 4,
        reporter=make_reporter(progress),
    )
    if as_json:
        output.print_json(report.as_json())
    else:
        rows = [["ok" if check.passed else "FAILED", check.name, check.detail] for check in report.checks]
        output.print_table(f"{report.name}: {report.root}", ["", "check", "found"], rows)
        for image in report.broken[:20]:
            output.warn(f"{image.path}: {image.reason}")
        if decode:
            rate = f"{report.seconds:.1f} s, {report.images_per_second:,.0f} images/s"
            output.say(f"decoded {plural(report.num_decoded, 'image')} in {rate}; {len(report.broken)} broken")
    if not report.passed:
        failed = ", ".join(check.name for check in report.checks if not check.passed)
        raise DataError(f"{report.name} is not as published: {failed}.")


@data_app.command("info")
def info(
    name: Place,
    columns: opt.Columns = None,
    data_dir: opt.DataDir = None,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Draw a contact sheet: rows are ids, columns cameras. Example: sheet.png"),
    ] = None,
    num_ids: Annotated[int, typer.Option("--num-ids", help="Rows of the sheet.", min=1, max=100)] = 8,
    force: opt.Force = False,
    as_json: opt.Json = False,
) -> None:
    """Show a dataset's statistics. Example: `ccreid data info market1501 --sheet sheet.png`."""
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.side_tasks import side_task
    from ccreid_cli.data.contact_sheet import contact_sheet
    from ccreid_cli.data.reading import load_dataset
    from ccreid_cli.data.statistics import dataset_statistics
    from ccreid_cli.images.sheet import check_sheet

    if sheet is not None:
        check_sheet(sheet)
        refuse_existing(force, sheet)
    reporter = make_reporter()
    dataset = load_dataset(name, data_dir_or_default(data_dir), reporter, columns=columns)
    statistics = dataset_statistics(dataset)
    _show_statistics(statistics, as_json)
    if sheet is not None:
        with side_task(f"the contact sheet {sheet} was not drawn", reporter):
            reporter.message(f"contact sheet: {contact_sheet(dataset, sheet, num_ids)}")


def _show_statistics(statistics: DatasetStatistics, as_json: bool) -> None:
    if as_json:
        output.print_json(statistics.as_json())
        return
    rows: list[list[object]] = [
        [row.split, row.num_ids, row.num_images, row.num_cameras, row.min_images_per_id]
        + [row.median_images_per_id, row.max_images_per_id, row.num_distractors]
        for row in statistics.splits
    ]
    headers = ["split", "ids", "images", "cameras", "images/id min", "median", "max", "distractors"]
    output.print_table(f"{statistics.name}: {statistics.root}", headers, rows)
    output.say(f"queries without a match: {statistics.num_queries_without_match:,}")
    output.say(f"fingerprint: {statistics.fingerprint}")


@data_app.command("make")
def make(
    name: Annotated[str, typer.Argument(help="What to draw: toy.")] = "toy",
    data_dir: opt.DataDir = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws other people.", min=0)] = 0,
) -> None:
    """Draw the toy dataset. Example: `ccreid data make toy`."""
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.errors import DataError, UsageError
    from ccreid_cli.data.toy import make_toy

    if name != "toy":
        raise UsageError(f'"{name}" cannot be made; only toy is drawn here.', f"Try `ccreid data fetch {name}`.")
    toy = _info("toy")
    target = data_dir_or_default(data_dir) / "toy" / toy.folders[0]
    if target.exists():
        raise DataError(f"{target} is there already.", "Delete it first to draw it anew.")
    make_toy(target, seed, make_reporter())
    output.say(f"toy is in {target}")


@data_app.command("link")
def link(
    name: Name,
    place: Annotated[Path, typer.Argument(help="Where the dataset lies now.")],
    data_dir: opt.DataDir = None,
) -> None:
    """Use a dataset that lies elsewhere, by a symbolic link. Example: `ccreid data link market1501 /mnt/Market`."""
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.data.maintenance import link_dataset

    output.say(f"{name} is in {link_dataset(_info(name), place, data_dir_or_default(data_dir), make_reporter())}")


@data_app.command("clean")
def clean(data_dir: opt.DataDir = None, as_json: opt.Json = False) -> None:
    """Remove decoded caches, partial downloads and leftovers; datasets stay. Example: `ccreid data clean`."""
    from ccreid_cli.data.maintenance import clean as clean_folder

    report = clean_folder(data_dir_or_default(data_dir))
    if as_json:
        output.print_json(asdict(report))
        return
    for path in report.in_use:
        output.warn(f"{path} is in use and was left")
    output.say(f"removed {plural(len(report.removed), 'item')}, freed {report.freed_bytes / 1e6:,.1f} MB")
