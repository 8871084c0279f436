"""What a dataset is once it is read: three splits of named images with identities and cameras."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.names import UNKNOWN, numbering
from ccreid_cli.data.records import SPLITS, Record


@dataclass(frozen=True, eq=False)
class Tracks:
    """What is known of N images beside identities and cameras: which are of one object, and which cannot be.

    Attributes:
        tracklets: N names of tracks of one camera; `UNKNOWN` is none.
        times: (N,) float64 number of the frame, or seconds; NaN is unknown.
        checked: (N,) bool, whether a person has confirmed the identity, or that there is none.
    """

    tracklets: tuple[str, ...]
    times: NDArray[np.float64]
    checked: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tracklets)

    @classmethod
    def of(cls, records: Sequence[Record]) -> Tracks | None:
        """Return those of some images; None where nothing is known."""
        times = np.array([record.time for record in records], dtype=np.float64)
        checked = np.array([record.checked for record in records], dtype=np.bool_)
        tracklets = tuple([record.tracklet for record in records])
        return cls(tracklets, times, checked) if any(tracklets) or checked.any() or np.isfinite(times).any() else None

    def select(self, which: NDArray[Any]) -> Tracks:
        """Return those of the images at positions `which`."""
        return Tracks(tuple([self.tracklets[i] for i in which]), self.times[which], self.checked[which])

    @staticmethod
    def join(parts: Sequence[tuple[int, Tracks | None]]) -> Tracks | None:
        """Return those of several lists of images one after another.

        Args:
            parts: How many images each list has, and what is known of them.
        """
        if all(tracks is None for _, tracks in parts):
            return None
        known = [tracks or Tracks((UNKNOWN,) * n, np.full(n, np.nan), np.zeros(n, np.bool_)) for n, tracks in parts]
        return Tracks(
            tuple(chain.from_iterable(tracks.tracklets for tracks in known)),
            np.concatenate([tracks.times for tracks in known]),
            np.concatenate([tracks.checked for tracks in known]),
        )


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split, in the order of their names.

    Attributes:
        root: Folder that `names` are relative to.
        names: N POSIX paths, sorted. The order decides the numbers of pseudo-labels, so it is the same everywhere.
        identities: N names of identities, as the files give them; `UNKNOWN` is none.
        cameras: N names of cameras, likewise.
        person_ids: (N,) int64 numbers of the identities within the dataset, for computations; -1 is unknown.
        camera_ids: (N,) int64 numbers of the cameras within the dataset, from 0.
        tracks: What else is known of the images, if anything.
    """

    root: Path
    names: tuple[str, ...]
    identities: tuple[str, ...]
    cameras: tuple[str, ...]
    person_ids: NDArray[np.int64]
    camera_ids: NDArray[np.int64]
    tracks: Tracks | None = None

    def __post_init__(self) -> None:
        columns: list[Sized] = [self.names, self.identities, self.cameras, self.person_ids, self.camera_ids]
        columns += [self.tracks] if self.tracks else []
        if len(set(map(len, columns))) != 1:
            raise ValueError("names, identities, cameras and their numbers must be of one length")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        """The N image files."""
        return [self.root / name for name in self.names]

    @property
    def num_ids(self) -> int:
        """Number of different known identities."""
        return len(set(self.identities) - {UNKNOWN})

    @property
    def num_cameras(self) -> int:
        """Number of different known cameras."""
        return len(set(self.cameras) - {UNKNOWN})

    def known_camera_ids(self, unknown: int = -1) -> NDArray[np.int64]:
        """Return (N,) the cameras' numbers with `unknown` where the camera is not known."""
        known = np.array([camera != UNKNOWN for camera in self.cameras], dtype=np.bool_)
        return np.where(known, self.camera_ids, unknown)

    def select(self, which: NDArray[Any]) -> Split:
        """Return the images `which` points to.

        Args:
            which: (N,) bool mask, or indices of any length, kept in their order.
        """
        chosen = np.flatnonzero(which) if which.dtype == np.bool_ else np.asarray(which, dtype=np.int64)

        def pick(texts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple([texts[i] for i in chosen])

        texts = (pick(self.names), pick(self.identities), pick(self.cameras))
        tracks = self.tracks.select(chosen) if self.tracks else None
        return Split(self.root, *texts, self.person_ids[chosen], self.camera_ids[chosen], tracks)

    @classmethod
    def empty(cls, root: Path) -> Split:
        """Return a split without images."""
        return cls.from_records(root, [], {}, {})

    @classmethod
    def from_records(
        cls, root: Path, records: Iterable[Record], persons: Mapping[str, int], cameras: Mapping[str, int]
    ) -> Split:
        """Return the split of `records`, sorted by name.

        Args:
            root: Folder that the names are relative to.
            records: Its images.
            persons: Numbers of the identities, the same for all splits of a dataset (see `core.names.numbering`).
            cameras: Numbers of the cameras, likewise, from 0.
        """
        ordered = sorted(records)
        return cls(
            root=root,
            names=tuple([record.name for record in ordered]),
            identities=tuple([record.identity for record in ordered]),
            cameras=tuple([record.camera for record in ordered]),
            person_ids=np.array([persons[record.identity] for record in ordered], dtype=np.int64),
            camera_ids=np.array([cameras[record.camera] for record in ordered], dtype=np.int64),
            tracks=Tracks.of(ordered),
        )


@dataclass(frozen=True, eq=False)
class ReidDataset:
    """A dataset on disk.

    Attributes:
        name: Name in the catalogue, or the path of the user's own images.
        root: Folder that all names are relative to.
        train: Images to train on. Their identities are used for diagnosis only, never by training, but for those that a
            person has checked.
        query: Images that are searched for.
        gallery: Images that are searched, distractors included.
        has_cameras: Whether any camera is known. Without cameras evaluation removes no gallery image.
    """

    name: str
    root: Path
    train: Split
    query: Split
    gallery: Split
    has_cameras: bool = True

    @classmethod
    def from_records(
        cls,
        name: str,
        root: Path,
        records: Mapping[str, Sequence[Record]],
        *,
        ids_by_value: bool = True,
        camera_numbers: Mapping[str, int] | None = None,
    ) -> ReidDataset:
        """Return the dataset of `records`, its identities and cameras numbered once over all splits.

        Args:
            name: Its name.
            root: Folder that the records' names are relative to.
            records: Images by split; a split may be missing.
            ids_by_value: Whether identities that are all decimal numbers keep these as their numbers.
            camera_numbers: Numbers of the cameras; by default their places in order, an unknown camera first.
        """
        everything = [record for found in records.values() for record in found]
        persons = numbering((record.identity for record in everything), by_value=ids_by_value)
        cameras = camera_numbers or _places(record.camera for record in everything)
        train, query, gallery = (Split.from_records(root, records.get(split, ()), persons, cameras) for split in SPLITS)
        has_cameras = any(record.camera != UNKNOWN for record in everything)
        return cls(name, root, train, query, gallery, has_cameras=has_cameras)

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}

    @property
    def has_evaluation(self) -> bool:
        """Whether there are queries and a gallery to evaluate on."""
        return len(self.query) > 0 and len(self.gallery) > 0

    @property
    def why_not_scored(self) -> str:
        """Why evaluation could not score any query, as a clause; empty when it can."""
        if not self.has_evaluation:
            return f"{self.name} has no query and gallery"
        if queries_without_match(self.query, self.gallery).all():
            return f"no query of {self.name} has a gallery image of its identity from another camera"
        return ""

    @property
    def has_train_ids(self) -> bool:
        """Whether any training image has a known identity."""
        return bool((self.train.person_ids >= 0).any())

    def fingerprint(self) -> str:
        """Return a SHA-256 over the names and numbers of all splits: the same wherever the dataset lies."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            digest.update(f"{name} {len(split)}\n".encode())
            digest.update("\n".join(split.names).encode("utf-8", "surrogateescape"))
            digest.update(split.person_ids.astype("<i8").tobytes())
            digest.update(split.camera_ids.astype("<i8").tobytes())
            if split.tracks:
                digest.update("\n".join(split.tracks.tracklets).encode("utf-8", "surrogateescape"))
                digest.update(split.tracks.times.astype("<f8").tobytes() + split.tracks.checked.tobytes())
        return digest.hexdigest()


def _places(cameras: Iterable[str]) -> dict[str, int]:
    numbers = numbering(used := set(cameras))
    return {camera: place for place, camera in enumerate(sorted(used, key=numbers.__getitem__))}


def compared_cameras(query: Split, gallery: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cameras' numbers as evaluation compares them: an image of unknown camera shares it with none.

    Returns:
        (Q,) numbers of the query, (G,) of the gallery.
    """
    return query.known_camera_ids(-1), gallery.known_camera_ids(-2)


def queries_without_match(query: Split, gallery: Split) -> NDArray[np.bool_]:
    """Say which queries evaluation cannot score: no gallery image of their identity from another camera.

    Returns:
        (number of queries,) bool.
    """
    # Numbered from 0, so that a pair of identity and camera is one number that cannot overflow.
    persons, cameras = (
        np.unique(np.concatenate(parts), return_inverse=True)[1]
        for parts in ((query.person_ids, gallery.person_ids), compared_cameras(query, gallery))
    )
    num_cameras = 1 + cameras.max(initial=0)
    pairs = persons * num_cameras + cameras
    seen, wanted = np.unique(pairs[len(query) :]), persons[: len(query)]
    first, last = (np.searchsorted(seen // num_cameras, wanted, side) for side in ("left", "right"))
    in_own_camera = np.isin(pairs[: len(query)], seen)
    return np.asarray(last - first <= in_own_camera)
