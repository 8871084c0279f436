"""One row for several images of one object: the mean of theirs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.split_rows import SplitRows


def pool_rows(rows: SplitRows, groups: NDArray[np.int64]) -> SplitRows:
    """Return the mean of each group's rows, scaled to length 1, (G, D).

    Args:
        rows: (N, D) unit rows.
        groups: (N,) group of each row, 0 to G - 1.
    """
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    device, rounds = rows.own.device, []
    for place in range(int(sizes.max(initial=0))):  # one row of each group at a time: in a fixed order
        longer = np.flatnonzero(sizes > place)
        images = order[starts[longer] + place]
        rounds.append((torch.from_numpy(longer).to(device), torch.from_numpy(images).to(device)))

    def summed(columns: torch.Tensor) -> torch.Tensor:
        sums = columns.new_zeros((len(sizes), columns.shape[1]))
        for longer, images in rounds:
            sums[longer] += columns[images]
        return sums

    sums = rows.by_columns(summed, len(sizes))
    lengths = torch.linalg.vector_norm(sums.own, dim=1, keepdim=True, dtype=torch.float64)
    return sums.with_own((sums.own / lengths.clamp(min=1e-12)).float())
