"""Laying a dataset out as the official tree, from an archive on disk or from the net."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ccreid_cli.core.errors import DataError, NetworkError, UsageError
from ccreid_cli.core.locks import FileLock
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.data.catalog import BUNDLE_NAMES, BUNDLE_SOURCE, CATALOG, DatasetInfo, Policy, Source
from ccreid_cli.data.locate import find_dataset, official_roots, why_not_downloaded
from ccreid_cli.data.recognise import NotInsideError, choose, examine, unpack_and_find
from ccreid_cli.data.replace_folder import put_in_place, recover_replaced
from ccreid_cli.transfer.archive import test_archive
from ccreid_cli.transfer.download import download

DOWNLOADS_FOLDER = ".ccreid-downloads"
WORK_PREFIX = ".ccreid-installing-"
BUNDLE_KEY = "all"
"""Stands for the bundle where a dataset's name would stand."""


@dataclass(frozen=True)
class BundleReport:
    """What became of the five datasets of the bundle.

    Attributes:
        roots: Folder of each dataset that is there now.
        failures: Why the others are not.
    """

    roots: dict[str, Path]
    failures: dict[str, str]


def lock_of(data_dir: Path, name: str, reporter: Reporter | None = None) -> FileLock:
    """Return the lock that one fetch at a time holds for a dataset."""
    return FileLock(data_dir / f".ccreid-{name}.lock", what=f"{name} in {data_dir}", reporter=reporter)


