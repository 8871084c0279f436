"""Candidates for the nearest neighbours: faiss's inverted file (IVF; Jégou et al., PAMI 2011, section IV).

k-means divides the rows into cells; a query looks through those of the nearest centres. On a CPU the rows of a cell are
codes of four bits for two dimensions each, which the processor compares 32 at a time (André et al., VLDB 2015); on a
GPU they are the rows themselves. What is found are candidates: their exact similarities decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.distributed import Group

_CELLS_PER_ROOT = 4
_POINTS_PER_CELL = 32
_ITERATIONS = 8
_MOST_DIMS = 128
"""Wider rows are reduced to these principal components for the candidates."""
_MOST_PROBED_ON_GPU = 2048
_QUERIES_AT_ONCE = 8192


class InvertedFile:
    """An index of rows in cells: at most 64 bytes a row and its number, which all processes hold alike.

    Args:
        trained: As `train` returns it.
        device: Where to search: a GPU, if faiss can use it, or the CPU.

    Attributes:
        trained: As given, to index other rows alike.
        num_cells: How many cells there are.
    """

    def __init__(self, trained: NDArray[np.uint8], device: torch.device) -> None:
        import faiss

        self.trained = trained
        index: Any = faiss.deserialize_index(trained)
        self._resources: Any = None
        if _on_gpu(device):
            self._resources = faiss.StandardGpuResources()
            index = faiss.index_cpu_to_gpu(self._resources, device.index or 0, index)
        self._index, self._cells = index, index if self._resources else faiss.extract_index_ivf(index)
        self.num_cells = int(self._cells.nlist)

    @property
    def most_probed(self) -> int:
        """The most cells that a search can look through."""
        return min(self.num_cells, _MOST_PROBED_ON_GPU) if self._resources else self.num_cells

    def add(self, first: int, rows: torch.Tensor) -> None:
        """Index some rows, (m, D) float32, the first of which has the number `first`."""
        self._index.add_with_ids(rows.cpu().numpy(), np.arange(first, first + len(rows)))

    def search(self, rows: torch.Tensor, num_probed: int, count: int) -> torch.Tensor:
        """Propose neighbours of rows.

        Args:
            rows: (n, D) float32.
            num_probed: Cells to look through for each.
            count: How many to propose, at most as many as are indexed.

        Returns:
            Their numbers, the likeliest first, -1 where the cells hold too few; (n, count) int64, on the CPU.
        """
        self._cells.nprobe = num_probed
        parts = torch.split(rows, _QUERIES_AT_ONCE)
        return torch.from_numpy(np.concatenate([self._index.search(part.cpu().numpy(), count)[1] for part in parts]))


def train(take: Callable[[NDArray[np.int64]], torch.Tensor], total: int, group: Group) -> NDArray[np.uint8]:
    """Find the cells and codes for rows from a sample of them: the same for the same rows.

    Args:
        take: Gives rows by ascending number; all processes call it together.
        total: How many rows there are.
        group: The processes; the first of them works.

    Returns:
        The empty index, as bytes.
    """
    import faiss

    num_cells = max(1, round(_CELLS_PER_ROOT * math.sqrt(total)))
    count = min(total, num_cells * _POINTS_PER_CELL)
    sample = take(np.sort(np.random.default_rng(1).choice(total, count, replace=False))).cpu().numpy()

    def trained() -> NDArray[np.uint8]:
        index = faiss.index_factory(sample.shape[1], _kind(sample.shape[1], num_cells, group.device))
        cells = faiss.extract_index_ivf(index)
        cells.cp.niter, cells.cp.seed, cells.cp.min_points_per_centroid = _ITERATIONS, 1, 1
        index.train(sample)
        found: NDArray[np.uint8] = faiss.serialize_index(index)
        return found

    return group.on_main(trained)


def _kind(dim: int, num_cells: int, device: torch.device) -> str:
    """Name the index for faiss's factory."""
    if _on_gpu(device):
        return f"IVF{num_cells},Flat"
    kept = min(_MOST_DIMS, max(1, dim // 2 * 2))
    return f"PCAR{kept},IVF{num_cells},PQ{max(1, kept // 2)}x4fs"


def _on_gpu(device: torch.device) -> bool:
    import faiss

    return device.type == "cuda" and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
