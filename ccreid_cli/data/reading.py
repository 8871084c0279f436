"""A folder on disk -> the train, query and gallery images of a dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.names import UNKNOWN, numbering
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.core.words import few, plural
from ccreid_cli.data.catalog import CATALOG, DatasetInfo, Place, Policy
from ccreid_cli.data.columns import parse_columns
from ccreid_cli.data.image_files import find_images
from ccreid_cli.data.layouts import Scan, is_recognised
from ccreid_cli.data.locate import Found, find_dataset, how_to_get, missing_error
from ccreid_cli.data.own_images import is_path_like, load_own_images
from ccreid_cli.data.records import SPLITS
from ccreid_cli.data.splits import ReidDataset


class ProblemKind(StrEnum):
    """What can be wrong with a dataset on disk."""

    EMPTY = "empty split"
    ABSENT = "listed images"
    CAMERAS = "cameras"
    NAMES = "file names"
    COUNTS = "counts"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a dataset on disk.

    Attributes:
        kind: What it is about.
        text: What is wrong, with numbers and examples.
    """

    kind: ProblemKind
    text: str

    @property
    def is_fatal(self) -> bool:
        """Whether the dataset cannot be used as this dataset; otherwise it is worth a warning."""
        return self.kind in (ProblemKind.EMPTY, ProblemKind.ABSENT, ProblemKind.CAMERAS)


@dataclass(frozen=True)
class DatasetState:
    """What is on disk of a dataset of the catalogue.

    Attributes:
        name: Name in the catalogue.
        state: ``absent``, ``present`` or ``incomplete``.
        root: Its folder, or None when absent.
        num_images: Images by split.
        num_ids: Identities by split.
        problems: Why it is incomplete.
    """

    name: str
    state: str
    root: Path | None
    num_images: dict[str, int]
    num_ids: dict[str, int]
    problems: tuple[str, ...] = ()


def load_dataset(
    name: str,
    data_dir: Path,
    reporter: Reporter,
    *,
    columns: str | None = None,
    pattern: str | None = None,
    keep_unknown: bool = False,
) -> ReidDataset:
    """Load a dataset of the catalogue, or a user's own images.

    Args:
        name: A name of the catalogue (which wins), or the path of a folder or manifest of own images.
        data_dir: The data directory; read for names of the catalogue only.
        reporter: Told of everything that is not as published or was guessed.
        columns: As ``--columns``: where own images have what (see `data.columns`).
        pattern: As ``--pattern``: what names of own files mean (see `data.file_names`).
        keep_unknown: Whether own queries and gallery images without an identity stay (see `load_own_images`).

    Returns:
        The dataset. The toy dataset is made when it is not there yet.

    Raises:
        UsageError: The name is neither in the catalogue nor a path.
        DataError: Nothing, or not all of it, is where it should be.
    """
    info = CATALOG.get(name)
    if info is None:
        return _load_own(name, reporter, parse_columns(columns), pattern or "", keep_unknown)
    if columns or pattern:
        raise UsageError(
            f"{'--columns' if columns else '--pattern'} is for images of your own, not for {name}.", "Leave it out."
        )
    found = find_dataset(info, data_dir)
    if found is None and info.policy is Policy.MADE:
        found = _make(info, data_dir, reporter)
    if found is None:
        folder = Path(name)
        if folder.is_dir() and find_images(folder).names:
            reporter.message(f"{name} is not in {data_dir}; the folder {folder.absolute()} is taken.")
            return _load_own(f"./{name}", reporter, {}, "", keep_unknown)
        raise missing_error(info, data_dir)
    if not found.is_official:
        reporter.message(f"{info.name}: taken from {found.root}, which holds {', '.join(found.place.layout.parts)}.")
    return read_found(info, found, data_dir, reporter)


