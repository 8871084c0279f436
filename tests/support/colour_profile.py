"""Small ICC profiles of known colours, and what they mean in sRGB by the textbook."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
"""Columns: red, green and blue in XYZ, adapted to D50."""
_D50 = (0.9642, 1.0, 0.8249)


def profile(gamma: float, primaries: NDArray[np.float64] | None = None) -> bytes:
    """Return a version 2 display profile of a pure gamma: of colours where there are primaries, else of grey."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"wtpt": _xyz(_D50), b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x" + bytes(80)}
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0"
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), primaries.T, strict=True):
            tags[name + b"XYZ"], tags[name + b"TRC"] = _xyz(column), curve
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    space = b"GRAY" if primaries is None else b"RGB "
    header = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    header = (header + bytes(12) + b"acsp").ljust(68, b"\0") + _xyz(_D50)[8:]
    return header.ljust(128, b"\0") + table + body


def in_srgb(pixels: NDArray[np.uint8], gamma: float, primaries: NDArray[np.float64] = SRGB) -> NDArray[np.float64]:
    """Return (..., 3) pixels of `profile(gamma, primaries)` in levels of sRGB."""
    linear = (pixels / 255) ** gamma @ (np.linalg.inv(SRGB) @ primaries).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _xyz(values: object) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *np.rint(np.asarray(values) * 65536).astype(int))
