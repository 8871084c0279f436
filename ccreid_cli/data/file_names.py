"""What the names of image files say by themselves: identity and camera, in the ways of published datasets."""

from __future__ import annotations

import re
from typing import NamedTuple

from ccreid_cli.core.names import UNKNOWN, name_of

_END = r"(?![0-9A-Za-z])"
_CAMERA = rf"_c([0-9]+)(?:s[0-9]+)?{_END}"
_PATTERNS = (
    re.compile(rf"(-?[0-9]+){_CAMERA}"),  # Market-1501 and most others: 0002_c1s1_000451_03.jpg
    re.compile(r"(00-1|[0-9]{4})C([0-9])T[0-9]{4}F[0-9]+"),  # MARS: 0001C1T0001F001.jpg
    re.compile(r"(-?[0-9]+)_?C([0-9]+)_?F[0-9]+"),  # DukeMTMC-VideoReID: 0001_C5_F0012_X1234.jpg
)
_CAMERA_IN_NAME = re.compile(_CAMERA)
_CAMERA_FOLDER = re.compile(r"(?:cam|camera|view|c)[-_ ]?(?:[0-9]+|[a-z])", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(
    r"(?:(?:bbox|bounding_box|image|images|multi)[-_ ])?"
    r"(?:train|training|trainval|test|testing|val|valid|validation|query|queries|gallery|probe|probes|distractors)"
    r"(?:[-_ ]?(?:all|set|data|images?|new|extra|[0-9]+))?",
    re.IGNORECASE,
)


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
