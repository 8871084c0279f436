"""A query and a gallery file made ready to be scored: ids and cameras compared as names over both files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.names import UNKNOWN, look_alikes, number_names
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import plural
from ccreid_cli.inference.feature_file import FeatureArrays, normalize_rows, read_features


@dataclass(frozen=True)
class LabelledFeatures:
    """Features that can be scored.

    Attributes:
        features: (N, D) float32 unit rows.
        ids: (N,) int64 numbers of the identities, the same for both sides of a pair.
        cams: (N,) int64 numbers of the cameras, likewise; an unknown camera is like none of the other side.
        num_left_out: Rows of the file that are not here, having no identity.
    """

    features: NDArray[np.float32]
    ids: NDArray[np.int64]
    cams: NDArray[np.int64]
    num_left_out: int = 0


def read_scored_pair(query: Path, gallery: Path, reporter: Reporter) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Read a query and a gallery file, check that they fit together, and normalise their rows.

    Rows without an identity are left out: nothing says whether they are a match.

    Args:
        query: A feature file with ids and cameras.
        gallery: Likewise, of the same model.
        reporter: Told how many rows were left out, of cameras that are not known, and of names that are spelled
            differently in the two files.

    Raises:
        DataError: As `read_features`; the features of the two differ in width; or no row of one has an identity.
    """
    paths = (query, gallery)
    sides = [read_features(path, need_ids=True) for path in paths]
    widths = [side.features.shape[1] for side in sides]
    if widths[0] != widths[1]:
        raise DataError(
            f"array `features` is {widths[0]} wide in {query}, but {widths[1]} wide in {gallery}.",
            "Extract both with the same model.",
        )
    _check_origin(paths, sides, reporter)
    kinds = (("query", "queries"), ("gallery image", "gallery images"))
    kept = [_identified(path, side, kind, reporter) for path, side, kind in zip(paths, sides, kinds, strict=True)]
    ids = [_pick(side.ids or (), rows) for side, rows in zip(sides, kept, strict=True)]
    cams = [_pick(side.cams or (), rows) for side, rows in zip(sides, kept, strict=True)]
    _say_what_cameras_miss(paths, cams, reporter)
    _say_what_looks_alike(paths, "ids", ids, reporter)
    _say_what_looks_alike(paths, "cameras", cams, reporter)
    person_ids, camera_ids = number_names(*ids), number_names(*cams)
    pair = [
        LabelledFeatures(
            normalize_rows(sides[side].features[kept[side]]),
            person_ids[side],
            np.where(camera_ids[side] < 0, unknown, camera_ids[side]),
            len(sides[side]) - len(kept[side]),
        )
        for side, unknown in enumerate((-1, -2))
    ]
    return pair[0], pair[1]


def _check_origin(paths: tuple[Path, Path], sides: Sequence[FeatureArrays], reporter: Reporter) -> None:
    """Compare what ccreid's own files say of themselves."""
    models = {str(side.about["model"]) for side in sides if side.about.get("model")}
    if len(models) > 1:
        reporter.warning(f"{paths[0]} and {paths[1]} were made by different models, so their features do not compare.")
    numbered = [path for path, side in zip(paths, sides, strict=True) if side.about and side.about.get("version") == 1]
    if len(numbered) == 1 and all(side.about for side in sides):
        raise DataError(
            f"{numbered[0]} was written by ccreid 0.1, which numbered ids and cameras within each file; the other file "
            "has their names.",
            "Extract it again.",
        )
    if numbered:
        reporter.warning(
            f"{' and '.join(map(str, numbered))}: written by ccreid 0.1, which numbered ids and cameras within each "
            "file. Extract again unless both are splits of one dataset."
        )


def _identified(path: Path, side: FeatureArrays, kind: tuple[str, str], reporter: Reporter) -> NDArray[np.int64]:
    """Return the rows that have an identity, and say how many have none."""
    kept = np.flatnonzero(np.array([name != UNKNOWN for name in side.ids or ()], dtype=np.bool_))
    left_out = len(side) - len(kept)
    if not len(kept):
        raise DataError(
            f"{path}: none of the {plural(left_out, *kind)} has an identity, so nothing can be scored.",
            "Give each image its identity in `ids`; -1 and empty text mean that it has none.",
        )
    if left_out:
        verb = "was" if left_out == 1 else "were"
        reporter.warning(f"{path}: {plural(left_out, *kind)} without an identity {verb} left out.")
    return kept


def _pick(names: Sequence[str], rows: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple([names[row] for row in rows.tolist()])


def _say_what_cameras_miss(paths: tuple[Path, Path], cams: Sequence[tuple[str, ...]], reporter: Reporter) -> None:
    if not any(name != UNKNOWN for side in cams for name in side):
        reporter.message("no cameras are known, so every gallery image counts.")
        return
    for path, side in zip(paths, cams, strict=True):
        missing = side.count(UNKNOWN)
        if missing:
            reporter.warning(
                f"{path}: {missing:,} of {len(side):,} rows have no camera; they are taken to share it with no image."
            )


def _say_what_looks_alike(
    paths: tuple[Path, Path], what: str, names: Sequence[tuple[str, ...]], reporter: Reporter
) -> None:
    pairs = look_alikes(*names)
    if pairs:
        ours, theirs = pairs[0]
        more = f", and {len(pairs) - 1:,} more like it" if len(pairs) > 1 else ""
        reporter.warning(
            f"{what} are compared as they are written: {ours!r} in {paths[0]} is not {theirs!r} in {paths[1]}{more}. "
            "If they mean the same, write them alike."
        )
