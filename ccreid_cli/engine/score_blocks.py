"""Queries against a gallery in blocks of rows: which pairs are of one identity, and how similar they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccreid_cli.core.errors import DataError
from ccreid_cli.machine.device import exact_product

Features = Tensor | NDArray[Any]
Int64Array = NDArray[np.int64]

_SCORES_PER_BLOCK = 32_000_000  # 128 MB of float32
_MATCHES_PER_BLOCK = 4_000_000


class IdentityPairs:
    """Pairs of a query and a gallery image of one identity, listed for some queries at a time.

    Args:
        query: (Q,) identities, (Q,) cameras, Q.
        gallery: (G,) identities, (G,) cameras, G.
    """

    def __init__(self, query: tuple[Int64Array, Int64Array, int], gallery: tuple[Int64Array, Int64Array, int]) -> None:
        query_ids, gallery_ids = np.asarray(query[0]), np.asarray(gallery[0])
        for name, (ids, cams, length) in (("query", query), ("gallery", gallery)):
            if np.shape(ids) != (length,) or np.shape(cams) != (length,):
                raise DataError(
                    f"{name}: {length} feature rows, but ids have shape {np.shape(ids)} and cams {np.shape(cams)}.",
                    "Give one id and one camera per row.",
                )
        self._query_cams, self._gallery_cams = np.asarray(query[1]), np.asarray(gallery[1])
        self._by_id = np.argsort(gallery_ids, kind="stable")
        ordered = gallery_ids[self._by_id]
        self._first = np.searchsorted(ordered, query_ids, side="left")
        self._count = np.searchsorted(ordered, query_ids, side="right") - self._first
        self.num_queries, self.num_gallery = query[2], gallery[2]

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Cut the queries so that neither the scores nor the match lists of a block grow large."""
        most = max(1, _MATCHES_PER_BLOCK // max(1, self._count.max()))
        return row_blocks(self.num_queries, self.num_gallery, most)

    def between(self, start: int, stop: int) -> tuple[Int64Array, Int64Array, NDArray[np.bool_]]:
        """Return all pairs of one identity: row from `start`, gallery index, whether the camera is the same too."""
        count = self._count[start:stop]
        rows = np.repeat(np.arange(stop - start), count)
        columns = self._by_id[np.repeat(self._first[start:stop], count) + places(count)]
        return rows, columns, self._gallery_cams[columns] == self._query_cams[start:stop][rows]


def row_blocks(num_queries: int, num_gallery: int, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Cut the queries into blocks of at most `most` rows, so that the scores of a block do not grow large."""
    rows = max(1, min(_SCORES_PER_BLOCK // num_gallery, most or num_queries, num_queries))
    for start in range(0, num_queries, rows):
        yield start, min(start + rows, num_queries)


def places(counts: Int64Array) -> Int64Array:
    """Return 0 ... n-1 for every n of `counts`, one list after another."""
    result: Int64Array = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return result


def as_tensor(values: Features) -> Tensor:
    """Wrap an array, read-only ones too, or detach a tensor; values are shared where possible."""
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def as_matrices(query: Features, gallery: Features, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Bring both feature sets to one device as checked float32 matrices of the same width.

    In place of an Apple GPU the CPU computes rankings: sorts have been wrong there (pytorch #155560, #183885).
    """
    target = device or as_tensor(query).device
    if target.type == "mps":
        target = torch.device("cpu")
    matrices = []
    for name, features in (("query", query), ("gallery", gallery)):
        matrix = as_tensor(features).to(target, torch.float32)
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise DataError(f"{name} features must be a matrix with at least one row, not {tuple(matrix.shape)}.")
        _check_finite(matrix, f"{name} features")
        matrices.append(matrix)
    if matrices[0].shape[1] != matrices[1].shape[1]:
        raise DataError(
            f"query features are {matrices[0].shape[1]} wide, gallery features {matrices[1].shape[1]}.",
            "Extract both with the same model.",
        )
    return matrices[0], matrices[1]


def _check_finite(values: Tensor, name: str) -> None:
    bad = ~torch.isfinite(values.sum(dim=1))  # one pass over memory: a sum is as finite as its terms
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise DataError(
            f"{name} hold NaN or infinity, first in row {row}.", "A model whose training diverged gives such features."
        )


def similarity_blocks(
    query: Tensor, gallery: Tensor, blocks: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, (R, G) similarities) of each block of queries; the next block reuses the memory."""
    buffer = torch.empty(0, device=query.device)
    for start, stop in blocks:
        if start == 0:
            buffer = torch.empty(stop, len(gallery), device=query.device)
        scores = buffer[: stop - start]
        if scores.device.type == "cpu":
            # NumPy's BLAS (OpenBLAS) takes 0.7 of the time of torch's (MKL) on an AMD EPYC.
            np.matmul(query[start:stop].numpy(), gallery.numpy().T, out=scores.numpy())
        else:
            exact_product(query[start:stop], gallery.t(), out=scores)
        yield start, scores


def negated_blocks(blocks: Iterable[NDArray[np.floating]], device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, (R, G) negated copy on `device`) of consecutive blocks of distances."""
    start = 0
    for block in blocks:
        yield start, -torch.from_numpy(block).to(device)
        start += len(block)


def index(values: NDArray[Any], like: Tensor) -> Tensor:
    """Bring an index array to the device of `like`."""
    return torch.from_numpy(values).to(like.device)


def put(matrix: Tensor, rows: Int64Array, columns: Int64Array, value: float | Tensor) -> None:
    """Write `value`, a number or one per place, at the given places of `matrix`."""
    matrix[index(rows, matrix), index(columns, matrix)] = torch.as_tensor(value, dtype=matrix.dtype)
