"""Pseudo-labels and columns of split rows in one process of several: a module, so that it can be imported there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.distributed import process_group
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.pseudo_labels.approximate import ApproximateTable
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.constraints import Constraints
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels


def constrained_labels() -> NDArray[np.int64]:
    """Label 60 images in 40 groups, all alike, of which many pairs must be apart; each process has its rows alone."""
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.arange(40), np.arange(20)])
    apart = np.unique(np.sort(rng.integers(0, 40, (60, 2)), axis=1), axis=0)
    known = Constraints(groups, apart[apart[:, 0] < apart[:, 1]], np.full(40, -1), np.zeros(60, np.bool_))
    rows, edges = rng.normal(size=(60, 70)) * 0.3 + 1, torch.from_numpy(rng.normal(size=(60, 3)))
    settings = ClusterSettings(eps=0.9, min_samples=2, camera_norm=True)
    with process_group(torch.device("cpu"), 60) as group:
        own = rows[slice(*group.bounds(60))]
        found = pseudo_labels(
            own, settings, total=60, camera_ids=np.arange(60) % 2, edges=edges, constraints=known, group=group
        )
        return found.labels


def approximate_neighbours(rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.int64]]:
    """Search as a process does that has its share of the rows alone; also the rows that it would label."""
    with process_group(torch.device("cpu"), 60) as group:
        start, stop = group.bounds(len(rows))
        table = ApproximateTable(rows[start:stop].clone(), group.device, 0.9, k, group=group, total=len(rows))
        similarities, columns = (group.gather_rows(part) for part in table.nearest(k))
        return similarities, columns, table.sample_for_labels()


def columns_of(count: int, width: int, cuts: list[int]) -> list[torch.Tensor]:
    """Return running sums of the columns of a matrix, and those of every third row, once its rows were split."""
    whole = torch.randn(count, width, generator=torch.Generator().manual_seed(count))
    with process_group(torch.device("cpu"), 60) as group:
        ends = [0, *cuts, count]
        mine = torch.arange(ends[group.rank], ends[group.rank + 1])
        rows = SplitRows.collected(whole[mine], mine, count, group)
        assert torch.equal(rows.own, whole[slice(*group.bounds(count))])
        mine = torch.arange(group.rank, count, group.world)
        rows = SplitRows.collected(whole[mine], mine, count, group)
        assert torch.equal(rows.own, whole[slice(*group.bounds(count))])
        sums = rows.by_columns(lambda columns: columns.cumsum(dim=0))
        third = -(-count // 3)
        few = rows.by_columns(lambda columns: columns.double()[::3].cumsum(dim=0), third, torch.float64)
        for part, total in ((sums, count), (few, third)):
            assert torch.equal(part.own, part.gathered()[slice(*group.bounds(total))])
        return [sums.gathered(), few.gathered()]