def install_dataset(
    info: DatasetInfo,
    data_dir: Path,
    *,
    archive: Path | None = None,
    url: str | None = None,
    keep_archive: bool = False,
    force: bool = False,
    accepted: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Lay a dataset out under the data directory: it is there whole and verified, or nothing has changed.

    Args:
        info: The dataset.
        data_dir: The data directory; made when missing.
        archive: An archive the user has; it is only read, and no network is needed.
        url: Another place to download from, instead of the catalogue's.
        keep_archive: Keep what was downloaded, in the data directory.
        force: Replace a dataset that is there, once the new one is verified complete and differs; also take an archive
            that differs from the published counts where nothing is replaced.
        accepted: The user has seen the terms and accepts them.
        reporter: Told what is done.

    Returns:
        The dataset's folder: the one that was there, if it is complete, else the new one.

    Raises:
        UsageError: The terms were not accepted, or the dataset is not downloaded by a program.
        NetworkError: No source gave the archive.
        DataError: The archive does not hold the dataset, is damaged or unsafe; or something else is in the place.
    """
    reporter = reporter or SilentReporter()
    if info.policy is Policy.MADE:
        raise UsageError(f"{info.name} is not fetched.", f"It is made here: ccreid data make {info.name}")
    check_archive_options(archive, url)
    there = _already_there(info, data_dir, force)
    if there is None:
        sources = _sources(info, archive, url)
        _require_accepted([info], accepted)
        with lock_of(data_dir, info.name, reporter), _workspace(data_dir, info.name) as workspace:
            recover_replaced(info, data_dir)
            there = _already_there(info, data_dir, force)  # another fetch may have finished while this one waited
            if there is None:
                return _install(info, data_dir, archive, sources, workspace, keep_archive, force, reporter)
    reporter.message(f"{info.name} is there already and complete: {there}")
    return there


def install_bundle(
    data_dir: Path,
    *,
    archive: Path | None = None,
    url: str | None = None,
    keep_archive: bool = False,
    force: bool = False,
    accepted: bool = False,
    reporter: Reporter | None = None,
) -> BundleReport:
    """Lay out the five datasets of the official bundle from one download; what is there and complete is left alone.

    The arguments are those of `install_dataset`, for all five.

    Returns:
        Which datasets are there now, and why others are not.

    Raises:
        UsageError: The terms were not accepted.
        NetworkError: The bundle could not be downloaded.
        DataError: It is damaged or unsafe, or holds none of the datasets.
    """
    reporter = reporter or SilentReporter()
    check_archive_options(archive, url)
    infos = [CATALOG[name] for name in BUNDLE_NAMES]
    report, wanted = _sort_out(infos, data_dir, force)
    if not wanted:
        return report
    _require_accepted(wanted, accepted)
    with ExitStack() as stack:
        for name in sorted((*BUNDLE_NAMES, BUNDLE_KEY)):  # always in one order, so that no two fetches block each other
            stack.enter_context(lock_of(data_dir, name, reporter))
        for info in infos:
            recover_replaced(info, data_dir)
        report, wanted = _sort_out(infos, data_dir, force)
        workspace = stack.enter_context(_workspace(data_dir, BUNDLE_KEY))
        if wanted:
            source = Source(url) if url else BUNDLE_SOURCE
            file = archive or _download(source, data_dir, BUNDLE_KEY, reporter)
            found = unpack_and_find(wanted, file, workspace, reporter)
            for info in wanted:
                try:
                    chosen = choose(info, found[info.name], file, incomplete=force)
                    report.roots[info.name] = put_in_place(chosen, data_dir, reporter)
                except DataError as error:
                    report.failures[info.name] = error.message
            if not any(info.name in report.roots for info in wanted):
                raise NotInsideError(f"{file} gave no dataset. {' '.join(report.failures.values())}")
            if archive is None:
                _dispose_of(file, data_dir, keep_archive, reporter)
    return report


def check_archive_options(archive: Path | None, url: str | None) -> None:
    """Refuse an archive that is no file, or an archive and an address at once.

    Raises:
        UsageError: Both were given.
        DataError: The archive is not there or not a file.
    """
    if archive is not None and url is not None:
        raise UsageError("--archive and --url cannot be given together.", "Give one of them.")
    if archive is not None and archive.is_dir():
        raise DataError(f"{archive} is a folder.", "For a folder with the dataset: ccreid data link NAME FOLDER")
    if archive is not None and not archive.is_file():
        raise DataError(f"{archive} does not exist.", "--archive takes the path of a .zip, .tar, .tar.gz or .tar.bz2.")


def _install(
    info: DatasetInfo,
    data_dir: Path,
    archive: Path | None,
    sources: Sequence[Source],
    workspace: Path,
    keep_archive: bool,
    force: bool,
    reporter: Reporter,
) -> Path:
    """Get the dataset from the archive, or from the first source that has it, and put it in its place."""
    if archive is not None:
        found = unpack_and_find([info], archive, workspace, reporter)
        return put_in_place(choose(info, found[info.name], archive, incomplete=force), data_dir, reporter)
    failures: list[NetworkError | NotInsideError] = []
    for number, source in enumerate(sources):
        file = None
        try:
            file = _download(source, data_dir, info.name, reporter)
            found = unpack_and_find([info], file, workspace / f"source{number}", reporter)
            chosen = choose(info, found[info.name], file, incomplete=force)
        except (NetworkError, NotInsideError) as error:
            if file is not None:
                file.unlink(missing_ok=True)  # whole, but not the dataset: it would be found again next time
            failures.append(error)
            if len(sources) > 1:
                reporter.warning(f"{source.url} did not give {info.name}: {error.message}")
            continue
        root = put_in_place(chosen, data_dir, reporter)
        _dispose_of(file, data_dir, keep_archive, reporter)
        return root
    if len(failures) == 1:
        raise failures[0]
    raise NetworkError(
        f"none of the {len(sources)} sources gave {info.name}: "
        + " ".join(f"{source.url}: {error.message}" for source, error in zip(sources, failures, strict=True)),
        f"Get an archive from {info.homepage} and give it: ccreid data fetch {info.name} --archive FILE",
    )


def _already_there(info: DatasetInfo, data_dir: Path, force: bool) -> Path | None:
    """Return the dataset's folder if it is there and need not be fetched.

    Raises:
        DataError: Something else is in its place, and `force` is not set.
    """
    if force:
        return None
    found = find_dataset(info, data_dir)
    candidate = examine(info, found.root) if found else None
    if candidate is not None and candidate.is_complete:
        return candidate.root
    for root in official_roots(info, data_dir):
        if root.is_dir() and any(root.iterdir()):
            why = candidate.what_is_wrong if candidate and candidate.root == root else "It is not the whole dataset."
            raise DataError(
                f"{root} is there, but is not the published {info.title}. {why}",
                "Add --force to replace it once the new one is verified, or move it away. To train on it as it is, "
                f"use -d {root}",
            )
    return None


def _sort_out(infos: Sequence[DatasetInfo], data_dir: Path, force: bool) -> tuple[BundleReport, list[DatasetInfo]]:
    """Tell the datasets that are there from those to fetch and those whose place is taken."""
    report, wanted = BundleReport({}, {}), []
    for info in infos:
        try:
            there = _already_there(info, data_dir, force)
        except DataError as error:
            report.failures[info.name] = error.message
            continue
        if there is None:
            wanted.append(info)
        else:
            report.roots[info.name] = there
    return report, wanted


def _require_accepted(infos: Sequence[DatasetInfo], accepted: bool) -> None:
    if accepted:
        return
    # Without the terms themselves: the command has just shown them.
    titles = ", ".join(info.title for info in infos)
    raise UsageError(f"the terms of {titles} must be accepted first.", "Read them, then add --accept-terms.")


def _sources(info: DatasetInfo, archive: Path | None, url: str | None) -> tuple[Source, ...]:
    """Return where to download from: nowhere with an archive, else the user's address, else the catalogue's."""
    if archive is not None:
        return ()
    if url is None and not info.sources:
        raise UsageError(
            f"{info.title} is not downloaded on its own. {why_not_downloaded(info)}",
            f"With an archive: ccreid data fetch {info.name} --archive FILE",
        )
    return (Source(url),) if url else info.sources


def _download(source: Source, data_dir: Path, key: str, reporter: Reporter) -> Path:
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(urlsplit(source.url).path)).name).lstrip(".")
    has_digest = source.md5 or source.sha256_prefix
    return download(
        [source.url],
        data_dir / DOWNLOADS_FOLDER / key / (name or "archive"),
        expected_size=source.size,
        sha256_prefix=source.sha256_prefix,
        md5=source.md5,
        check=None if has_digest else test_archive,
        reporter=reporter,
    )


def _dispose_of(file: Path, data_dir: Path, keep: bool, reporter: Reporter) -> None:
    """Keep what was downloaded, in plain sight, or remove it with the folders it was in."""
    kept = data_dir / file.name
    if keep and not kept.exists():
        reporter.message(f"the archive is kept: {file.rename(kept)}")
    elif keep:
        reporter.message(f"the archive is kept: {file}")
        return
    else:
        file.unlink()
    for folder in (file.parent, file.parent.parent):
        if not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _workspace(data_dir: Path, key: str) -> Iterator[Path]:
    """Give an empty folder on the same disk. What a killed run left in it goes first; the key's lock must be held."""
    folder = data_dir / f"{WORK_PREFIX}{key}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
