from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ccreid_cli.report.charts import COLOURS, Line, histogram_chart, line_chart, stacked_chart, with_prefix
from ccreid_cli.report.numbers import count, decimal, duration, series, stage_seconds, total_seconds

X = np.arange(1.0, 31.0)
ACCENT = "var(--c1)"


def _charts() -> dict[str, str]:
    lines = [Line("a", X**2, "c1"), Line("b", np.where(X % 3 == 0, X, np.nan), "c2", "dashed")]
    return {
        "line": line_chart(X, lines, x_label="epoch", levels={"known": 50.0}),
        "stacked": stacked_chart(X, {"u": X, "v": 2 * X}, {"u": "c1", "v": "c7"}, x_label="epoch"),
        "histogram": histogram_chart(np.linspace(0, 4, 31), [Line("p", X, "c3")], x_label="distance"),
    }


@pytest.mark.parametrize("name", ["line", "stacked", "histogram"])
def test_charts_take_their_colours_and_fonts_from_the_page(name: str) -> None:
    svg = _charts()[name]
    assert svg == _charts()[name]
    ElementTree.fromstring(svg)
    colours = set(re.findall(r"#[0-9a-fA-F]{6}\b", svg))
    assert not colours, "every colour must be one of the page's variables"
    assert set(re.findall(r"var\(--([\w]+)\)", svg)) <= set(COLOURS)
    assert "font-family" not in svg
    assert "DejaVu" not in svg
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
    svg = with_prefix(_charts()["line"], "t0-")
    ids, targets = re.findall(r' id="([^"]+)"', svg), re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert ids
    assert set(ids) == set(targets)
    assert all(name.startswith("t0-") for name in ids)


def test_stages_are_summed_and_the_rest_is_other() -> None:
    lines = [
        {"seconds": {"extract": 1.0, "memory": 0.25, "save": 0.5}},
        {"seconds": {"extract": 2.0, "train": 3.0}},
        {},
    ]
    stages = stage_seconds(lines)
    assert list(stages) == ["extract", "train", "other"]
    np.testing.assert_allclose(stages["extract"], [1, 2, 0])
    np.testing.assert_allclose(stages["other"], [0.75, 0, 0])
    assert total_seconds(lines) == pytest.approx(6.75)


def test_numbers_in_words() -> None:
    assert [duration(seconds) for seconds in (0.2, 59.4, 61, 9840)] == ["0 s", "59 s", "1 min 1 s", "2 h 44 min"]
    assert [count(None), count(12936), decimal(float("nan")), decimal(82.649)] == ["–", "12,936", "–", "82.6"]
    np.testing.assert_array_equal(series([{"a": 1}, {"a": True}, {"a": None}, {}], "a"), [1, np.nan, np.nan, np.nan])
