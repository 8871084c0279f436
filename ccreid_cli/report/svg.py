"""Drawings as inline SVG: by Matplotlib, coloured by the page, so that they follow its light or dark theme."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

Values = NDArray[np.float64]

COLOURS = {name: f"#01020{digit}" for digit, name in enumerate(("muted", "line", "c1", "c2", "c3", "c4", "c5", "c6"))}
"""Colours of the page by name -> a colour nobody uses, drawn with and then replaced by the page's variable."""
COLOURS["c7"] = "#010208"

DASHES: dict[str, str | tuple[int, tuple[float, ...]]] = {"solid": "-", "dashed": (0, (5, 2.5)), "dotted": (0, (1, 2))}

MAX_BARS = 60
"""More bars than this are drawn as one outline."""

_SIZE = (5.0, 2.6)  # inches of 72 points: about as wide as a phone, so that text is never scaled down
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ccreid",
    "font.size": 10,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "axes.xmargin": 0.03,
    "path.simplify": True,
}

# Matplotlib tells on stderr that it builds its font cache; nothing of that concerns a report.
logging.getLogger("matplotlib").setLevel(logging.ERROR)


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart.

    Attributes:
        label: Its name in the legend.
        values: (N,) heights; NaN where there is none.
        colour: A name of `COLOURS`.
        dash: A name of `DASHES`.
    """

    label: str
    values: Values
    colour: str = "c1"
    dash: str = "solid"


@dataclass(frozen=True)
class Key:
    """One entry of a legend: ``dash`` is ``area`` for filled shapes."""

    label: str
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        title: Heading.
        svg: The drawing: an ``<svg>`` element.
        value: A number worth reading beside the heading.
        note: What the chart shows, for those who cannot see it and for those who wonder.
        keys: Legend; empty for a single line.
    """

    title: str
    svg: str
    value: str = ""
    note: str = ""
    keys: tuple[Key, ...] = field(default=())

    def drawing(self, prefix: str) -> Markup:
        """Return the drawing as HTML, its ids made unique within a page by `prefix`; ids nobody refers to go."""
        referred = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", self.svg))
        svg = re.sub(
            r' id="([^"]+)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in referred else "", self.svg
        )
        return Markup(re.sub(r"(href=\"#|url\(#)", rf"\g<1>{prefix}", svg))


def line_chart(
    x: Values,
    lines: list[Line],
    *,
    x_label: str,
    levels: Mapping[str, float] | None = None,
    from_zero: bool = False,
    percent: bool = False,
) -> str:
    """Draw lines over common x values.

    Args:
        x: (N,) positions.
        lines: What to draw; points are marked where they are few.
        x_label: What the positions are.
        levels: Name -> height of horizontal lines for comparison (dotted, grey).
        from_zero: Whether the axis begins at 0.
        percent: Whether heights are percentages.

    Returns:
        An ``<svg>`` element.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        for line in lines:
            known = np.isfinite(line.values)
            marker = "o" if known.sum() <= 20 else None
            axes.plot(
                x[known],
                line.values[known],
                color=COLOURS[line.colour],
                linestyle=DASHES[line.dash],
                linewidth=1.8,
                marker=marker,
                markersize=3.5,
            )
        for height in (levels or {}).values():
            axes.axhline(height, color=COLOURS["muted"], linestyle=DASHES["dotted"], linewidth=1.2)
        return _finish(figure, axes, x_label, from_zero=from_zero, percent=percent)


def stacked_chart(x: Values, layers: Mapping[str, Values], colours: Mapping[str, str], *, x_label: str) -> str:
    """Draw bars of layers on top of each other.

    Args:
        x: (N,) positions, one apart.
        layers: Name -> (N,) heights, the lowest layer first.
        colours: Name -> a name of `COLOURS`.
        x_label: What the positions are.

    Returns:
        An ``<svg>`` element.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        known = np.isfinite(x)
        x, below = x[known], np.zeros(int(known.sum()))
        for name, heights in layers.items():
            top, colour = below + heights[known], COLOURS[colours[name]]
            if len(x) > MAX_BARS:
                axes.stairs(top, np.append(x - 0.5, x[-1] + 0.5), baseline=below, fill=True, color=colour, linewidth=0)
            else:
                axes.bar(x, heights[known], width=0.86, bottom=below, color=colour, linewidth=0)
            below = top
        return _finish(figure, axes, x_label, from_zero=True)


def histogram_chart(edges: Values, layers: list[Line], *, x_label: str) -> str:
    """Draw histograms over each other, each as shares of its own total in percent.

    Args:
        edges: (B + 1,) of the bins.
        layers: Names and (B,) counts.
        x_label: What is counted.

    Returns:
        An ``<svg>`` element.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        used = np.flatnonzero(sum(layer.values for layer in layers))
        low, high = (int(used[0]), int(used[-1])) if len(used) else (0, len(edges) - 2)
        for layer in layers:
            shares = 100 * layer.values / max(1.0, layer.values.sum())
            colour = COLOURS[layer.colour]
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, linestyle=DASHES[layer.dash])
        axes.set_xlim(edges[low], edges[high + 1])
        return _finish(figure, axes, x_label, from_zero=True, percent=True, whole=False)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout=None)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_axes((0.1, 0.155, 0.875, 0.8))
    axes.patch.set_visible(False)
    return figure, axes


def _finish(
    figure: Figure, axes: Axes, x_label: str, *, from_zero: bool = False, percent: bool = False, whole: bool = True
) -> str:
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=whole, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    suffix = " %" if percent else ""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: f"{_short(height)}{suffix}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: _short(place)))
    if from_zero:
        axes.set_ylim(bottom=0)
    if percent:
        axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
    axes.set_xlabel(x_label, loc="right", labelpad=1)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(text.getvalue())


def _short(value: float) -> str:
    """Return a tick's number without more digits than it needs."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.4g}"


def _inline(document: str) -> str:
    """Turn an SVG document into an element that is at home in an HTML page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Matplotlib's stylesheet would apply to the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r" transform=\"rotate\(-0 [^\"]*\"", "", svg).replace("xlink:href", "href")
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(
        r"<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg, count=1
    ).strip()
