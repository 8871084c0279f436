"""What a dataset is once it is read: three splits of named images with identities and cameras."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.data.records import Record


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split, in the order of their names.

    Attributes:
        root: Folder that `names` are relative to.
        names: N POSIX paths, sorted. The order decides the numbers of pseudo-labels, so it is the same everywhere.
        person_ids: (N,) int64 identities; -1 is unknown.
        camera_ids: (N,) int64 cameras, from 0.
    """

    root: Path
    names: tuple[str, ...]
    person_ids: NDArray[np.int64]
    camera_ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.person_ids) == len(self.camera_ids):
            raise ValueError("names, person_ids and camera_ids must be of one length")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        """The N image files."""
        return [self.root / name for name in self.names]

    @property
    def num_ids(self) -> int:
        """Number of different known identities."""
        return len(np.unique(self.person_ids[self.person_ids >= 0]))

    @property
    def num_cameras(self) -> int:
        """Number of different cameras."""
        return len(np.unique(self.camera_ids))

    def select(self, which: NDArray[Any]) -> Split:
        """Return the images `which` points to.

        Args:
            which: (N,) bool mask, or indices of any length, kept in their order.
        """
        chosen = np.flatnonzero(which) if which.dtype == np.bool_ else np.asarray(which, dtype=np.int64)
        names = tuple(self.names[i] for i in chosen)
        return Split(self.root, names, self.person_ids[chosen], self.camera_ids[chosen])

    @classmethod
    def empty(cls, root: Path) -> Split:
        """Return a split without images."""
        return cls.from_records(root, [])

    @classmethod
    def from_records(cls, root: Path, records: Iterable[Record]) -> Split:
        """Return the split of `records`, sorted by name; cameras must already count from 0."""
        ordered = sorted(records)
        return cls(
            root=root,
            names=tuple(record.name for record in ordered),
            person_ids=np.array([record.person_id for record in ordered], dtype=np.int64),
            camera_ids=np.array([record.camera for record in ordered], dtype=np.int64),
        )


@dataclass(frozen=True, eq=False)
class ReidDataset:
    """A dataset on disk.

    Attributes:
        name: Name in the catalogue, or the path of the user's own images.
        root: Folder that all names are relative to.
        train: Images to train on. Their identities are used for diagnosis only, never by training.
        query: Images that are searched for.
        gallery: Images that are searched, distractors included.
        has_cameras: Whether camera ids are real. Without cameras each split's ids are chosen so that evaluation
            removes no gallery image.
    """

    name: str
    root: Path
    train: Split
    query: Split
    gallery: Split
    has_cameras: bool = True

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}

    @property
    def has_evaluation(self) -> bool:
        """Whether there are queries and a gallery to evaluate on."""
        return len(self.query) > 0 and len(self.gallery) > 0

    @property
    def has_train_ids(self) -> bool:
        """Whether any training image has a known identity."""
        return bool((self.train.person_ids >= 0).any())

    def fingerprint(self) -> str:
        """Return a SHA-256 over names, identities and cameras of all splits: the same wherever the dataset lies."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            digest.update(f"{name} {len(split)}\n".encode())
            digest.update("\n".join(split.names).encode())
            digest.update(split.person_ids.astype("<i8").tobytes())
            digest.update(split.camera_ids.astype("<i8").tobytes())
        return digest.hexdigest()


def queries_without_match(query: Split, gallery: Split) -> NDArray[np.bool_]:
    """Say which queries evaluation cannot score: no gallery image of their identity from another camera.

    Returns:
        (number of queries,) bool.
    """
    # Numbered from 0, so that a pair of identity and camera is one number that cannot overflow.
    persons, cameras = (
        np.unique(np.concatenate(parts), return_inverse=True)[1]
        for parts in ((query.person_ids, gallery.person_ids), (query.camera_ids, gallery.camera_ids))
    )
    num_cameras = 1 + cameras.max(initial=0)
    pairs = persons * num_cameras + cameras
    seen, wanted = np.unique(pairs[len(query) :]), persons[: len(query)]
    first, last = (np.searchsorted(seen // num_cameras, wanted, side) for side in ("left", "right"))
    in_own_camera = np.isin(pairs[: len(query)], seen)
    return np.asarray(last - first <= in_own_camera)
