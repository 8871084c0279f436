"""Exact nearest neighbours of unit rows: a fast low-precision product proposes, double precision decides.

Every block of rows is multiplied with all rows in the fastest number format of the device. Its rounding error is
bounded for each row, so the true neighbours are known to lie among the columns that score within twice that bound of
the k-th.
Those few are computed again in double precision and rounded to float32, which makes the result the same for any block
size, split of the rows, number format and device.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.device import exact_product, free_gpu_bytes
from ccreid_cli.machine.distributed import Group

FeatureArray = torch.Tensor | NDArray[np.float32] | NDArray[np.float16] | NDArray[np.float64]

_CPU_BLOCK_BYTES = 32 << 20
_MOST_BLOCK_BYTES = 8 << 30
"""Of a GPU: its kernels index scores with 32 bits as long as they are fewer than 2**31."""
_ROUNDOFF = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


class FeatureTable:
    """Unit rows on a device, with what the exact search over them needs.

    Args:
        features: Unit rows, (N, D), of any float type.
        device: Where to compute; None keeps a tensor where it is. Anything but CUDA computes on the CPU.
        search_dtype: Number format of the candidate search; None takes the fastest; the result is the same.
        block_bytes: Memory for one block of scores; None takes 32 MiB on the CPU, at most an eighth of a GPU's free.
        counts: How many images each row stands for, (N,); None for one each.
    """

    def __init__(
        self,
        features: FeatureArray,
        device: torch.device | None = None,
        *,
        search_dtype: torch.dtype | None = None,
        block_bytes: int | None = None,
        counts: NDArray[np.int64] | None = None,
    ) -> None:
        self.counts = counts
        rows = features if isinstance(features, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(features))
        wanted = device or rows.device
        self.device = wanted if wanted.type == "cuda" else torch.device("cpu")
        self.rows = rows.detach().to(self.device, torch.float32).contiguous()
        self.search_dtype = search_dtype or fastest_dtype(self.device)
        self.block_bytes = block_bytes or _block_bytes(self.device)
        if self.device.type == "cpu":
            self._doubles = self.rows.double()
            _silence_beta_warning()

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def similarities(self, owners: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Cosine of pairs of rows, computed in double precision and rounded to float32.

        Args:
            owners: First row of each pair, (P,) int64, ascending.
            columns: Second row of each pair, (P,) int64.

        Returns:
            Similarities, (P,) float32 on the table's device.
        """
        if self.device.type == "cpu":
            return self._sampled_product(owners, columns)
        return self.gathered_product(owners, columns)

    def gathered_product(self, owners: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The same as `similarities`, by gathering the rows of each pair: for GPUs, which lack the sampled product."""
        chunk = max(1, self.block_bytes // (24 * max(1, self.rows.shape[1])))
        parts = [
            (self.rows[left].double() * self.rows[right]).sum(1).float()
            for left, right in zip(torch.split(owners, chunk), torch.split(columns, chunk), strict=True)
        ]
        return torch.cat(parts)

    def _sampled_product(self, owners: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        if owners.numel() == 0:
            return self.rows.new_empty(0)
        first, last = int(owners[0]), int(owners[-1]) + 1
        offsets = torch.searchsorted(owners, torch.arange(first, last + 1))
        zeros, shape = self._doubles.new_zeros(len(columns)), (last - first, len(self))
        pattern = torch.sparse_csr_tensor(offsets, columns, zeros, shape, check_invariants=False)
        product = torch.sparse.sampled_addmm(pattern, self._doubles[first:last], self._doubles.T, beta=0.0)
        values: torch.Tensor = product.values()
        return values.float()

    def nearest(self, k: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k most similar rows of the rows [start, stop), each row itself first, then by similarity and row number.

        Args:
            k: How many; at most N are given.
            start: First row.
            stop: One past the last row.

        Returns:
            Similarities (n, k) float32 and row numbers (n, k) int32, on the table's device.
        """
        return self._search(min(k, len(self)), start, stop, sign=1.0)

    def farthest(self, start: int, stop: int) -> torch.Tensor:
        """The lowest similarity of each of the rows [start, stop) to any row, (n,) float32."""
        return self._search(min(1, len(self)), start, stop, sign=-1.0)[0][:, 0]

    def _search(self, k: int, start: int, stop: int, sign: float) -> tuple[torch.Tensor, torch.Tensor]:
        similarities = self.rows.new_empty((stop - start, k))
        indices = torch.empty((stop - start, k), dtype=torch.int32, device=self.device)
        if k == 0 or stop <= start:
            return similarities, indices
        search = _CandidateSearch(self, self.search_dtype, sign)
        unproven = []
        for first, last in search.blocks(start, stop):
            (columns, valid), proven = search.best(first, last, k)
            rows = torch.arange(first, last, device=self.device)
            block = slice(first - start, last - start)
            similarities[block], indices[block] = self._decide(rows, columns, valid, k, sign)
            unproven.append(first + torch.nonzero(~proven)[:, 0])
        remaining = torch.cat(unproven)
        if remaining.numel():
            search = _CandidateSearch(self, torch.float32, sign)
            for rows in torch.split(remaining, max(1, self.block_bytes // (48 * len(self)))):
                columns, valid = search.above_threshold(rows, k)
                similarities[rows - start], indices[rows - start] = self._decide(rows, columns, valid, k, sign)
        return similarities, indices

    def _decide(
        self, rows: torch.Tensor, columns: torch.Tensor, valid: torch.Tensor, k: int, sign: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Order the valid candidates (n, m) of `rows` by their exact similarity and keep k."""
        columns, order = columns.sort(dim=1)
        valid = valid.gather(1, order)
        exact = self.rows.new_full(columns.shape, -torch.inf)
        exact[valid] = sign * self.similarities(rows[:, None].expand_as(columns)[valid], columns[valid])
        keys = exact.masked_fill(columns == rows[:, None], torch.inf) if sign > 0 else exact
        best = keys.sort(dim=1, descending=True, stable=True)[1][:, :k]
        return sign * exact.gather(1, best), columns.gather(1, best).to(torch.int32)


class _CandidateSearch:
    """Scores of rows against all rows in one number format, and how far they can be off.

    Rows are centred first: s_ij = c_i.c_j + x_j.mean + (a constant of row i). Similar features lose most of their
    length by it, and with it most of the rounding error. The bias x_j.mean rides along as two more columns of the
    product.
    """

    def __init__(self, table: FeatureTable, dtype: torch.dtype, sign: float) -> None:
        self.table, self.dtype, self.sign = table, dtype, sign
        rows = table.rows
        total, dim = rows.shape
        mean = rows.mean(0)
        bias = exact_product(rows, mean[:, None])[:, 0]
        bias -= bias.mean()
        # Matrix units like depths that are multiples of 32; the two columns after the features carry the bias.
        self.columns = torch.zeros((total, -(-(dim + 2) // 32) * 32), dtype=dtype, device=rows.device)
        self.bias_columns = slice(dim, dim + 2)
        lengths = [self._fill(first, mean) for first in range(0, total, 4096)]
        length, rounded, error = (torch.cat(lengths, dim=1) * (1 + 2.0**-10)).unbind(0)
        self.columns[:, dim] = bias.to(dtype)
        self.columns[:, dim + 1] = (bias - self.columns[:, dim]).to(dtype)
        bias_error = (bias - self.columns[:, self.bias_columns].float().sum(1)).abs().max() + dim * 2.0**-23
        # Worst case of float32 sums in any order; truncating tensor cores need 2**-23 per term.
        sums = (dim + 64) * 2.0**-23 * (length * length.max() + bias.abs().max())
        # 2**-22: the decided similarities are rounded to float32, and tiny float16 scores to multiples of 2**-24.
        self.error = error * rounded.max() + length * error.max() + bias_error + sums + 2.0**-22

    def _fill(self, first: int, mean: torch.Tensor) -> torch.Tensor:
        """Round 4096 centred rows; lengths (3, n) of the centred rows, of the rounded ones and of their difference."""
        centred = self.table.rows[first : first + 4096] - mean
        columns = self.columns[first : first + 4096, : self.bias_columns.start]
        columns.copy_(centred)
        rounded = columns.float()
        return torch.stack([centred.norm(dim=1), rounded.norm(dim=1), (rounded - centred).norm(dim=1)])

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        row_bytes = max(1, len(self.table)) * self.columns.element_size()
        # A GPU's top-k needs room for its own copies; more than 16,384 rows win nothing.
        copies = 4 if self.table.device.type == "cuda" else 1
        rows = min(16384, max(64, self.table.block_bytes // (row_bytes * copies)))
        for first in range(start, stop, rows):
            yield first, min(first + rows, stop)

    def _scores(self, rows: slice | torch.Tensor) -> torch.Tensor:
        left = self.columns[rows].clone()
        left[:, self.bias_columns] = 1.0
        return exact_product(left if self.sign > 0 else -left, self.columns.T)

    def _threshold(self, kth: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
        """The lowest score that one of the k best can have, given the k-th best score: both may be off."""
        roundoff = _ROUNDOFF[self.dtype]
        lowest = kth - roundoff * kth.abs() - 2 * self.error[rows]
        return lowest - 2 * roundoff * lowest.abs()

    def best(self, first: int, last: int, k: int) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Candidates of a block of rows, which of them count, and for which rows they are proven to hold the k best."""
        total = len(self.table)
        count = min(total, 3 * k + 8)
        scores, columns = self._scores(slice(first, last)).topk(count, dim=1)
        scores = scores.float()
        threshold = self._threshold(scores[:, k - 1], slice(first, last))
        proven = scores[:, -1] < threshold if count < total else torch.ones_like(threshold, dtype=torch.bool)
        return (columns, scores >= threshold[:, None]), proven

    def above_threshold(self, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All columns that can be among the k best of `rows`, however many, padded to the longest list."""
        scores = self._scores(rows)
        threshold = self._threshold(scores.topk(k, dim=1)[0][:, -1], rows)
        count = int((scores >= threshold[:, None]).sum(1).max())
        best, columns = scores.topk(count, dim=1)
        return columns, best >= threshold[:, None]


def shared_neighbors(table: FeatureTable, k: int, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the k nearest neighbours of all rows, each process those of its share of the rows.

    Args:
        table: All rows, the same in every process.
        k: Neighbours per row, the row itself included and first; at most N are given.
        group: The processes that share the work.

    Returns:
        Similarities of this process's rows (n, k) float32, and row numbers of all rows (N, k) int32.
    """
    similarities, indices = table.nearest(k, *group.bounds(len(table)))
    return similarities, group.gather_rows(indices)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """The number format in which `device` multiplies matrices fastest and the search loses least."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _bfloat16_pays() else torch.float32


@lru_cache(maxsize=1)
def _bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones: a probe of some milliseconds."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones((384, 384), dtype=dtype)
        best = torch.inf
        for _ in range(3):
            begin = time.perf_counter()
            matrix @ matrix
            best = min(best, time.perf_counter() - begin)
        seconds[dtype] = best
    return seconds[torch.bfloat16] < seconds[torch.float32]


@lru_cache(maxsize=1)
def _silence_beta_warning() -> None:
    """Use up torch's one warning that CSR tensors are beta: here, since warning filters belong to all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))


def _block_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return _CPU_BLOCK_BYTES
    return max(_CPU_BLOCK_BYTES, min(_MOST_BLOCK_BYTES, free_gpu_bytes(device) // 8))
