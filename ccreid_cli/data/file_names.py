"""What the names of image files say by themselves: identity and camera, in the ways of published datasets."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.names import UNKNOWN, name_of

_END = r"(?![0-9A-Za-z])"
_CAMERA = rf"_c([0-9]+)(?:s[0-9]+)?{_END}"
_PATTERNS = (
    re.compile(rf"(-?[0-9]+){_CAMERA}"),  # Market-1501 and most others: 0002_c1s1_000451_03.jpg
    re.compile(r"(00-1|[0-9]{4})C([0-9])T[0-9]{4}F[0-9]+"),  # MARS: 0001C1T0001F001.jpg
    re.compile(r"(-?[0-9]+)_?C([0-9]+)_?F[0-9]+"),  # DukeMTMC-VideoReID: 0001_C5_F0012_X1234.jpg
)
_PATTERN_EXAMPLE = "Example: --pattern '(?P<camera>[0-9]+)_(?P<tracklet>[0-9]+)_(?P<frame>[0-9]+)'"
_CAMERA_IN_NAME = re.compile(_CAMERA)
_CAMERA_FOLDER = re.compile(r"(?:cam|camera|view|c)[-_ ]?(?:[0-9]+|[a-z])", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(
    r"(?:(?:bbox|bounding_box|image|images|multi)[-_ ])?"
    r"(?:train|training|trainval|test|testing|val|valid|validation|query|queries|gallery|probe|probes|distractors)"
    r"(?:[-_ ]?(?:all|set|data|images?|new|extra|[0-9]+))?",
    re.IGNORECASE,
)


_OF_A_TRACKER = re.compile(
    r"(?<![0-9a-z])(?:cam|camera|c)[-_]?(?P<camera>[0-9]+|[a-z])"
    r"[-_](?:tracklet|track|trk|tid|t)[-_]?(?P<tracklet>[0-9]+)"
    r"(?:[-_](?:frame|frm|f)[-_]?(?P<frame>[0-9]+))?(?![0-9a-z])",
    re.IGNORECASE,
)
PATTERN_GROUPS = ("id", "camera", "tracklet", "frame")
"""What a pattern of the user's may name."""


_TRACKLET_OF_MARS = re.compile(r"((?:00-1|[0-9]{4})C[0-9]T[0-9]{4})F[0-9]+")


def tracklet_of(file_name: str) -> str:
    """Return the tracklet of a name like ``0001C1T0001F001.jpg`` of MARS, ``0001C1T0001``; else `UNKNOWN`."""
    match = _TRACKLET_OF_MARS.match(file_name)
    return match[1] if match else UNKNOWN


class Tracked(NamedTuple):
    """What the name of a tracker's crop says; `UNKNOWN` and NaN are nothing."""

    identity: str
    camera: str
    tracklet: str
    frame: float


def of_tracker(file_name: str, pattern: re.Pattern[str] = _OF_A_TRACKER) -> Tracked | None:
    """Return what a name like ``cam01_track0005_frame000123.jpg`` says, or None where it is not of that kind.

    Trackers number the tracks of each camera anew, so that the camera is part of the tracklet's name.

    Args:
        file_name: A name without folders.
        pattern: Its groups `PATTERN_GROUPS`, as far as it has them, are what is said.
    """
    match = pattern.search(file_name)
    if match is None:
        return None
    said = {name: value or "" for name, value in match.groupdict().items()}
    camera, tracklet, frame = (said.get(name, "") for name in PATTERN_GROUPS[1:])
    named = f"{camera}-{tracklet}" if tracklet else UNKNOWN
    return Tracked(name_of(said.get("id", "")), camera, named, float(frame) if frame.isdecimal() else math.nan)


def parse_pattern(text: str) -> re.Pattern[str] | None:
    """Return what ``--pattern`` gives; None for nothing.

    Raises:
        UsageError: It is no regular expression, or names other groups than `PATTERN_GROUPS`.
    """
    if not text:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(f'--pattern "{text}" is no regular expression: {error}.', _PATTERN_EXAMPLE) from error
    strange = sorted(set(pattern.groupindex) - set(PATTERN_GROUPS))
    if strange or not pattern.groupindex:
        what = f"names the group {strange[0]}" if strange else "names no group"
        raise UsageError(f'--pattern "{text}" {what}; it may name {", ".join(PATTERN_GROUPS)}.', _PATTERN_EXAMPLE)
    return pattern


class Named(NamedTuple):
    """Identity and camera as a file name gives them; `UNKNOWN` is none."""

    identity: str
    camera: str


def identity_and_camera(file_name: str) -> Named | None:
    """Return what a file name like ``0002_c1s1_000451_03.jpg`` says, or None where it is not of that kind."""
    match = next((match for pattern in _PATTERNS if (match := pattern.match(file_name))), None)
    if match is None:
        return None
    return Named(UNKNOWN if match[1] == "00-1" else name_of(match[1]), match[2])


def camera_of(file_name: str) -> str:
    """Return the camera that a file name gives as ``_c2``, or `UNKNOWN`: ``_c0ffee`` is none."""
    match = _CAMERA_IN_NAME.search(file_name)
    return match[1] if match else UNKNOWN


def is_camera_folder(name: str) -> bool:
    """Say whether a folder is named like a camera (``cam1``, ``cam_a``, ``c3``)."""
    return _CAMERA_FOLDER.fullmatch(name) is not None


def is_split_folder(name: str) -> bool:
    """Say whether a folder is named like a part of a dataset (``val``, ``bbox_train``, ``gallery_extra``)."""
    return _SPLIT_FOLDER.fullmatch(name) is not None
