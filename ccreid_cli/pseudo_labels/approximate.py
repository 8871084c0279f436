"""Approximate neighbours for labels: how much is looked through follows from a recall, which is measured and told.

The exact search compares all images with all. Here each image is compared with those of the cells near it (`cells`).
How many cells that takes is read off images whose exact neighbours are known; what the choice is worth is measured on
others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.device import derived_seed
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.stopwatch import Stopwatch
from ccreid_cli.pseudo_labels.cells import Cells, find_centroids
from ccreid_cli.pseudo_labels.clustering import Clusterer, ClusterSettings, agreement
from ccreid_cli.pseudo_labels.neighbors import FeatureTable

LEAST_ROWS = 5000
"""With fewer images the exact search takes a second; it is used."""
_MEASURED_ROWS = 1000
_LABELLED_ROWS = 20_000
_REGIONS = 4
_CELLS_PER_ROOT = 4


@dataclass(frozen=True)
class Approximation:
    """How well approximate neighbours did.

    Attributes:
        wanted: The recall that was asked for.
        recall: Share of the exact neighbours that were found, of images on which nothing was chosen.
        compared: Share of all images that an image was compared with.
        agreement: Adjusted Rand index of the labels that approximate and exact neighbours give a sample of the images.
        num_labelled: Images of that sample.
    """

    wanted: float
    recall: float
    compared: float
    agreement: float
    num_labelled: int

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "neighbors": "approximate",
            "neighbor_recall": round(self.recall, 4),
            "share_compared": round(self.compared, 5),
            "agreement_with_exact": round(self.agreement, 4),
            "num_compared_with_exact": self.num_labelled,
        }

    def in_words(self) -> str:
        """Say it in a sentence."""
        return (
            f"approximate neighbours: {self.recall:.1%} of the exact ones found (wanted: {self.wanted:.1%}), each "
            f"image compared with {self.compared:.2%} of all; labels of {self.num_labelled:,} images agree with the "
            f"exact ones to an ARI of {self.agreement:.3f}"
        )


class ApproximateTable(FeatureTable):
    """A table whose search looks through the cells near each row only.

    Args:
        features: Unit rows, (N, D).
        device: As for `FeatureTable`.
        recall: Share of the neighbours that is to be found.
        k: Of how many neighbours.
        counts: As for `FeatureTable`.
        group: As for `FeatureTable`.
        like: A table of which these are some rows: its centroids and number of cells are taken.
    """

    def __init__(
        self,
        features: torch.Tensor,
        device: torch.device,
        recall: float,
        k: int,
        *,
        counts: NDArray[np.int64] | None = None,
        like: ApproximateTable | None = None,
        group: Group | None = None,
    ) -> None:
        super().__init__(features, device, group=group, counts=counts)
        rows = features.to(self.device, torch.float32)
        num_cells = max(1, round(_CELLS_PER_ROOT * math.sqrt(len(rows))))
        self.cells: Cells = Cells(rows, like.cells.centroids if like else find_centroids(rows, num_cells))
        self.num_near: int
        self.recall: float
        self.num_near, self.recall = (like.num_near, like.recall) if like else self._choose(recall, min(k, len(rows)))

    def nearest(self, k: int, start: int | None = None, stop: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """As `FeatureTable.nearest`, but some neighbours may be missed: then the next most similar are in their place.

        Args:
            k: How many; at most N are given.
            start: As for `FeatureTable.nearest`.
            stop: Likewise.

        Returns:
            Similarities (n, k) float32, exact for the rows found, and row numbers (n, k) int32.
        """
        first = self.start if start is None else start
        last = self.start + len(self.own) if stop is None else stop
        queries = torch.arange(first, last, device=self.device)
        return self.cells.nearest(queries, self.num_near, min(k, len(self)))

    def _choose(self, wanted: float, k: int) -> tuple[int, float]:
        """Return how many cells to look through for each row, and the recall that gives on other rows."""
        chosen = _draw(len(self), _MEASURED_ROWS, "recall").to(self.device)
        known, fresh = chosen[::2], chosen[1::2]
        columns = self.cells.nearest_of_all(known, k)[1]
        order = self.cells.near(known, len(self.cells))
        places = torch.empty_like(order)
        places.scatter_(1, order, torch.arange(len(self.cells), device=order.device).expand_as(order))
        needed = places.gather(1, self.cells.cell_of_row[columns]).reshape(-1).sort()[0]
        num_near = 1 + int(needed[max(0, math.ceil(wanted * len(needed)) - 1)])
        exact, found = (
            search[0] for search in (self.cells.nearest_of_all(fresh, k), self.cells.nearest(fresh, num_near, k))
        )
        # By similarity: of equal rows any may stand for the others.
        return num_near, float((found >= exact[:, -1:]).float().mean())

    def compared(self) -> float:
        """Return the share of all rows that a row is compared with, on average over a sample."""
        chosen = _draw(len(self), _MEASURED_ROWS, "compared").to(self.device)
        sizes = torch.bincount(self.cells.cell_of_row, minlength=len(self.cells))
        return float(sizes[self.cells.near(chosen, self.num_near)].sum(1).double().mean()) / len(self)

    def sample_for_labels(self) -> torch.Tensor:
        """Return rows that lie together in a few regions, so that they have their neighbours among them, (n,) int64."""
        if len(self) <= _LABELLED_ROWS:
            return torch.arange(len(self), device=self.device)
        rows = []
        for seed in _draw(len(self), _REGIONS, "regions").to(self.device):
            found: list[torch.Tensor] = []
            for cell in self.cells.near(seed[None], len(self.cells))[0].tolist():
                found.append(self.cells.members_of(cell))
                if sum(map(len, found)) >= _LABELLED_ROWS // _REGIONS:
                    break
            rows.append(torch.cat(found))
        chosen: torch.Tensor = torch.unique_consecutive(torch.cat(rows).sort()[0])
        return chosen


def assess(table: ApproximateTable, settings: ClusterSettings, cluster: Clusterer, group: Group) -> Approximation:
    """Measure what a table's search is worth: label a sample of its rows by it and by the exact search.

    Args:
        table: The table.
        settings: How features become labels.
        cluster: The clusterer.
        group: The processes of the run; the first of them works.
    """
    chosen = table.sample_for_labels()
    counts = None if table.counts is None else table.counts[chosen.cpu().numpy()]
    sample = table.cells.rows[chosen]

    def compare() -> float:
        alone = Group(device=group.device)
        exact = FeatureTable(sample, table.device, counts=counts)
        near = ApproximateTable(sample, table.device, settings.recall, settings.k1, counts=counts, like=table)
        one, other = (cluster(some, settings, alone, Stopwatch(group.device)).labels for some in (exact, near))
        return agreement(other, one)

    return Approximation(settings.recall, table.recall, table.compared(), group.on_main(compare), len(chosen))


def _draw(count: int, number: int, purpose: str) -> torch.Tensor:
    """Draw different rows, ascending, the same in every process."""
    random = np.random.default_rng(derived_seed(purpose, count))
    return torch.from_numpy(np.sort(random.choice(count, min(count, number), replace=False)))
