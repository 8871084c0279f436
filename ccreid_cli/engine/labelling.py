"""Pseudo-labels of the training features, with the rows split over the processes of a run."""

from __future__ import annotations

import numpy as np
import torch

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.machine.device import unless_out_of_memory
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.stopwatch import Stopwatch
from ccreid_cli.pseudo_labels.clustering import dbscan, infomap
from ccreid_cli.pseudo_labels.jaccard import (
    average_weights,
    expansion_weights,
    graph_from_pairs,
    half_size,
    weight_unit,
)
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.overlap import OverlapSearch, Pairs
from ccreid_cli.pseudo_labels.pipeline import ClusterSettings, PseudoLabels, pseudo_labels
from ccreid_cli.pseudo_labels.sparse_rows import SparseRows


def cluster_settings(config: TrainConfig) -> ClusterSettings:
    """Return a run's settings of the pseudo-labels.

    Raises:
        UsageError: A value is out of range.
    """
    return ClusterSettings(
        method=config.cluster, eps=config.eps, k1=config.k1, k2=config.k2, min_samples=config.min_samples
    )


def label_features(features: torch.Tensor, config: TrainConfig, group: Group, reporter: Reporter) -> PseudoLabels:
    """Cluster the features; every process gets the same labels, however many there are.

    Args:
        features: (N, D) float32 unit rows, the same in every process.
        config: The run's settings.
        group: The processes that share the work.
        reporter: Where messages go.

    Raises:
        DataError: A feature is not a number.
    """
    settings = cluster_settings(config)
    if group.world == 1:
        return _label_alone(features, settings, group.device, reporter)
    if not bool(torch.isfinite(features).all()):
        raise DataError("some features are not a number: the model has diverged.", "Try a smaller --lr.")
    watch = Stopwatch(group.device)
    labels = _label_together(features, settings, group, watch)
    return PseudoLabels(labels, int(labels.max(initial=-1)) + 1, int((labels == -1).sum()), watch.seconds)


def _label_alone(
    features: torch.Tensor, settings: ClusterSettings, device: torch.device, reporter: Reporter
) -> PseudoLabels:
    """Label on the device; or on the CPU, which gives the same, where the device has too little memory."""
    if device.type == "cpu":
        return pseudo_labels(features, settings, device=device)
    found = unless_out_of_memory(lambda: pseudo_labels(features, settings, device=device))
    if found is not None:
        return found
    reporter.warning(f"the pseudo-labels do not fit into the memory of {device}: computing the same on the CPU.")
    torch.cuda.empty_cache()
    return pseudo_labels(features.cpu(), settings)


def _label_together(
    features: torch.Tensor, settings: ClusterSettings, group: Group, watch: Stopwatch
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Search and compare this process's rows against all; cluster in rank 0."""
    start, stop = group.bounds(len(features))
    with watch.stage("neighbors"):
        table = FeatureTable(features, group.device)
        similarities, own = table.nearest(settings.k1, start, stop)
        indices = group.gather_rows(own)
    if settings.method == "infomap":
        links = group.gather_rows(similarities).cpu().numpy(), indices.cpu().numpy()
        with watch.stage("clustering"):
            return group.on_main(lambda: infomap(*links, settings.eps, settings.k2))
    with watch.stage("jaccard"):
        pairs = _near_pairs(table, similarities, indices, settings, group)
    with watch.stage("clustering"):
        return group.on_main(
            lambda: dbscan(graph_from_pairs([pairs], len(features)), settings.eps, settings.min_samples)
        )


def _near_pairs(
    table: FeatureTable, similarities: torch.Tensor, indices: torch.Tensor, settings: ClusterSettings, group: Group
) -> Pairs:
    """The pairs of all processes, by the steps of `jaccard_graph`, each on this process's rows.

    Args:
        table: All rows.
        similarities: Of this process's rows and their neighbours, (n, k1).
        indices: Neighbours of all rows, (N, k1).
        settings: The thresholds.
        group: The processes.
    """
    start, stop = group.bounds(len(table))
    unit, k2 = weight_unit(settings.k2), settings.k2
    weights = expansion_weights(table, similarities, indices, start, stop, half=half_size(settings.k1), unit=unit)
    weights = _gather(weights, group)
    if k2 > 1:
        weights = _gather(average_weights(weights, indices, k2, start, stop), group)
    scale = unit * min(k2, indices.shape[1])
    search = OverlapSearch(weights, scale, settings.eps)
    own = search.pairs(*_even_share(search, group))
    return Pairs(*(group.gather_array(part) for part in (own.rows, own.columns, own.distances)))


def _gather(rows: SparseRows, group: Group) -> SparseRows:
    """Put the row ranges of all processes under one another."""
    lengths = group.gather_rows(rows.offsets.diff())
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return SparseRows(offsets, group.gather_rows(rows.columns), group.gather_rows(rows.values))


def _even_share(search: OverlapSearch, group: Group) -> tuple[int, int]:
    """Return the rows [start, stop) of this process, cut so that all have as many candidates: early rows have more."""
    work = (search.end - search.begin).cumsum(0)
    if len(work) == 0:
        return group.bounds(len(search.offsets) - 1)
    before = torch.cat([work.new_zeros(1), work])[search.offsets]
    goals = before[-1] * torch.arange(1, group.world, device=work.device) // group.world
    cuts = [0, *torch.searchsorted(before, goals).tolist(), len(before) - 1]
    return cuts[group.rank], max(cuts[group.rank], cuts[group.rank + 1])
