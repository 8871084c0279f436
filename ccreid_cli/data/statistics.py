"""The numbers of a dataset, per split: what is shown on load and by ``ccreid data info``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ccreid_cli.data.splits import ReidDataset, Split, queries_without_match


@dataclass(frozen=True)
class SplitStatistics:
    """One row of the table.

    Attributes:
        split: train, query or gallery.
        num_ids: Different known identities; None where none is known.
        num_images: Images.
        num_cameras: Different cameras; None where the dataset has no cameras.
        num_distractors: Gallery images of identities nobody queries; 0 for other splits.
        images_per_camera: Images by camera, those of no known camera under an empty name.
        min_images_per_id: Images of the rarest identity; None without identities.
        median_images_per_id: Median over the identities; None without identities.
        max_images_per_id: Images of the most frequent identity; None without identities.
    """

    split: str
    num_ids: int | None
    num_images: int
    num_cameras: int | None
    num_distractors: int
    images_per_camera: dict[str, int]
    min_images_per_id: int | None
    median_images_per_id: float | None
    max_images_per_id: int | None


@dataclass(frozen=True)
class DatasetStatistics:
    """The table.

    Attributes:
        name: The dataset.
        root: Its folder.
        splits: Rows for train, query and gallery.
        num_queries_without_match: Queries that evaluation will skip.
        fingerprint: SHA-256 over names, identities and cameras.
    """

    name: str
    root: str
    splits: tuple[SplitStatistics, ...]
    num_queries_without_match: int
    fingerprint: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; splits become keys."""
        values = asdict(self)
        rows = {row.pop("split"): row for row in values["splits"]}
        return values | {"splits": rows}


def dataset_statistics(dataset: ReidDataset) -> DatasetStatistics:
    """Count identities, images and cameras of each split."""
    queried = np.unique(dataset.query.person_ids)
    distractors = int((~np.isin(dataset.gallery.person_ids, queried)).sum()) if dataset.has_evaluation else 0
    unmatched = queries_without_match(dataset.query, dataset.gallery)
    return DatasetStatistics(
        name=dataset.name,
        root=str(dataset.root),
        splits=tuple(
            _split_statistics(name, split, dataset.has_cameras, distractors if name == "gallery" else 0)
            for name, split in dataset.splits.items()
        ),
        num_queries_without_match=int(unmatched.sum()),
        fingerprint=dataset.fingerprint(),
    )


def _split_statistics(name: str, split: Split, has_cameras: bool, num_distractors: int) -> SplitStatistics:
    known = split.person_ids[split.person_ids >= 0]
    per_id = np.unique(known, return_counts=True)[1]
    _, first, per_camera = np.unique(split.camera_ids, return_index=True, return_counts=True)
    names = [split.cameras[image] for image in first]
    return SplitStatistics(
        split=name,
        num_ids=len(per_id) if len(per_id) else None,
        num_images=len(split),
        num_cameras=split.num_cameras if has_cameras else None,
        num_distractors=num_distractors,
        images_per_camera=dict(zip(names, per_camera.tolist(), strict=True)) if has_cameras else {},
        min_images_per_id=int(per_id.min()) if len(per_id) else None,
        median_images_per_id=float(np.median(per_id)) if len(per_id) else None,
        max_images_per_id=int(per_id.max()) if len(per_id) else None,
    )
