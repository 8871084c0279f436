"""Finding a dataset in what an archive held, by split folders and counts, not by names; also in archives inside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.data.catalog import CATALOG, DatasetInfo, Place
from ccreid_cli.data.locate import is_archive_name, looks_like
from ccreid_cli.data.reading import Problem, ProblemKind, build_dataset, problems_of, scan_place
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.transfer.archive import extract_archive

_MAX_DEPTH = 6  # folders above a dataset in an archive
_MAX_NESTING = 2  # archives inside archives


class NotInsideError(DataError):
    """An archive does not hold the dataset it should (exit code 3)."""


@dataclass(frozen=True)
class Candidate:
    """A folder that has a dataset's split folders or lists.

    Attributes:
        info: The dataset it may be.
        place: The catalogue's place whose layout fits.
        root: The folder.
        dataset: What is in it, or None when it cannot be that dataset.
        problems: What differs from the catalogue.
        trail: Names of the archives and folders on the way to it inside an archive; empty for a folder of the user.
    """

    info: DatasetInfo
    place: Place
    root: Path
    dataset: ReidDataset | None
    problems: tuple[Problem, ...]
    trail: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether all counts are the published ones; stray file names do not matter."""
        return self.dataset is not None and all(problem.kind is ProblemKind.NAMES for problem in self.problems)

    @property
    def is_named(self) -> bool:
        """Whether a folder or archive on the way to it is named like the dataset."""
        return looks_like(self.info, self.trail)

    @property
    def what_is_wrong(self) -> str:
        """The problems as one text, in which a folder of the workspace goes by its name in the archive."""
        text = " ".join(problem.text for problem in self.problems)
        return text.replace(str(self.root), self.trail) if self.trail else text


def examine(info: DatasetInfo, root: Path, trail: str = "") -> Candidate | None:
    """Compare a folder with the catalogue; None when it has none of the dataset's layouts.

    Args:
        info: The dataset that it may be.
        root: The folder.
        trail: Names of the folders and archives on the way to it, which speak for one dataset or another.
    """
    place = info.place_at(root)
    if place is None:
        return None
    try:
        scan = scan_place(place, root)
    except DataError as error:
        return Candidate(info, place, root, None, (Problem(ProblemKind.ABSENT, error.message),), trail)
    problems = tuple(problems_of(info, place, root, scan))
    usable = not any(problem.is_fatal for problem in problems)
    return Candidate(info, place, root, build_dataset(info, root, scan) if usable else None, problems, trail)


def unpack_and_find(
    infos: Sequence[DatasetInfo], archive: Path, workspace: Path, reporter: Reporter
) -> dict[str, list[Candidate]]:
    """Extract an archive, and archives inside it, until each dataset was found complete or nothing is left to extract.

    Args:
        infos: The datasets to look for.
        archive: The archive.
        workspace: A folder for what is extracted.
        reporter: Where progress is shown.

    Returns:
        Candidates of each dataset, in the order they were found.

    Raises:
        DataError: An archive is damaged or unsafe, or the disk is full.
    """
    found: dict[str, list[Candidate]] = {info.name: [] for info in infos}
    queue = [(archive, archive.name, 0)]
    number = 0
    while queue and not all(_has_complete(candidates) for candidates in found.values()):
        current, trail, nesting = queue.pop(0)
        number += 1
        tree = workspace / str(number)
        extract_archive(current, tree, reporter=reporter)
        if nesting:
            current.unlink()  # a copy that lies in the workspace: its room is needed
        nested: list[Path] = []
        for folder in _folders(tree, _MAX_DEPTH):
            inside = (PurePosixPath(trail) / folder.relative_to(tree).as_posix()).as_posix()
            candidates = [examine(info, folder, inside) for info in infos]
            for candidate in candidates:
                if candidate is not None:
                    found[candidate.info.name].append(candidate)
            if not any(candidates) and nesting < _MAX_NESTING:
                nested += [path for path in folder.iterdir() if is_archive_name(path.name) and path.is_file()]
        queue += [(path, f"{trail}/{path.relative_to(tree).as_posix()}", nesting + 1) for path in sorted(nested)]
        queue.sort(key=lambda item: not any(looks_like(info, item[1]) for info in infos))
    return found


def choose(info: DatasetInfo, candidates: Sequence[Candidate], archive: Path, *, incomplete: bool = False) -> Candidate:
    """Choose the folder that is the dataset.

    Args:
        info: The dataset.
        candidates: What was found.
        archive: Where, for messages.
        incomplete: Also take one that differs from the published counts, if it can be used.

    Raises:
        NotInsideError: None is the dataset; says what was found instead.
    """
    complete = [candidate for candidate in candidates if candidate.is_complete]
    if complete:
        return min(complete, key=lambda one: (not one.is_named, info.places.index(one.place)))
    if not candidates:
        raise NotInsideError(
            f"{archive} does not hold {info.title}: no folder in it has {info.parts_text}.",
            f"Take the archive that the authors give out: {info.homepage}",
        )
    nearest = min(candidates, key=lambda one: (one.dataset is None, not one.is_named, len(one.problems)))
    if incomplete and nearest.dataset is not None and not _is_another(nearest):
        return nearest
    raise NotInsideError(
        f"{archive} does not hold the published {info.title}. {nearest.what_is_wrong}",
        "For a part or a variant of the dataset, extract the archive yourself and train with -d FOLDER"
        f"{'' if nearest.dataset is None or _is_another(nearest) else ', or take it as it is with --force'}.",
    )


def _is_another(candidate: Candidate) -> bool:
    """Say whether a folder is named like another dataset of the catalogue and not like this one."""
    others = (info for info in CATALOG.values() if info.name != candidate.info.name)
    return not candidate.is_named and any(looks_like(info, candidate.trail) for info in others)


def _has_complete(candidates: Sequence[Candidate]) -> bool:
    return any(candidate.is_complete for candidate in candidates)


def _folders(tree: Path, depth: int) -> Iterator[Path]:
    """Go through a folder and those below it, the upper ones first."""
    yield tree
    if depth:
        for child in sorted(path for path in tree.iterdir() if path.is_dir() and path.name != "__MACOSX"):
            yield from _folders(child, depth - 1)
