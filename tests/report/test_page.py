"""The page as text: complete, inert, self-contained, well formed, readable in both themes."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import numpy as np
import pytest

from ccreid_cli.report import choose
from ccreid_cli.report.content import ReportContent, Training
from ccreid_cli.report.page import render, thumbnail

PRIVACY = "This file holds images of the dataset."
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page, checks that its elements nest, and notes elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open and self.open[-1] != "style" else ""

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


def test_equal_contents_give_equal_pages(content: ReportContent, text: str) -> None:
    assert render(content) == text


def test_hostile_names_stay_text(content: ReportContent, text: str) -> None:
    page = Page(text)
    assert not page.all("script")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count("<script>document.title='owned'</script>") >= 6
    assert {image["alt"] for image in page.all("img")} == {content.name}


def test_needs_no_other_file_and_no_network(text: str) -> None:
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert all(link.startswith("#") for link in page.values("href"))
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_links_lead_somewhere(text: str) -> None:
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [link[1:] for link in page.values("href")] + re.findall(r"url\(#([^)]*)\)", text)
    assert set(targets) | set(page.values("aria-labelledby")) <= set(ids)


def test_every_part_is_there(text: str) -> None:
    text = Page(text).text
    charts = ["Loss", "Clusters", "Outliers", "Label quality", "mAP and rank-1", "Time per epoch", "CMC curve"]
    charts += ["Stability", "Choice of eps", "0.8", "the most distinct of 0.3 to 0.8"]
    tables = [
        "82.3",
        "92.5",
        "82.6",
        "published, this recipe",
        "another paper",
        "packages.torch",
        "recipe market1501",
    ]
    galleries = [
        "Worst queries",
        "AP 42.0 %",
        "2 more junk images",
        "✓ right",
        "✗ wrong",
        "– junk",
        "cam 1",
        "✗ other id",
    ]
    for word in [*charts, *tables, *galleries, "Distances", "2 identities", "purity 75.0 %", "Outliers", PRIVACY]:
        assert word in text, word
    assert "“last” is the honest score" in text
    assert "Published in arXiv 2103.11568." in text
    assert "Set by flags, so not as published: iters." in text


def test_keyboard_reaches_everything(text: str) -> None:
    page = Page(text)
    first_link = page.all("a")[0]
    assert first_link == {"class": "skip", "href": "#main"}
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in page.all("div") if box.get("class") == "scroll")
    assert len(page.all("summary")) == len(page.all("details")) >= 5


def _with_training(content: ReportContent, lines: tuple[Any, ...], *others: str) -> ReportContent:
    """Return a report with other metrics, and of the other sections only those named."""
    sections = {"training": Training(lines, None, None, None)} | {key: content.sections[key] for key in others}
    return replace(content, metrics=lines, scores=(), sections=sections)


def test_a_run_that_just_began(content: ReportContent) -> None:
    page = Page(render(replace(_with_training(content, (), "setup"), started="", notes=())))
    assert "No epoch is done yet." in page.text
    assert "unfinished: 0 of 12 epochs" in page.text
    assert PRIVACY not in page.text
    assert not page.all("img")


def test_a_run_without_evaluation_or_identities(content: ReportContent) -> None:
    wanted = {"epoch", "seconds", "loss", "num_clusters", "num_outliers"}
    lines = tuple({key: value for key, value in line.items() if key in wanted} for line in content.metrics)
    text = Page(render(_with_training(content, lines, "clusters"))).text
    assert "Biggest clusters" in text
    assert "Loss" in text
    assert "Label quality" not in text
    assert "mAP" not in text
    assert "true identities" not in text


@pytest.mark.parametrize(
    "line", [{}, {"epoch": 0, "loss": float("nan"), "seconds": 3}, {"epoch": "x", "loss": "<b>", "seconds": {"a": "b"}}]
)
def test_damaged_metrics_cost_no_report(content: ReportContent, line: dict[str, object]) -> None:
    Page(render(_with_training(content, (line,))))


def test_many_epochs_stay_small(content: ReportContent) -> None:
    lines = tuple({**content.metrics[0], "epoch": epoch} for epoch in range(300))
    assert len(render(_with_training(content, lines))) < 400_000


def test_the_largest_report_stays_under_ten_megabytes(rng: np.random.Generator) -> None:
    small = thumbnail(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8))
    rankings = 3 * choose.NUM_QUERIES * (1 + choose.NUM_RESULTS + choose.MAX_JUNK)
    members = 3 * choose.NUM_CLUSTERS * choose.NUM_MEMBERS
    assert (rankings + members + choose.NUM_OUTLIERS) * (len(small.address) + 500) < 9_000_000
    assert small.width == small.height


def _themes() -> list[dict[str, str]]:
    style = (resources.files("ccreid_cli.report") / "templates" / "style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", theme)) for theme in (light, dark)]


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", _themes(), ids=["light", "dark"])
def test_contrast_of_text_and_charts(theme: dict[str, str]) -> None:
    """WCAG 2.2: text 4.5 to 1, graphics 3 to 1."""
    text, graphics = ("ink", "muted", "accent", "right", "wrong", "junk"), ("c1", "c2", "c3", "c4", "c5", "c6")
    for name, least in [*((name, 4.5) for name in text), *((name, 3.0) for name in graphics)]:
        dark, light = sorted((_luminance(theme[name]), _luminance(theme["paper"])))
        assert (light + 0.05) / (dark + 0.05) >= least, name
