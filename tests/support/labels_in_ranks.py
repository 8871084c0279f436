"""Pseudo-labels under constraints in one process of several: a module, so that such a process can import it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.distributed import process_group
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.constraints import Constraints
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels


def constrained_labels() -> NDArray[np.int64]:
    """Label 60 images in 40 groups, all alike, of which many pairs must be apart."""
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.arange(40), np.arange(20)])
    apart = np.unique(np.sort(rng.integers(0, 40, (60, 2)), axis=1), axis=0)
    known = Constraints(groups, apart[apart[:, 0] < apart[:, 1]], np.full(40, -1), np.zeros(60, np.bool_))
    rows = rng.normal(size=(60, 6)) * 0.3 + 1
    with process_group(torch.device("cpu"), 60) as group:
        return pseudo_labels(rows, ClusterSettings(eps=0.9, min_samples=2), constraints=known, group=group).labels
