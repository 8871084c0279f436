"""Which charts a report has, and the table of its epochs."""

from __future__ import annotations

import numpy as np

from ccreid_cli.pseudo_labels.choosing_eps import EpsChoice
from ccreid_cli.report.content import Retrieval, Training
from ccreid_cli.report.numbers import (
    STAGES,
    Metrics,
    as_mapping,
    count,
    decimal,
    duration,
    epoch_numbers,
    number,
    series,
    stage_seconds,
    total_seconds,
)
from ccreid_cli.report.svg import Chart, Key, Line, Values, histogram_chart, line_chart, stacked_chart

NUM_RANKS_SHOWN = 50

STAGE_NAMES = {
    "extract": "extract features",
    "neighbors": "neighbours",
    "jaccard": "Jaccard distance",
    "clustering": "clustering",
    "train": "train",
    "evaluate": "evaluate",
    "other": "other",
}
_STAGE_COLOURS = dict(zip(STAGE_NAMES, ("c1", "c4", "c3", "c6", "c2", "c5", "c7"), strict=True))


def training_charts(training: Training) -> list[Chart]:
    """Draw how loss, labels, scores and time went over the epochs; what no epoch has is left out."""
    of_labels = (_cluster_chart, _outlier_chart, _camera_chart, _eps_chart, _stability_chart, _quality_chart)
    makers = (_loss_chart, *of_labels, _score_chart, _time_chart)
    return [chart for make in makers if (chart := make(training)) is not None]


def retrieval_charts(retrieval: Retrieval) -> list[Chart]:
    """Draw the CMC curve, the distances of pairs, and how AP spreads over the queries."""
    return [_cmc_chart(retrieval), _distance_chart(retrieval), _precision_chart(retrieval)]