def read_found(info: DatasetInfo, found: Found, data_dir: Path, reporter: Reporter) -> ReidDataset:
    """Read a dataset that was found on disk.

    Raises:
        DataError: It cannot be used as this dataset: no images, absent images, or cameras it does not have.
    """
    scan = scan_place(found.place, found.root)
    for problem in problems_of(info, found.place, found.root, scan):
        if problem.is_fatal:
            raise DataError(
                f"{info.name}: {problem.text}",
                f"Check it: ccreid data verify {info.name} --data-dir {data_dir}. {how_to_get(info, data_dir)}",
            )
        reporter.warning(f"{info.name}: {problem.text}")
    return build_dataset(info, found.root, scan)


def scan_place(place: Place, root: Path) -> Scan:
    """Read a folder as it is laid out at `place`.

    Raises:
        DataError: It cannot be read, or a list in it is malformed.
    """
    try:
        return place.layout.read(root)
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror or error}.") from error


def build_dataset(info: DatasetInfo, root: Path, scan: Scan) -> ReidDataset:
    """Make a dataset of what a scan found; cameras are numbered from 0 as `info` lists them.

    Args:
        info: The dataset.
        root: Its folder.
        scan: What was read; its cameras must be among the dataset's.

    Returns:
        The dataset, each split sorted by name.
    """
    if info.cameras is None:
        # What stands in for cameras keeps evaluation from removing anything; it names none.
        stand_ins = numbering(record.camera for record in scan)
        dataset = ReidDataset.from_records(info.name, root, scan.records, camera_numbers=stand_ins)
        train, query, gallery = (replace(split, cameras=(UNKNOWN,) * len(split)) for split in dataset.splits.values())
        return replace(dataset, train=train, query=query, gallery=gallery, has_cameras=False)
    numbers = {str(number): index for index, number in enumerate(info.cameras)}
    camera_numbers = {record.camera: numbers[_without_zeros(record.camera)] for record in scan}
    return ReidDataset.from_records(info.name, root, scan.records, camera_numbers=camera_numbers)


def problems_of(info: DatasetInfo, place: Place, root: Path, scan: Scan) -> list[Problem]:
    """Compare what was read with what the catalogue says.

    Returns:
        Everything that is wrong, the worst kind first; empty for a complete dataset.
    """
    problems = []
    for name, part in zip(SPLITS, place.layout.parts, strict=False):
        if not scan.records[name]:
            where = root / part if (root / part).is_dir() else root
            problems.append(Problem(ProblemKind.EMPTY, f"no {name} image was found in {where}{_kinds_in(where)}."))
    if scan.absent:
        text = f"{plural(len(scan.absent), 'listed image is', 'listed images are')} not in {root}"
        problems.append(Problem(ProblemKind.ABSENT, f"{text}: {few(scan.absent)}."))
    strange = _strange_cameras(info, scan)
    if strange:
        known = ", ".join(str(number) for number in info.cameras or ())
        text = f"{root} has {plural(len(strange), 'image')} from cameras that are not its own ({known})"
        problems.append(Problem(ProblemKind.CAMERAS, f"{text}: {few(strange)}."))
    if scan.misnamed:
        text = f"{root} has {plural(len(scan.misnamed), 'image')} left out, without identity and camera in the name"
        problems.append(Problem(ProblemKind.NAMES, f"{text}: {few(scan.misnamed)}."))
    if scan.other:
        text = f"{root} has {plural(len(scan.other), 'image')} left out, with endings that the dataset does not have"
        problems.append(Problem(ProblemKind.NAMES, f"{text}: {few(scan.other)}."))
    return problems + _count_problems(info, place, root, scan)


def dataset_state(info: DatasetInfo, data_dir: Path) -> DatasetState:
    """Say whether a dataset is on disk and complete, with its counts."""
    found = find_dataset(info, data_dir)
    if found is None:
        return DatasetState(info.name, "absent", None, {}, {})
    try:
        scan = scan_place(found.place, found.root)
    except DataError as error:
        return DatasetState(info.name, "incomplete", found.root, {}, {}, (error.message,))
    problems = tuple(problem.text for problem in problems_of(info, found.place, found.root, scan))
    return DatasetState(
        name=info.name,
        state="incomplete" if problems else "present",
        root=found.root,
        num_images={split: scan.num_images(split) for split in SPLITS},
        num_ids={split: scan.num_ids(split) for split in SPLITS},
        problems=problems,
    )


