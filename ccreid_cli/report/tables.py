"""Tables of a report as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ccreid_cli.core.words import plural
from ccreid_cli.report.content import ReportContent, Score, Setting
from ccreid_cli.report.numbers import STAGES, count, decimal, number, total_seconds

HONEST = (
    "“last” is the honest score: the network after the last epoch. “best” was picked by looking at the test set, "
    "which nobody can do without labels."
)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric_from: int = 1, kind: str = "") -> str:
    """Return a table; cells are escaped.

    Args:
        columns: Headings.
        rows: Cells; the first of a row is its heading.
        numeric_from: Columns from here on are right-aligned numbers.
        kind: A class of the stylesheet.
    """

    def cell(index: int, text: str) -> str:
        number_class = ' class="num"' if index >= numeric_from else ""
        if index == 0:
            return f'<th scope="row">{escape(text)}</th>'
        return f"<td{number_class}>{escape(text)}</td>"

    heads = "".join(
        f'<th scope="col"{" class=num" if index >= numeric_from else ""}>{escape(text)}</th>'
        for index, text in enumerate(columns)
    )
    body = "".join(f"<tr>{''.join(cell(index, text) for index, text in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table: {escape(columns[0] or "values")}">'
        f'<table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def score_table(content: ReportContent) -> str:
    """Return the final scores beside the published ones, with what to make of them."""
    rows = "".join(_score_row(score) for score in content.scores)
    heads = "".join(
        f'<th scope="col" class="num">{name}</th>' for name in ("mAP", "rank-1", "rank-5", "rank-10", "mINP")
    )
    notes = _score_notes(content)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table of scores"><table class="scores"><thead><tr>'
        f'<th scope="col">percent</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    )


def _score_row(score: Score) -> str:
    values = (score.mean_ap, score.rank1, score.rank5, score.rank10, score.mean_inp)
    cells = "".join(f'<td class="num">{decimal(value)}</td>' for value in values)
    detail = f" <small>{escape(score.detail)}</small>" if score.detail else ""
    return f'<tr class="{score.kind}"><th scope="row">{escape(score.label)}{detail}</th>{cells}</tr>'


def _score_notes(content: ReportContent) -> list[str]:
    notes = []
    kinds = {score.kind for score in content.scores}
    if "last" in kinds:
        notes.append(HONEST)
    if kinds and "published" not in kinds:
        notes.append(f"No numbers are published for {content.dataset} with {content.arch}.")
    sources = list(dict.fromkeys(score.source for score in content.scores if score.source))
    if sources:
        notes.append(f"Published in {'; '.join(sources)}.")
    changed = [setting.name for setting in content.settings if setting.source == "flag"]
    changed = [name for name in changed if name not in {"dataset", "data_dir", "logs_dir", "name", "device", "workers"}]
    if "published" in kinds and changed:
        notes.append(f"Set by flags, so not as published: {', '.join(changed)}.")
    if content.num_queries is not None:
        skipped = content.num_queries_skipped or 0
        rest = (
            f" {plural(skipped, 'query has', 'queries have')} no right image in the gallery: skipped."
            if skipped
            else ""
        )
        notes.append(f"Scored on {plural(content.num_queries, 'query', 'queries')}.{rest}")
    return notes


def epoch_table(content: ReportContent) -> str:
    """Return the metrics of every epoch, the columns nobody measured left out."""
    columns: list[tuple[str, list[str]]] = [
        ("loss", [decimal(number(line.get("loss")), 3) for line in content.metrics]),
        ("clusters", [count(number(line.get("num_clusters"))) for line in content.metrics]),
        ("outliers", [count(number(line.get("num_outliers"))) for line in content.metrics]),
    ]
    for key, title in (("ari", "ARI"), ("nmi", "NMI"), ("purity", "purity")):
        columns.append((title, [decimal(number(line.get(key)), 3) for line in content.metrics]))
    for key, title in (("mAP", "mAP %"), ("rank1", "rank-1 %")):
        columns.append((title, [decimal(100 * number(line.get(key))) for line in content.metrics]))
    for stage in STAGES:
        values = [line.get("seconds") for line in content.metrics]
        cells = [decimal(number(value.get(stage)) if isinstance(value, dict) else None) for value in values]
        columns.append((f"{stage} s", cells))
    columns.append(("all s", [decimal(total_seconds([line])) for line in content.metrics]))
    known = [(title, cells) for title, cells in columns if any(cell != "–" for cell in cells)]
    numbers = [count(number(line.get("epoch")) + 1) for line in content.metrics]
    rows = list(zip(numbers, *(cells for _, cells in known), strict=True))
    return table(["epoch", *(title for title, _ in known)], rows)


def settings_table(settings: Sequence[Setting]) -> str:
    """Return the settings and where each comes from."""
    rows = [[setting.name, setting.value, setting.source] for setting in settings]
    return table(["setting", "value", "from"], rows, numeric_from=3, kind="pairs")


def environment_table(rows: Sequence[tuple[str, str]]) -> str:
    """Return what the run was done with."""
    return table(["environment", "value"], rows, numeric_from=2, kind="pairs")
