"""What a reader finds out about one image, and the names of the splits. Imports no numpy."""

from __future__ import annotations

from typing import NamedTuple

SPLITS = ("train", "query", "gallery")


class Record(NamedTuple):
    """One image.

    Attributes:
        name: POSIX path relative to the dataset's root (an absolute path where a manifest gives one).
        person_id: Identity; -1 is unknown.
        camera: Camera, as the file names number it or already from 0, depending on who reads it.
    """

    name: str
    person_id: int
    camera: int
