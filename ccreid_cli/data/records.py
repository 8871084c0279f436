"""What a reader finds out about one image, and the names of the splits. Imports no numpy."""

from __future__ import annotations

import math
from typing import NamedTuple

from ccreid_cli.core.names import UNKNOWN

SPLITS = ("train", "query", "gallery")


class Record(NamedTuple):
    """One image. Identity and camera are names as `core.names.name_of` gives them, kept as the files write them.

    Attributes:
        name: POSIX path relative to the dataset's root (an absolute path where a manifest gives one).
        identity: Who or what it shows ("0002"); `UNKNOWN` where nobody says.
        camera: What took it ("1"); `UNKNOWN` likewise.
        tracklet: The track of one camera that it is of; `UNKNOWN` likewise.
        time: Number of its frame, or seconds; NaN where nobody says.
        checked: Whether a person has confirmed the identity, or that there is none.
    """

    name: str
    identity: str
    camera: str
    tracklet: str = UNKNOWN
    time: float = math.nan
    checked: bool = False
