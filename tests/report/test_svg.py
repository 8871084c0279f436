from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ccreid_cli.report.svg import COLOURS, Chart, Line, histogram_chart, line_chart, stacked_chart

X = np.arange(1.0, 31.0)
ACCENT = "var(--c1)"


def _line_chart() -> str:
    lines = [Line("a", X**2, "c1"), Line("b", np.where(X % 3 == 0, X, np.nan), "c2", "dashed")]
    return line_chart(X, lines, x_label="epoch", levels={"known": 50.0})


DRAWN = {
    "line": _line_chart,
    "stacked": lambda: stacked_chart(X, {"u": X, "v": 2 * X}, {"u": "c1", "v": "c7"}, x_label="epoch"),
    "histogram": lambda: histogram_chart(np.linspace(0, 4, 31), [Line("p", X, "c3")], x_label="distance"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_charts_take_their_colours_and_fonts_from_the_page(name: str) -> None:
    svg = DRAWN[name]()
    ElementTree.fromstring(svg)
    colours = set(re.findall(r"#[0-9a-fA-F]{6}\b", svg))
    assert not colours, "every colour must be one of the page's variables"
    assert set(re.findall(r"var\(--([\w]+)\)", svg)) <= set(COLOURS)
    assert "font-family" not in svg
    assert "<style" not in svg
    assert "<text" in svg


def test_gaps_are_bridged_and_points_shown_where_few() -> None:
    values = np.array([1.0, np.nan, 3.0, 2.0])
    bare = line_chart(X[:4], [Line("a", np.full(4, np.nan))], x_label="epoch")
    few = line_chart(X[:4], [Line("a", values)], x_label="epoch")
    assert few.count(f"stroke: {ACCENT}") - bare.count(f"stroke: {ACCENT}") == 1 + 3 + 1  # line, points, their shape
    many = line_chart(X, [Line("a", X)], x_label="epoch")
    assert many.count(f"stroke: {ACCENT}") == 1


def test_nothing_known_draws_an_empty_chart() -> None:
    ElementTree.fromstring(line_chart(X, [Line("a", np.full(30, np.nan))], x_label="epoch"))
    ElementTree.fromstring(histogram_chart(np.linspace(0, 4, 31), [Line("p", np.zeros(30))], x_label="distance"))


def test_prefixes_keep_references_whole() -> None:
    svg = Chart("Loss", _line_chart()).drawing("t0-")
    ids, targets = re.findall(r' id="([^"]+)"', svg), re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert ids
    assert set(ids) == set(targets)
    assert all(name.startswith("t0-") for name in ids)
