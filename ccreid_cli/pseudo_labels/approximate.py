"""Approximate neighbours for labels: how much is looked through follows from a recall, which is measured and told.

The exact search compares all images with all. Here each image is compared with candidates that an index proposes
(`inverted_file`). How many cells and candidates that takes is measured on images whose exact neighbours are known; what
the choice is worth is measured on others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.device import derived_seed, exact_product
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.stopwatch import Stopwatch
from ccreid_cli.pseudo_labels.clustering import Clusterer, ClusterSettings, agreement
from ccreid_cli.pseudo_labels.inverted_file import InvertedFile, train
from ccreid_cli.pseudo_labels.neighbors import FeatureArray, FeatureTable

LEAST_ROWS = 5000
"""With fewer images the exact search takes a second; it is used."""
_MEASURED_ROWS = 1000
_LABELLED_ROWS = 20_000
_REGIONS = 4
_PAIRS_PER_BLOCK = 1 << 22
_BLOCK_BYTES = 64 << 20
_MOST_CANDIDATES = 8
"""Candidates for each neighbour that is wanted, at most."""
_GROWTH = 1.25
_DIMS_PER_CELL = 128
"""A cell takes as long to look through as the exact similarity of rows of this length."""
_SAME = 1e-6
"""Similarities that differ by less are of equal rows: any of those may stand for the others."""


@dataclass(frozen=True)
class Approximation:
    """How well approximate neighbours did.

    Attributes:
        wanted: The recall that was asked for.
        recall: Share of the exact neighbours that were found, of images on which nothing was chosen.
        num_probed: Cells that were looked through for an image.
        num_cells: Of how many.
        agreement: Adjusted Rand index of the labels that approximate and exact neighbours give a sample of the images.
        num_labelled: Images of that sample.
    """

    wanted: float
    recall: float
    num_probed: int
    num_cells: int
    agreement: float
    num_labelled: int

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "neighbors": "approximate",
            "neighbor_recall": round(self.recall, 4),
            "cells_searched": self.num_probed,
            "cells": self.num_cells,
            "agreement_with_exact": round(self.agreement, 4),
            "num_compared_with_exact": self.num_labelled,
        }

    def in_words(self) -> str:
        """Say it in a sentence."""
        return (
            f"approximate neighbours: {self.recall:.1%} of the exact ones found (wanted: {self.wanted:.1%}) in "
            f"{self.num_probed:,} of {self.num_cells:,} cells; labels of {self.num_labelled:,} images agree with the "
            f"exact ones to an ARI of {self.agreement:.3f}"
        )


class Effort(NamedTuple):
    """How much a search looks through: cells, and candidates whose exact similarity is computed."""

    num_probed: int
    num_candidates: int


class ApproximateTable(FeatureTable):
    """A table whose search compares each row with a few candidates only.

    Args:
        features: As for `FeatureTable`.
        device: As for `FeatureTable`.
        recall: Share of the neighbours that is to be found.
        k: Of how many neighbours.
        counts: As for `FeatureTable`.
        group: As for `FeatureTable`.
        total: As for `FeatureTable`.
        like: A table of which these are some rows: they are searched as it is.

    Attributes:
        index: Of all rows.
        effort: What was chosen.
        recall: What that finds of rows on which it was not chosen.
    """

    def __init__(
        self,
        features: FeatureArray,
        device: torch.device,
        recall: float,
        k: int,
        *,
        counts: NDArray[np.int64] | None = None,
        group: Group | None = None,
        total: int | None = None,
        like: ApproximateTable | None = None,
    ) -> None:
        super().__init__(features, device, group=group, total=total, counts=counts)
        self.index: InvertedFile = InvertedFile(
            like.index.trained if like else train(self.take, len(self), self.group), device
        )
        for first, rows in self._blocks():
            self.index.add(first, rows)
        self.effort: Effort
        self.recall: float
        self.effort, self.recall = (like.effort, like.recall) if like else self._choose(recall, min(k, len(self)))

    def nearest(self, k: int, start: int | None = None, stop: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """As `FeatureTable.nearest`, but some neighbours may be missed: then the next most similar are in their place.

        Args:
            k: How many; at most N are given.
            start: As for `FeatureTable.nearest`; all processes give it, or none.
            stop: Likewise.

        Returns:
            Similarities (n, k) float32, exact for the rows found, and row numbers (n, k) int32.
        """
        first = self.start if start is None else start
        last = self.start + len(self.own) if stop is None else stop
        most = -(-len(self) // self.group.world) if start is None else last - first
        k = min(k, len(self))
        step = max(1, _PAIRS_PER_BLOCK // max(k, self.effort.num_candidates))
        parts = [
            self._nearest(min(first + done, last), min(first + done + step, last), k)
            for done in range(0, max(1, most), step)  # as many in each process: they exchange rows
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _nearest(self, first: int, last: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.own[first - self.start : last - self.start]
        numbers = torch.arange(first, last, device=self.device)[:, None]
        columns = self._candidates(rows, self.effort, k)
        columns = torch.cat([numbers, torch.where(columns < 0, numbers, columns)], dim=1).sort(dim=1)[0]
        owners = (numbers - self.start).int().expand_as(columns)
        exact = self.similarities(owners.reshape(-1), columns.reshape(-1).int()).view(columns.shape)
        is_itself = columns == numbers
        keys = exact.masked_fill(is_itself, -torch.inf)
        keys.scatter_(1, is_itself.byte().argmax(1, keepdim=True), torch.inf)
        best = keys.sort(dim=1, descending=True, stable=True)[1][:, :k]
        return exact.gather(1, best), columns.gather(1, best).int()

    def _candidates(self, rows: torch.Tensor, effort: Effort, k: int) -> torch.Tensor:
        """Propose rows, (n, count) int64, -1 for none; at least k, for which more cells are looked through at need."""
        count = min(max(effort.num_candidates, k), len(self))
        found = self.index.search(rows, effort.num_probed, count).to(self.device)
        lacking = torch.nonzero(found[:, k - 1] < 0)[:, 0]
        if len(lacking):
            found[lacking] = self.index.search(rows[lacking], self.index.most_probed, count).to(self.device)
        return found

    def _choose(self, wanted: float, k: int) -> tuple[Effort, float]:
        """Return the least effort that finds the wanted share, and the recall that it has on other rows."""
        sample = self.take(_draw(len(self), _MEASURED_ROWS, "recall"))
        limits = self._limits(sample, k)
        most = Effort(self.index.most_probed, min(_MOST_CANDIDATES * k, len(self)))
        best, least, probed = most, np.inf, 1
        while probed < min(least, most.num_probed):
            recalls = self._recalls(sample[::2], limits[::2], most._replace(num_probed=probed), k)
            enough = np.nonzero(recalls >= wanted)[0]
            cost = probed + (enough[0] + 1) * sample.shape[1] / _DIMS_PER_CELL if len(enough) else np.inf
            if cost < least:
                best, least = Effort(probed, int(enough[0]) + 1), cost
            probed = math.ceil(_GROWTH * probed)
        return best, float(self._recalls(sample[1::2], limits[1::2], best, k)[-1])

    def _recalls(self, rows: torch.Tensor, limits: torch.Tensor, effort: Effort, k: int) -> NDArray[np.float64]:
        """Share of the k nearest rows that are among the first candidates, for each number of those, (count,)."""
        columns = self.group.broadcast(self._candidates(rows, effort, k).cpu().numpy())
        numbers, found = np.unique(columns, return_inverse=True)
        others = self.take(numbers[numbers >= 0])
        places = torch.from_numpy(found.reshape(columns.shape) - int(numbers[0] < 0)).to(self.device)
        exact = torch.stack([others[own.clamp(min=0)] @ row for own, row in zip(places, rows, strict=True)])
        hits = (exact >= limits - _SAME) & (places >= 0)
        share: NDArray[np.float64] = (hits.cumsum(1).clamp(max=k).double().mean(0) / k).cpu().numpy()
        return self.group.broadcast(share)

    def _limits(self, rows: torch.Tensor, k: int) -> torch.Tensor:
        """The k-th greatest similarity of each of some rows to any row, (n, 1)."""
        best = rows.new_empty((len(rows), 0))
        for _, block in self._blocks():
            for part in torch.split(block, 8192):
                scores = torch.cat([best, exact_product(rows, part.T)], dim=1)
                best = scores.topk(min(k, scores.shape[1]), dim=1)[0]
        return best[:, -1:]

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Go through all rows in their order, the same in every process; yields a block's first number and its rows."""
        step = max(1, _BLOCK_BYTES // (4 * self.own.shape[1]))
        for first in range(0, len(self), step):
            yield first, self.take(np.arange(first, min(first + step, len(self))))

    def sample_for_labels(self) -> NDArray[np.int64]:
        """Return rows that lie together in a few regions, so that they have their neighbours among them, (n,)."""
        if len(self) <= _LABELLED_ROWS:
            return np.arange(len(self))
        seeds = self.take(_draw(len(self), _REGIONS, "regions"))
        scores = torch.cat([exact_product(seeds, block.T).cpu() for _, block in self._blocks()], dim=1)
        chosen = np.unique(scores.topk(_LABELLED_ROWS // _REGIONS, dim=1)[1].numpy())
        return self.group.broadcast(chosen)


def assess(table: ApproximateTable, settings: ClusterSettings, cluster: Clusterer, group: Group) -> Approximation:
    """Measure what a table's search is worth: label a sample of its rows by it and by the exact search.

    Args:
        table: The table.
        settings: How features become labels.
        cluster: The clusterer.
        group: The processes of the run; the first of them works.
    """
    chosen = table.sample_for_labels()
    counts = None if table.counts is None else table.counts[chosen]
    sample = table.take(chosen)

    def compare() -> float:
        alone = Group(device=group.device)
        exact = FeatureTable(sample, table.device, counts=counts)
        near = ApproximateTable(sample, table.device, settings.recall, settings.k1, counts=counts, like=table)
        one, other = (cluster(some, settings, alone, Stopwatch(group.device)).labels for some in (exact, near))
        return agreement(other, one)

    cells = table.effort.num_probed, table.index.num_cells
    return Approximation(settings.recall, table.recall, *cells, group.on_main(compare), len(chosen))


def _draw(count: int, number: int, purpose: str) -> NDArray[np.int64]:
    """Draw different rows, ascending, the same in every process."""
    random = np.random.default_rng(derived_seed(purpose, count))
    drawn: NDArray[np.int64] = np.sort(random.choice(count, min(count, number), replace=False))
    return drawn