def _load_own(name: str, reporter: Reporter, columns: dict[str, str], pattern: str, keep_unknown: bool) -> ReidDataset:
    path = Path(name).expanduser()
    if path.exists():
        try:
            known = None if columns or pattern else _own_copy(path, reporter)
            return known or load_own_images(path, reporter, columns=columns, pattern=pattern, keep_unknown=keep_unknown)
        except OSError as error:
            raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from error
    if is_path_like(name):
        raise DataError(
            f"{path} does not exist.",
            "Give a dataset's name, or a folder or CSV/TSV manifest of your own images.",
        )
    part_of = next((f'did you mean "{known}"?' for known in CATALOG if name and name.lower() in known), "")
    guess = did_you_mean(name, CATALOG) or part_of
    raise UsageError(
        f'there is no dataset "{name}"{": " + guess if guess else "."}',
        f"Datasets: {', '.join(CATALOG)}. A path to a folder or CSV/TSV manifest of your own images works too.",
    )


def _own_copy(path: Path, reporter: Reporter) -> ReidDataset | None:
    """Read a user's folder as the dataset of the catalogue whose layout it has, where no other one looks the same."""
    for info in CATALOG.values():
        for place in info.places:
            for root in (path, *(path / inner for inner in _ends_of(place.folder))):
                if not (root.is_dir() and is_recognised(place.layout, root) and place.layout.is_unmistakable(root)):
                    continue
                reporter.message(f"{path} is laid out like {info.title} and read as that.")
                scan = scan_place(place, root)
                _check_own_copy(info, place, root, scan)
                return replace(build_dataset(info, root, scan), name=str(path))
    return None


def _ends_of(folder: str) -> list[str]:
    parts = folder.split("/") if folder else []
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _check_own_copy(info: DatasetInfo, place: Place, root: Path, scan: Scan) -> None:
    for problem in problems_of(info, place, root, scan):
        if problem.is_fatal:
            raise DataError(f"{info.title}: {problem.text}", "For other images of this layout, write a CSV manifest.")


def _make(info: DatasetInfo, data_dir: Path, reporter: Reporter) -> Found | None:
    from ccreid_cli.data.toy import make_toy

    make_toy(data_dir / info.name, reporter=reporter)
    return find_dataset(info, data_dir)


def _kinds_in(folder: Path) -> str:
    """Say what kinds of files are in a folder without images, as an explanation."""
    endings: dict[str, int] = {}
    for path in folder.iterdir():
        kind = "folders" if path.is_dir() else path.suffix.lower() or "files without an ending"
        endings[kind] = endings.get(kind, 0) + 1
    if not endings:
        return ", which is empty"
    return f", which holds {', '.join(f'{count:,} {kind}' for kind, count in sorted(endings.items())[:3])}"


def _strange_cameras(info: DatasetInfo, scan: Scan) -> list[str]:
    if info.cameras is None:
        return []
    known = set(map(str, info.cameras))
    return [record.name for record in scan if _without_zeros(record.camera) not in known]


def _without_zeros(camera: str) -> str:
    """Return a camera of the catalogue's datasets ("01", "14") as `DatasetInfo.cameras` numbers it."""
    return camera.lstrip("0") or "0"


def _count_problems(info: DatasetInfo, place: Place, root: Path, scan: Scan) -> list[Problem]:
    """Put all counts that differ from the published ones into one problem."""
    different = []
    for split, counts in info.published(place).items():
        for one, many, found, published in (
            ("image", "images", scan.num_images(split), counts.num_images),
            ("identity", "identities", scan.num_ids(split), counts.num_ids),
        ):
            if published is not None and found != published:
                different.append(f"{plural(found, f'{split} {one}', f'{split} {many}')} (published: {published:,})")
    if not different:
        return []
    return [Problem(ProblemKind.COUNTS, f"{root} is not the published dataset: {', '.join(different)}.")]
