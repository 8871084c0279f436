"""`ccreid identify`: images or features in, one line per image out that says who it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.names import UNKNOWN, number_names
from ccreid_cli.core.packed_texts import PackedTexts
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.side_tasks import side_task
from ccreid_cli.core.words import plural
from ccreid_cli.data.file_names import camera_of, of_tracker
from ccreid_cli.data.splits import Tracks
from ccreid_cli.inference.embedding_file import EmbeddingFile
from ccreid_cli.inference.identities import Identities, Ints, name_after_known, name_by_clusters
from ccreid_cli.inference.identity_file import IdentityRow, path_from
from ccreid_cli.inference.image_list import ImageList
from ccreid_cli.inference.image_parts import ListParts
from ccreid_cli.inference.search import check_same_model
from ccreid_cli.inference.sharded_extraction import KEPT_SIZE, Extraction, embed_in_shards
from ccreid_cli.machine.distributed import Group
from ccreid_cli.pseudo_labels.clustering import ClusterSettings, label_quality
from ccreid_cli.pseudo_labels.constraints import Constraints, find_constraints
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels
from ccreid_cli.transfer.remote import is_remote


@dataclass(frozen=True, eq=False)
class KnownImages:
    """Images whose identities are known: those of ``--known``.

    Attributes:
        images: N images with identities.
        places: Place of each in `images`, by its path.
    """

    images: ImageList
    places: Mapping[str, int] = field(default_factory=dict)

    def checked(self) -> NDArray[np.bool_]:
        """Return which of them a person has looked at, (N,)."""
        return self.images.tracks.checked if self.images.tracks else np.zeros(len(self.images), dtype=np.bool_)

    @classmethod
    def of(cls, images: ImageList) -> KnownImages:
        """Return the images of a list."""
        return cls(images, {_key(path): place for place, path in enumerate(images.paths)})


@dataclass(frozen=True, eq=False)
class Gathered:
    """The features of the images to name and of the known ones.

    Attributes:
        content: N features and their images.
        known: (N,) place of each among the known images, -1 for none.
        asked: (N,) bool, whether it is one of the images to name.
        broken: Name and reason of images that could not be read.
    """

    content: EmbeddingFile
    known: Ints
    asked: NDArray[np.bool_]
    broken: list[dict[str, str]]


def gather(
    source: ImageList | EmbeddingFile, known: KnownImages | None, extraction: Extraction, path: Path, reporter: Reporter
) -> Gathered:
    """Bring the features of the images to name and of the known ones together; each image is read once.

    Args:
        source: The images to name, or their features.
        known: The known images.
        extraction: How images become features.
        path: What the source is called in messages.
        reporter: Where progress and warnings go.

    Raises:
        DataError: Images cannot be read, features are of another model, or no known image has features.
    """
    images = source.images if isinstance(source, EmbeddingFile) else source
    rest = _known_elsewhere(images, known)
    if isinstance(source, EmbeddingFile):
        content, broken = _with_features(source, rest, extraction, path, reporter)
    else:
        content, broken = _extract(_joined(images, rest), extraction, reporter)
    elsewhere = set(rest.names)
    asked = np.array([name not in elsewhere for name in content.images.names], dtype=np.bool_)
    places = known.places if known else {}
    found = np.array([places.get(_key(file), -1) for file in content.images.paths], dtype=np.int64)
    if known and not (found >= 0).any():
        raise DataError("none of the known images has features.", "Name the model with --resume, to extract them.")
    return Gathered(content, found, asked, broken)


def identify(
    gathered: Gathered,
    known: KnownImages | None,
    settings: ClusterSettings,
    *,
    false_match_rate: float,
    group: Group,
    reporter: Reporter,
) -> Identities:
    """Name images.

    Args:
        gathered: Their features, and those of the known ones.
        known: The known images; None names by clusters alone.
        settings: Of the clusters.
        false_match_rate: See `identities.Thresholds`.
        group: The processes that cluster together, and where.
        reporter: Told when the clusters do not fit into a GPU's memory.

    Returns:
        The names of all images of `gathered`.
    """
    features, images = gathered.content.matrix, gathered.content.images
    constraints = constraints_of(images)
    if constraints:
        reporter.message(constraints.in_words())
    camera_ids = number_names(cameras_of(images))[0]
    settings = replace(settings, drop_single_camera=False)  # what is doubtful to learn from is still somebody

    def cluster(rows: Ints) -> Ints:
        if not len(rows):
            return np.empty(0, dtype=np.int64)
        chosen = features if len(rows) == len(features) else features[rows]
        cameras = camera_ids[rows] if (camera_ids >= 0).any() else None
        return pseudo_labels(
            chosen,
            settings,
            camera_ids=cameras,
            constraints=constraints.select(rows) if constraints else None,
            group=group,
            reporter=reporter,
        ).labels

    if known is None:
        return name_by_clusters(features, cluster)
    ids, checked = known.images.ids or (UNKNOWN,) * len(known.images), known.checked()
    places = gathered.known.tolist()
    is_known = np.array([place >= 0 and bool(ids[place] or checked[place]) for place in places], dtype=np.bool_)
    names = [ids[place] if place >= 0 else UNKNOWN for place in places]
    return name_after_known(features, names, is_known, false_match_rate, cluster, constraints)


def rows_of(
    gathered: Gathered, found: Identities, known: KnownImages | None, split: str | None, folder: Path
) -> list[IdentityRow]:
    """Return a line for each of the images to name.

    Args:
        gathered: The images.
        found: Their names.
        known: The known images: what a person has checked stays checked.
        split: The split of all of them; None takes each one's own, and train where nothing is known.
        folder: Of the table: paths are relative to it.
    """
    images = gathered.content.images
    cameras = cameras_of(images)
    splits = images.splits.tolist() if images.splits is not None else [split or "train"] * len(images)
    checked = images.tracks.checked if images.tracks else np.zeros(len(images), dtype=np.bool_)
    if known is not None:
        checked = (gathered.known >= 0) & known.checked()[gathered.known]
    confidence = [None if np.isnan(value) else float(value) for value in found.confidence]
    return [
        IdentityRow(
            name if is_remote(name) else path_from(folder, images.root / name),
            found.names[row],
            cameras[row],
            splits[row] or "train",
            confidence[row],
            bool(checked[row]),
            found.nearest[row],
        )
        for row, name in enumerate(images.names)
        if gathered.asked[row]
    ]


def constraints_of(images: ImageList) -> Constraints | None:
    """Return which images show one object and which do not, where anything is known of that.

    Names of a tracker's crops are known for what they are in a plain folder, too.
    """
    tracks = images.tracks
    if tracks is None and images.ids is None:
        said = [of_tracker(Path(name).name) for name in images.names]
        names = tuple([track.tracklet if track else UNKNOWN for track in said])
        times = np.array([track.frame if track else np.nan for track in said], dtype=np.float64)
        tracks = Tracks(names, times, np.zeros(len(images), dtype=np.bool_)) if any(names) else None
    return find_constraints(images.names, cameras_of(images), images.ids or (UNKNOWN,) * len(images), tracks)


def cameras_of(images: ImageList) -> Sequence[str]:
    """Return the camera of each image, by its file name where nothing else says it; `UNKNOWN` for none."""
    return images.cams or tuple([_camera_of(Path(name).name) for name in images.names])


def _camera_of(file_name: str) -> str:
    said = of_tracker(file_name)
    return said.camera if said else camera_of(file_name)


def quality_of(gathered: Gathered, found: Identities, reporter: Reporter) -> dict[str, float]:
    """Return how well the names agree with the identities that the images came with; nothing where there are none."""
    quality: dict[str, float] = {}
    if gathered.content.images.ids is not None:
        with side_task("the identities were not compared with those of the dataset", reporter):
            asked = gathered.asked
            labels, truth = (number_names(names)[0][asked] for names in (found.names, gathered.content.images.ids))
            quality = label_quality(labels, truth)
    return quality


def _known_elsewhere(images: ImageList, known: KnownImages | None) -> ImageList:
    """Return the known images that are not among those to name, under their whole paths."""
    if known is None:
        return ImageList(Path(), ())
    there = {_key(path) for path in images.paths}
    ids = known.images.ids or (UNKNOWN,) * len(known.images)
    return ImageList(Path(), tuple([key for key, place in known.places.items() if key not in there and ids[place]]))


def _joined(images: ImageList, more: ImageList) -> ImageList:
    """Return the images of two lists; nothing is known of those of the second."""
    if not len(more):
        return images
    unknown = (UNKNOWN,) * len(more)
    ids, cams = (None if names is None else (*names, *unknown) for names in (images.ids, images.cams))
    splits = None if images.splits is None else np.concatenate([images.splits, np.full(len(more), "train")])
    tracks = Tracks.join([(len(images), images.tracks), (len(more), more.tracks)])
    return ImageList(images.root, PackedTexts.of(chain(images.names, more.names)), ids, cams, splits, tracks)


def _extract(
    images: ImageList, extraction: Extraction, reporter: Reporter
) -> tuple[EmbeddingFile, list[dict[str, str]]]:
    return embed_in_shards(ListParts(images, KEPT_SIZE), extraction, reporter)


def _with_features(
    content: EmbeddingFile, rest: ImageList, extraction: Extraction, path: Path, reporter: Reporter
) -> tuple[EmbeddingFile, list[dict[str, str]]]:
    """Add the features of known images to those of a file."""
    embedder = extraction.embedder
    if embedder is not None and content.about:
        check_same_model(content.about, embedder.about(), path)
    if not len(rest):
        return content, []
    if embedder is None:
        text = f"{plural(len(rest), 'known image is', 'known images are')} not in {path} and left out"
        reporter.warning(f"{text}; with --resume their features are extracted.")
        return content, []
    more, broken = _extract(rest, extraction, reporter)
    if more.features.shape[1] != content.features.shape[1]:
        raise DataError(
            f"{path} holds features of length {content.features.shape[1]}; the model gives {more.features.shape[1]}."
        )
    features = np.concatenate([content.matrix, more.matrix])
    return EmbeddingFile(features, _joined(content.images, more.images), content.about), broken


def _key(path: Path) -> str:
    return os.path.normpath(path.absolute())