def _last_of(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def _lines(training: Training, wanted: list[tuple[str, str, str, str]], scale: float = 1.0) -> list[Line]:
    """Make the lines of the metrics that are there: (metric, label, colour, dash)."""
    lines = [Line(label, scale * series(training.metrics, key), colour, dash) for key, label, colour, dash in wanted]
    return [line for line in lines if np.isfinite(line.values).any()]


def _keys(lines: list[Line]) -> tuple[Key, ...]:
    return tuple(Key(line.label, line.colour, line.dash) for line in lines)


def _loss_chart(training: Training) -> Chart | None:
    lines = _lines(training, [("loss", "loss", "c1", "solid")])
    if not lines:
        return None
    svg = line_chart(epoch_numbers(training.metrics), lines, x_label="epoch")
    return Chart("Loss", svg, decimal(_last_of(lines[0].values), 2), "Mean contrastive loss of each epoch.")


def _cluster_chart(training: Training) -> Chart | None:
    lines = _lines(training, [("num_clusters", "clusters", "c1", "solid")])
    if not lines:
        return None
    keys, levels, note = _keys(lines), {}, "Clusters found at the start of each epoch."
    if training.num_ids:
        name = f"true identities: {count(training.num_ids)}"
        keys, levels = (*keys, Key(name, "muted", "dotted")), {name: float(training.num_ids)}
        note += " The dotted line is the number of identities, which training never sees."
    svg = line_chart(epoch_numbers(training.metrics), lines, x_label="epoch", levels=levels)
    return Chart("Clusters", svg, count(_last_of(lines[0].values)), note, keys if levels else ())


def _outlier_chart(training: Training) -> Chart | None:
    share = training.num_images
    lines = _lines(training, [("num_outliers", "outliers", "c1", "solid")], 100 / share if share else 1.0)
    if not lines:
        return None
    svg = line_chart(epoch_numbers(training.metrics), lines, x_label="epoch", from_zero=True, percent=share is not None)
    note = "Training images in no cluster: left out of the epoch's batches."
    return Chart("Outliers", svg, count(_last_of(series(training.metrics, "num_outliers"))), note)


def _camera_chart(training: Training) -> Chart | None:
    lines = _lines(training, [("cross_camera_share", "images", "c1", "solid")], 100.0)
    if not lines:
        return None
    svg = line_chart(epoch_numbers(training.metrics), lines, x_label="epoch", from_zero=True, percent=True)
    note = (
        "Share of the clustered images that are in clusters seen by several cameras; what cameras teach grows with it."
    )
    return Chart("Across cameras", svg, f"{decimal(_last_of(lines[0].values))} %", note)


def _eps_chart(training: Training) -> Chart | None:
    lines = _lines(training, [("eps", "eps", "c1", "solid")])
    if not lines:
        return None
    svg = line_chart(epoch_numbers(training.metrics), lines, x_label="epoch")
    note = "The eps that was chosen at the start of each epoch: the one whose clusters stood out most."
    return Chart("eps", svg, f"{_last_of(lines[0].values):g}", note)


def _stability_chart(training: Training) -> Chart | None:
    lines = _lines(training, [("stability", "stability", "c1", "solid")])
    if not lines:
        return None
    svg = line_chart(epoch_numbers(training.metrics), lines, x_label="epoch")
    note = "How far the clusters are those of the epoch before (adjusted Rand index); no identities are needed."
    return Chart("Stability", svg, decimal(_last_of(lines[0].values), 2), note)


def eps_chart(choice: EpsChoice) -> Chart:
    """Draw how every eps rates, the chosen one in the legend."""
    values = np.array([[trial.silhouette, trial.score] for trial in choice.trials])
    lines = [Line("smoothed", values[:, 1], "c1"), Line("silhouette", values[:, 0], "c2", "dotted")]
    x = np.array([trial.eps for trial in choice.trials])
    svg = line_chart(x, lines, x_label="eps")
    return Chart("Choice of eps", svg, f"{choice.eps:g}", f"{choice.why()[0].upper()}{choice.why()[1:]}", _keys(lines))


def _quality_chart(training: Training) -> Chart | None:
    wanted = [("purity", "purity", "c3", "dotted"), ("nmi", "NMI", "c2", "dashed"), ("ari", "ARI", "c1", "solid")]
    lines = _lines(training, wanted)
    if not lines:
        return None
    svg = line_chart(epoch_numbers(training.metrics), lines, x_label="epoch")
    note = "How well clusters match the true identities (1 is perfect). A diagnosis: training never sees identities."
    return Chart("Label quality", svg, "", note, _keys(lines))


def _score_chart(training: Training) -> Chart | None:
    wanted = [("rank1", "rank-1", "c2", "dashed"), ("mAP", "mAP", "c1", "solid")]
    lines = _lines(training, wanted, 100.0)
    if not lines:
        return None
    published, levels, keys = training.published, {}, _keys(lines)
    if published:
        levels = {"published mAP": published.mean_ap, "published rank-1": published.rank1}
        levels = {name: height for name, height in levels.items() if np.isfinite(height)}
        keys = (*keys, Key("published", "muted", "dotted"))
    svg = line_chart(epoch_numbers(training.metrics), lines, x_label="epoch", levels=levels, percent=True)
    value = f"{decimal(_last_of(lines[-1].values))} %"
    return Chart("mAP and rank-1", svg, value, "Scores on query and gallery, in percent.", keys)


def _time_chart(training: Training) -> Chart | None:
    stages = stage_seconds(training.metrics)
    if not stages:
        return None
    svg = stacked_chart(epoch_numbers(training.metrics), stages, _STAGE_COLOURS, x_label="epoch")
    keys = tuple(Key(STAGE_NAMES[name], _STAGE_COLOURS[name], "area") for name in stages)
    total = float(sum(values.sum() for values in stages.values()))
    return Chart(
        "Time per epoch", svg, duration(total), "Seconds of each stage, stacked; beside the title, all epochs.", keys
    )


def epoch_table(metrics: Metrics) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the headings and the rows of a table of all epochs; columns that no epoch has are left out."""
    columns = {
        "loss": [decimal(number(line.get("loss")), 3) for line in metrics],
        "clusters": [count(number(line.get("num_clusters"))) for line in metrics],
        "outliers": [count(number(line.get("num_outliers"))) for line in metrics],
        "eps": [decimal(number(line.get("eps")), 3) for line in metrics],
    }
    for key, title in (("stability", "stability"), ("ari", "ARI"), ("nmi", "NMI"), ("purity", "purity")):
        columns[title] = [decimal(number(line.get(key)), 3) for line in metrics]
    for key, title in (("mAP", "mAP %"), ("rank1", "rank-1 %")):
        columns[title] = [decimal(100 * number(line.get(key))) for line in metrics]
    for stage in STAGES:
        seconds = [as_mapping(line.get("seconds")).get(stage) for line in metrics]
        columns[f"{stage} s"] = [decimal(number(value)) for value in seconds]
    columns["all s"] = [decimal(total_seconds([line])) for line in metrics]
    known = {title: cells for title, cells in columns.items() if any(cell != "–" for cell in cells)}
    epochs = [count(number(line.get("epoch")) + 1) for line in metrics]
    return ["epoch", *known], list(zip(epochs, *known.values(), strict=True))


def _cmc_chart(retrieval: Retrieval) -> Chart:
    shown = 100 * retrieval.cmc[:NUM_RANKS_SHOWN]
    line = Line("CMC", shown, "c1")
    svg = line_chart(np.arange(1, len(shown) + 1, dtype=np.float64), [line], x_label="rank", percent=True)
    note = "Share of queries with a right image among the first so many results."
    return Chart("CMC curve", svg, f"rank-1 {decimal(float(shown[0]))} %", note)


def _distance_chart(retrieval: Retrieval) -> Chart:
    layers = [
        Line("same identity, other camera", retrieval.positives.astype(np.float64), "c3"),
        Line("different identity", retrieval.negatives.astype(np.float64), "c2", "dashed"),
    ]
    svg = histogram_chart(retrieval.edges, layers, x_label="squared distance of unit features")
    pairs = f"{count(retrieval.positives.sum())} and {count(retrieval.negatives.sum())} pairs"
    note = f"Query-gallery pairs, each kind as shares of its own total ({pairs}). The less they overlap, the better."
    return Chart("Distances", svg, "", note, _keys(layers))


def _precision_chart(retrieval: Retrieval) -> Chart:
    known = 100 * retrieval.average_precision[np.isfinite(retrieval.average_precision)]
    counts, edges = np.histogram(known, bins=20, range=(0, 100))
    svg = histogram_chart(edges, [Line("queries", counts.astype(np.float64), "c1")], x_label="average precision, %")
    median = f"median {decimal(float(np.median(known)))} %"
    return Chart("AP of each query", svg, median, "Share of the queries at each average precision.")
