"""A report as one HTML page that needs nothing else: no network, no script, no other file.

Jinja escapes every value; only the drawings of `report.svg` are marked as HTML.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.core.words import plural, printable
from ccreid_cli.images.thumbnail import encode_small
from ccreid_cli.report.charts import epoch_table, eps_chart, retrieval_charts, training_charts
from ccreid_cli.report.content import ReportContent
from ccreid_cli.report.numbers import count, decimal, duration, total_seconds

MAX_SIDE = 128
"""Longest side of a thumbnail in pixels: more than is shown, for dense screens."""

SHOWN = (74, 96)
"""Width and height that a thumbnail is shown within, in CSS pixels."""


def render(content: ReportContent) -> str:
    """Return the report as one HTML document; equal contents give equal documents.

    Args:
        content: What to show.
    """
    return _templates().get_template("page.html").render(report=content)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("ccreid_cli.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    functions = (count, decimal, duration, plural, thumbnail, total_seconds)
    functions_of_sections = (training_charts, epoch_table, eps_chart, retrieval_charts)
    environment.globals.update({function.__name__: function for function in (*functions, *functions_of_sections)})
    return environment


def _shown(value: object) -> object:
    """Return a value with what no page can hold, as the bytes of a file's name that are no text, made visible."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


class Thumbnail(NamedTuple):
    """A small image within the page: a ``data:`` address, and the size to show it at in CSS pixels."""

    address: str
    width: int
    height: int


def thumbnail(image: NDArray[np.uint8]) -> Thumbnail:
    """Encode an image as a thumbnail.

    Args:
        image: (height, width, 3) uint8.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    data, kind = encode_small(picture, MAX_SIDE)
    text = base64.b64encode(data).decode("ascii")
    scale = min(SHOWN[0] / picture.width, SHOWN[1] / picture.height)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    return Thumbnail(f"data:image/{kind};base64,{text}", width, height)
