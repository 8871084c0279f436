"""Checking a dataset on disk: counts against the published ones, identities, cameras, and every image's bytes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ccreid_cli.core.names import UNKNOWN
from ccreid_cli.core.reporter import Reporter, SilentReporter, track
from ccreid_cli.core.words import plural
from ccreid_cli.data.catalog import CATALOG, DatasetInfo
from ccreid_cli.data.layouts import Scan
from ccreid_cli.data.locate import Found, find_dataset, missing_error
from ccreid_cli.data.reading import ProblemKind, build_dataset, load_dataset, problems_of, scan_place
from ccreid_cli.data.records import SPLITS
from ccreid_cli.data.splits import ReidDataset, queries_without_match
from ccreid_cli.images.decoding import read_picture, reason_of


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What it is about.
        passed: Whether it is as it should be.
        detail: What was found.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class BrokenImage:
    """An image that does not decode: its path and the decoder's words."""

    path: str
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What verification found.

    Attributes:
        name: The dataset.
        root: Its folder.
        checks: Every check, passed or not.
        num_images: Images by split, junk left out.
        num_ids: Identities by split.
        num_decoded: Images that were decoded; 0 when that was not asked for.
        broken: Images that do not decode.
        seconds: Time that decoding took.
    """

    name: str
    root: Path
    checks: tuple[Check, ...]
    num_images: dict[str, int]
    num_ids: dict[str, int]
    num_decoded: int = 0
    broken: tuple[BrokenImage, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def images_per_second(self) -> float:
        """Decoded images per second; 0 when none was decoded."""
        return self.num_decoded / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        extra = {"root": str(self.root), "passed": self.passed, "images_per_second": round(self.images_per_second, 1)}
        return asdict(self) | extra


def verify_dataset(
    name: str,
    data_dir: Path,
    *,
    columns: str | None = None,
    decode: bool = False,
    workers: int = 2,
    reporter: Reporter | None = None,
) -> VerifyReport:
    """Verify a dataset of the catalogue, or a user's own images.

    Args:
        name: Name in the catalogue, or a path.
        data_dir: The data directory.
        columns: As ``--columns``.
        decode: Also decode every image to the last byte.
        workers: Threads that decode (the decoder works outside Python's lock).
        reporter: Where progress is shown.

    Returns:
        What was found; problems of the data are failed checks, not exceptions.

    Raises:
        UsageError: There is no such dataset.
        DataError: It is not there at all, or cannot be read.
    """
    reporter = reporter or SilentReporter()
    info = CATALOG.get(name)
    if info is None:
        dataset = load_dataset(name, data_dir, reporter, columns=columns)
        report = _verify_dataset_itself(dataset, test_ids_repeat=False)
        paths = [path for split in dataset.splits.values() for path in split.paths]
    else:
        found = find_dataset(info, data_dir)
        if found is None:
            raise missing_error(info, data_dir)
        scan = scan_place(found.place, found.root)
        report = _verify_found(info, found, scan)
        paths = [found.root / record.name for split in SPLITS for record in scan.records[split]]
    return _decoded(report, paths, workers, reporter) if decode else report


def decode_problems(paths: Sequence[Path], *, workers: int = 2, reporter: Reporter | None = None) -> list[BrokenImage]:
    """Decode images to the last byte and return those that fail or cannot be shown, in the order given."""
    reporter = reporter or SilentReporter()
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of odd files; the pixels are right
        reasons = track(reporter, pool.map(_decode, paths), "decoding", len(paths), "img")
        return [BrokenImage(str(path), reason) for path, reason in zip(paths, reasons, strict=True) if reason]


def _decode(path: Path) -> str:
    """Return why training would not read an image, or nothing."""
    try:
        read_picture(path)
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        return reason_of(error)
    return ""


def _decoded(report: VerifyReport, paths: list[Path], workers: int, reporter: Reporter) -> VerifyReport:
    start = time.perf_counter()
    broken = decode_problems(paths, workers=workers, reporter=reporter)
    seconds = time.perf_counter() - start
    shown = ": " + ", ".join(f"{image.path} ({image.reason})" for image in broken[:3]) if broken else ""
    check = Check("images decode", not broken, f"{len(broken):,} of {len(paths):,} broken{shown}")
    return replace(
        report, checks=(*report.checks, check), num_decoded=len(paths), broken=tuple(broken), seconds=seconds
    )


def _verify_found(info: DatasetInfo, found: Found, scan: Scan) -> VerifyReport:
    """Check a dataset of the catalogue; what needs sound splits is checked only where they are."""
    problems = problems_of(info, found.place, found.root, scan)
    checks = _count_checks(info, found, scan)
    for kind, good in (
        (ProblemKind.NAMES, "all follow the dataset's pattern"),
        (ProblemKind.ABSENT, "all are on disk"),
        (ProblemKind.CAMERAS, f"within the dataset's {len(info.cameras)}" if info.cameras else "it has none"),
    ):
        texts = [problem.text for problem in problems if problem.kind is kind]
        checks.append(Check(kind.value, not texts, texts[0] if texts else good))
    if not any(problem.is_fatal for problem in problems):
        dataset = build_dataset(info, found.root, scan)
        checks += _verify_dataset_itself(dataset, test_ids_repeat=info.test_ids_repeat).checks
    return VerifyReport(
        name=info.name,
        root=found.root,
        checks=tuple(checks),
        num_images={split: scan.num_images(split) for split in SPLITS},
        num_ids={split: scan.num_ids(split) for split in SPLITS},
    )


def _count_checks(info: DatasetInfo, found: Found, scan: Scan) -> list[Check]:
    checks = []
    for split, counts in info.published(found.place).items():
        images, ids = scan.num_images(split), scan.num_ids(split)
        passed = images > 0 and counts.num_images in (None, images) and counts.num_ids in (None, ids)
        detail = f"{plural(images, 'image')} of {plural(ids, 'identity', 'identities')}"
        if counts.num_images is not None:
            ids_text = f" of {counts.num_ids:,}" if counts.num_ids is not None else ""
            detail += f"; published: {counts.num_images:,}{ids_text}"
        if scan.num_junk[split]:
            detail += f"; {plural(scan.num_junk[split], 'junk image')} left out"
        checks.append(Check(split, passed, detail))
    return checks


def _verify_dataset_itself(dataset: ReidDataset, *, test_ids_repeat: bool) -> VerifyReport:
    """Check what needs no catalogue: identities of train and test disjoint, and queries that can be scored."""
    checks = []
    if dataset.has_train_ids and dataset.has_evaluation:
        shared = (set(dataset.train.identities) & set(dataset.query.identities)) - {UNKNOWN}
        if test_ids_repeat:
            checks.append(
                Check("identities", True, "test identities are numbered from 0 again, so they are not compared")
            )
        else:
            detail = f"{plural(len(shared), 'identity is', 'identities are')} in both train and query"
            checks.append(Check("identities", len(shared) == 0, detail))
    if dataset.has_evaluation:
        unmatched = int(queries_without_match(dataset.query, dataset.gallery).sum())
        detail = f"{unmatched:,} of {len(dataset.query):,} have no match in another camera"
        checks.append(Check("queries", unmatched < len(dataset.query), detail))
    return VerifyReport(
        name=dataset.name,
        root=dataset.root,
        checks=tuple(checks),
        num_images={name: len(split) for name, split in dataset.splits.items()},
        num_ids={name: split.num_ids for name, split in dataset.splits.items()},
    )
