"""Exact nearest neighbours: a fast low-precision product proposes, double precision decides.

Every block of rows is multiplied with a tile of all rows in the fastest number format of the device. Its rounding error
is bounded for each pair, so the neighbours among them are known to score no lower than the k-th neighbour found so far,
less that bound. The few that do are computed again in double precision and rounded to float32, which makes the result
the same for any tiles, blocks, split of the rows, number format and device.
"""

from __future__ import annotations

import numpy as np
import torch

from ccreid_cli.machine.device import exact_product
from ccreid_cli.pseudo_labels.feature_tiles import Tile

ROUNDOFF = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
_LOWEST = torch.iinfo(torch.int64).min
_LARGEST = 0x7FFFFFFF
_ROWS_AT_ONCE = 1024


class RoundedRows:
    """Centred rows in a number format, and how far products with them can be off.

    With c = x - mean, similarities are x_i.x_j = c_i.c_j + c_j.mean + x_i.mean. Similar features lose most of their
    length by centring, and with it most of the rounding error. The bias c_j.mean of columns rides along as two more
    columns of the product; the constant x_i.mean of rows is added to what comes out.

    Args:
        rows: Unit rows, (m, D) float32.
        mean: Any row, (D,) float32: the nearer to the mean of all, the smaller the error.
        dtype: The number format.
        keep: Whether to keep the rounded rows, or only what is known of them.

    Attributes:
        matrix: The rounded rows and their bias, (m, D + 2 and more): the right side of a product.
        constants: x.mean, (m,) float32.
    """

    def __init__(self, rows: torch.Tensor, mean: torch.Tensor, dtype: torch.dtype, *, keep: bool = True) -> None:
        total, dim = rows.shape
        self._rows, self._mean, self._dtype = rows, mean, dtype
        self._bias_columns = slice(dim, dim + 2)
        # Matrix units like depths that are multiples of 32; the two columns after the features carry the bias.
        self._width = -(-(dim + 2) // 32) * 32
        self.matrix = rows.new_zeros((total if keep else 0, self._width), dtype=dtype)
        bounds, constants = rows.new_zeros((3, total)), rows.new_empty(total, dtype=torch.float64)
        for first in range(0, total, _ROWS_AT_ONCE):
            block = slice(first, first + _ROWS_AT_ONCE)
            centred = rows[block] - mean
            rounded = centred.to(dtype)
            if keep:
                self.matrix[block, :dim] = rounded
            bounds[0, block] = centred.norm(dim=1)
            bounds[1, block] = rounded.float().norm(dim=1)
            bounds[2, block] = (rounded.float() - centred).norm(dim=1)
            constants[block] = rows[block].double() @ mean.double()
        self._lengths, self._rounded, self._errors = (bounds * (1 + 2.0**-10)).unbind(0)
        self.constants = constants.float()
        bias = (constants - mean.double().square().sum()).float()
        high = bias.to(dtype)
        low = (bias - high).to(dtype)
        if keep:
            self.matrix[:, dim], self.matrix[:, dim + 1] = high, low
        self._largest_bias = bias.abs().max() if total else rows.new_zeros(())
        self._bias_error = (bias - high.float() - low.float()).abs().max() if total else rows.new_zeros(())

    def left(self, block: slice) -> torch.Tensor:
        """Some of the rows as the left side of a product."""
        rows = self._rows[block]
        matrix = rows.new_zeros((len(rows), self._width), dtype=self._dtype)
        matrix[:, : self._bias_columns.start] = rows - self._mean
        matrix[:, self._bias_columns] = 1.0
        return matrix

    def error(self, block: slice, columns: RoundedRows) -> torch.Tensor:
        """How far score + constant of some rows can be from the similarity to any of the columns, (n,)."""
        lengths, errors = self._lengths[block], self._errors[block]
        # Worst case of float32 sums in any order; truncating tensor cores need 2**-23 per term.
        depth = (self._bias_columns.start + 64) * 2.0**-23
        sums = depth * (lengths * columns._lengths.max() + columns._largest_bias)
        rounding = errors * columns._rounded.max() + lengths * columns._errors.max() + columns._bias_error
        # 2**-21: similarities, constants and biases are rounded to float32, tiny float16 scores to multiples of 2**-24.
        return rounding + sums + 2.0**-21


class Search:
    """The k best columns of each of some rows, found tile by tile.

    What is best is kept as one number per pair, which orders as (similarity, then the lower column) does and holds
    both; a row itself comes before all others.

    Args:
        rows: Unit rows, (n, D) float32.
        start: Number of the first row among all.
        k: How many columns; the tiles have at least as many rows.
        dtype: Number format of the product.
        block_bytes: Memory for a block of scores.
        sign: 1 for the most similar columns, -1 for the least.
    """

    def __init__(
        self, rows: torch.Tensor, start: int, k: int, dtype: torch.dtype, block_bytes: int, sign: float = 1.0
    ) -> None:
        self._rows, self._start, self._k, self._sign = rows, start, k, sign
        self._block_bytes = block_bytes
        self._mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
        self._best = torch.full((len(rows), k), _LOWEST, dtype=torch.int64, device=rows.device)
        self._to_itself = rows.new_ones(len(rows))
        self._seen = 0
        self._use(dtype)

    def _use(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._rounded: RoundedRows | None = None

    def _columns(self, tile: Tile) -> tuple[RoundedRows, RoundedRows]:
        """The rows, and those of a tile, in the number format."""
        columns = RoundedRows(tile.rows, self._mean, self._dtype)
        if self._rounded is None:
            is_same = tile.first == self._start and len(tile) == len(self._rows)
            self._rounded = columns if is_same else RoundedRows(self._rows, self._mean, self._dtype, keep=False)
        return self._rounded, columns

    def look_through(self, tile: Tile) -> None:
        """Take the rows of a tile into account, as columns."""
        rounded = self._columns(tile)
        for block in self._blocks(len(tile)):
            found = self._candidates(block, *rounded)
            if len(found) > (3 * self._k + 8) * (block.stop - block.start) and self._dtype != torch.float32:
                # Too coarse to tell these features apart: go on in float32, which costs less than deciding them all.
                self._use(torch.float32)
                rounded = self._columns(tile)
                found = self._candidates(block, *rounded)
            self._decide(block, tile, found)
        self._seen += len(tile)

    def _blocks(self, num_columns: int) -> list[slice]:
        # A GPU's scores are compared and listed in room of its own; more than 16,384 rows win nothing.
        copies = 4 if self._rows.device.type == "cuda" else 1
        row_bytes = max(1, num_columns) * torch.finfo(self._dtype).bits // 8
        step = min(16384, max(64, self._block_bytes // (row_bytes * copies)))
        total = len(self._rows)
        return [slice(first, min(first + step, total)) for first in range(0, total, step)]

    def _candidates(self, block: slice, rows: RoundedRows, columns: RoundedRows) -> torch.Tensor:
        """Places row·m + column in the block of scores that can be among the best, ascending, (P,) int64."""
        left = rows.left(block)
        scores = exact_product(left if self._sign > 0 else -left, columns.matrix.T)
        error, roundoff = rows.error(block, columns), ROUNDOFF[self._dtype]
        if self._seen >= self._k:
            kth = unpack(self._best[block, -1])[0] - self._sign * rows.constants[block] - error
        elif scores.shape[1] >= self._k:
            kth = _kth_or_less(scores, self._k).float()
            kth = kth - roundoff * kth.abs() - 2 * error
        else:
            kth = torch.full_like(error, -torch.inf)
        lowest = kth - 2 * roundoff * kth.abs()
        return _places(scores >= lowest.to(self._dtype)[:, None])

    def _decide(self, block: slice, tile: Tile, found: torch.Tensor) -> None:
        """Keep the best of those that were the best and the candidates."""
        if not len(found):
            return
        owners = torch.div(found, len(tile), rounding_mode="floor")
        columns = found - owners * len(tile)
        first = self._start + block.start
        exact = self._sign * tile.similarities(Tile(first, self._rows[block]), owners, columns)
        keys = pack(exact, columns + tile.first)
        if self._sign > 0:
            is_self = owners + first == columns + tile.first
            self._to_itself[block][owners[is_self]] = exact[is_self]
            keys[is_self] |= _LARGEST << 32
        counts = torch.bincount(owners, minlength=block.stop - block.start)
        places = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
        new = keys.new_full((len(counts), int(counts.max())), _LOWEST)
        new[owners, places] = keys
        self._best[block] = torch.cat([self._best[block], new], dim=1).topk(self._k, dim=1)[0]

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Similarities (n, k) float32 and columns (n, k) int32, the best first."""
        similarities = self._rows.new_empty(self._best.shape)
        indices = torch.empty(self._best.shape, dtype=torch.int32, device=self._rows.device)
        for first in range(0, len(self._rows), _ROWS_AT_ONCE):
            block = slice(first, first + _ROWS_AT_ONCE)
            values, indices[block] = unpack(self._best[block])
            similarities[block] = self._sign * values
        if self._sign > 0 and self._k:
            similarities[:, 0] = self._to_itself
        return similarities, indices


def _kth_or_less(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th largest score of each row, or a little less: that of the largest of every 16, (n,)."""
    groups = scores.shape[1] // 16
    if groups >= 4 * k:
        scores = scores[:, : 16 * groups].view(-1, 16, groups).amax(1)
    return scores.topk(k, dim=1)[0][:, -1]


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask is true, as places in it, flat; NumPy's search for few true values is many times faster."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask.flatten())[:, 0]


def pack(similarities: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Make an int64 of each similarity (float32) and column (below 2**31): the higher the better, then the lower.

    Minus zero counts as zero.
    """
    bits = (similarities + 0.0).view(torch.int32)
    ordered = torch.where(bits >= 0, bits, bits ^ _LARGEST).long()
    return (ordered << 32) | (_LARGEST - columns.long())


def unpack(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the similarities (float32) and columns (int32) of `pack`."""
    ordered = (keys >> 32).to(torch.int32)
    bits = torch.where(ordered >= 0, ordered, ordered ^ _LARGEST)
    return bits.view(torch.float32), (_LARGEST - (keys & 0xFFFFFFFF)).to(torch.int32)
