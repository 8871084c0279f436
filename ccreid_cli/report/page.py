"""A report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from html import escape
from importlib import resources

from ccreid_cli.core.words import plural
from ccreid_cli.report.charts import Chart, with_prefix
from ccreid_cli.report.content import ReportContent
from ccreid_cli.report.figures import retrieval_charts, training_charts
from ccreid_cli.report.galleries import cluster_group, outlier_group, ranking_group
from ccreid_cli.report.numbers import count, decimal, duration, total_seconds
from ccreid_cli.report.tables import environment_table, epoch_table, score_table, settings_table

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page may load nothing and run nothing, whatever a file name in it says."""

PRIVACY = "This file holds images of the dataset. Mind its terms, and the people in it, before passing it on."


def render(content: ReportContent) -> str:
    """Return the report as one HTML document.

    Equal contents give equal documents.

    Args:
        content: What to show.
    """
    sections = [
        section
        for section in (_results(content), _training(content), _retrieval(content), _clusters(content), _setup(content))
        if section is not None
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    bodies = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{body}</section>'
        for key, title, body in sections
    )
    style = (resources.files("ccreid_cli.report") / "style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(content.name)} · ccreid report</title><style>{style}</style></head><body>"
        f'<a class="skip" href="#main">Skip to the results</a>{_header(content)}'
        f'<nav aria-label="Sections">{links}</nav><main id="main" tabindex="-1">{_notes(content)}{bodies}</main>'
        f"{_footer(content)}</body></html>\n"
    )


_Section = tuple[str, str, str] | None
"""Id, title and body of a section."""


def _header(content: ReportContent) -> str:
    words = (content.dataset, content.arch, _progress(content), _day(content.started))
    facts = [f"<span>{escape(word)}</span>" for word in words if word]
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _headline(content) if value
    )
    return (
        f'<header><p class="brand">ccreid report</p><h1>{escape(content.name)}</h1>'
        f'<p class="facts">{" · ".join(facts)}</p><dl class="headline">{tiles}</dl></header>'
    )


def _progress(content: ReportContent) -> str:
    if content.epochs_done >= content.epochs:
        return plural(content.epochs_done, "epoch")
    return f"unfinished: {content.epochs_done:,} of {plural(content.epochs, 'epoch')}"


def _day(started: str) -> str:
    return started[:10]


def _headline(content: ReportContent) -> list[tuple[str, str]]:
    """Return the few numbers to read first."""
    last = next((score for score in content.scores if score.kind == "last"), None)
    published = next((score for score in content.scores if score.is_own), None)
    newest = content.metrics[-1] if content.metrics else {}
    clusters = newest.get("num_clusters")
    seconds = total_seconds(content.metrics)
    return [
        ("mAP, last epoch", f"{decimal(last.mean_ap)} %" if last else ""),
        ("rank-1, last epoch", f"{decimal(last.rank1)} %" if last else ""),
        ("published mAP", f"{decimal(published.mean_ap)} %" if published else ""),
        ("clusters", count(clusters) if isinstance(clusters, int) else ""),
        ("training time", duration(seconds) if seconds else ""),
    ]


def _notes(content: ReportContent) -> str:
    if not content.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in content.notes)
    return f'<aside class="notes" aria-label="Notes"><ul>{items}</ul></aside>'


def _charts(charts: list[Chart], prefix: str) -> str:
    return f'<div class="charts">{"".join(_chart(chart, f"{prefix}{n}-") for n, chart in enumerate(charts))}</div>'


def _chart(chart: Chart, prefix: str) -> str:
    keys = "".join(
        f'<li><i class="swatch {key.dash}" style="--of: var(--{key.colour})"></i>{escape(key.label)}</li>'
        for key in chart.keys
    )
    legend = f'<ul class="legend">{keys}</ul>' if keys else ""
    value = f'<span class="value">{escape(chart.value)}</span>' if chart.value else ""
    return (
        f'<figure class="chart"><div class="head"><h3>{escape(chart.title)}</h3>{value}</div>{legend}'
        f"{with_prefix(chart.svg, prefix)}<figcaption>{escape(chart.note)}</figcaption></figure>"
    )


def _results(content: ReportContent) -> _Section:
    if not content.scores:
        return None
    return "results", "Results", score_table(content)


def _training(content: ReportContent) -> _Section:
    if not content.metrics:
        return "training", "Training", '<p class="note">No epoch is done yet.</p>'
    numbers = f"<details><summary>All numbers, epoch by epoch</summary>{epoch_table(content)}</details>"
    return "training", "Training", _charts(training_charts(content), "t") + numbers


def _retrieval(content: ReportContent) -> _Section:
    if content.retrieval is None:
        return None
    groups = "".join(ranking_group(group, is_open=index == 0) for index, group in enumerate(content.retrieval.groups))
    legend = (
        '<p class="note">Beside each query its nearest gallery images. <b class="right">✓ right</b>: the query’s '
        'identity, seen by another camera. <b class="wrong">✗ wrong</b>: another identity. <b class="junk">– junk</b>: '
        "the query’s identity and camera, left out of the score.</p>"
    )
    rankings = f"<h3>Rankings</h3>{legend}{groups}" if groups else ""
    body = f'<p class="note">With {escape(content.checkpoint)}.</p>' + _charts(retrieval_charts(content.retrieval), "r")
    return "retrieval", "Retrieval", body + rankings


def _clusters(content: ReportContent) -> _Section:
    found = content.clusters
    if found is None:
        return None
    facts = (
        f"With {content.checkpoint}, the {plural(found.num_images, 'training image')} fall into "
        f"{plural(found.num_clusters, 'cluster')}; {plural(found.num_outliers, 'image is', 'images are')} in none. "
        "These are the labels that another epoch would train with."
    )
    groups = "".join(cluster_group(group, is_open=index == 0) for index, group in enumerate(found.groups))
    outliers = outlier_group(found.outliers, found.num_outliers) if found.outliers else ""
    return "clusters", "Clusters", f'<p class="note">{escape(facts)}</p>{groups}{outliers}'


def _setup(content: ReportContent) -> _Section:
    body = (
        f"<details><summary>Settings</summary>{settings_table(content.settings)}</details>"
        f"<details><summary>Environment</summary>{environment_table(content.environment)}</details>"
    )
    return "setup", "Setup", body


def _footer(content: ReportContent) -> str:
    privacy = f"<p>{PRIVACY}</p>" if content.has_pictures else ""
    return f"<footer>{privacy}<p>Written by ccreid {escape(content.version)}.</p></footer>"
