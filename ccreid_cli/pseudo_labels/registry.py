"""The clusterers by name. Another one is a function in a module of its own and a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ccreid_cli.core.components import Component, find_row, require
from ccreid_cli.core.errors import UsageError

if TYPE_CHECKING:
    from ccreid_cli.pseudo_labels.clustering import Clusterer


@dataclass(frozen=True)
class ClustererRow(Component["Clusterer"]):
    """A clusterer, and how it reads ``--eps``.

    Attributes:
        larger_eps_joins_more: Whether a larger eps puts more images into clusters: true of a distance, false of a
            similarity.
        chooses_eps: Whether it can choose eps by itself: ``--eps auto``.
    """

    larger_eps_joins_more: bool = True
    chooses_eps: bool = False


def _dbscan() -> Clusterer:
    from ccreid_cli.pseudo_labels.clustering import cluster_by_dbscan

    return cluster_by_dbscan


def _infomap() -> Clusterer:
    from ccreid_cli.pseudo_labels.clustering import cluster_by_infomap

    return cluster_by_infomap


CLUSTERERS: dict[str, ClustererRow] = {
    "dbscan": ClustererRow(
        "DBSCAN on k-reciprocal Jaccard distances, as in the paper",
        _dbscan,
        {"eps": 0.6, "k1": 30, "k2": 6},
        chooses_eps=True,
    ),
    "infomap": ClustererRow(
        "Infomap on cosine similarities, as in the November 2021 version",
        _infomap,
        {"eps": 0.5, "k1": 15, "k2": 4},
        needs=("infomap", "infomap"),
        larger_eps_joins_more=False,
    ),
}
"""Defaults are those of the November 2021 version."""


def load_clusterer(name: str) -> Clusterer:
    """Return the clusterer called `name`.

    Raises:
        UsageError: There is none, or it needs a package that is not installed.
    """
    row = find_row(CLUSTERERS, "clusterer", name)
    if row.needs:
        require(*row.needs)
    return row.load()


def check_eps(name: str, eps: float | str) -> None:
    """Check that the clusterer called `name` can work with such an eps.

    Raises:
        UsageError: It is "auto", and this clusterer needs a number; or there is no such clusterer.
    """
    row = find_row(CLUSTERERS, "clusterer", name)
    if eps == "auto" and not row.chooses_eps:
        able = ", ".join(other for other, one in CLUSTERERS.items() if one.chooses_eps)
        raise UsageError(
            f"--eps auto does not go with --cluster {name}, which cannot choose it.",
            f"Give a number ({row.defaults.get('eps', 'see its help')} is its default), or use --cluster {able}.",
        )
