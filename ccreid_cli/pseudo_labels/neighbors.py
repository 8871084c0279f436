"""A table of unit rows, whole in every process or split over them, and the exact search for neighbours in it.

Every process searches for the neighbours of its own share of the rows. Where it holds no other rows, those of the
others come to it in tiles around the ring of processes: what is found is the same, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.device import free_gpu_bytes
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.ring import rotate
from ccreid_cli.pseudo_labels.feature_tiles import Tile
from ccreid_cli.pseudo_labels.nearest import Search

FeatureArray = torch.Tensor | NDArray[np.float32] | NDArray[np.float16] | NDArray[np.float64]

_CPU_BLOCK_BYTES = 32 << 20
_LEAST_BLOCK_BYTES = 8 << 20
_SHARES = 8
"""Blocks that a process makes of its rows where it holds only its share: a smaller share takes less memory for work."""
_MOST_BLOCK_BYTES = 8 << 30
"""Of a GPU: its kernels index scores with 32 bits as long as they are fewer than 2**31."""
_TILE_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
_ROWS_OF_PAIRS = 2048


class FeatureTable:
    """Unit rows on a device, with what the exact search over them needs.

    Args:
        features: Unit rows, (N, D), of any float type; with `total` only those of this process, (n, D).
        device: Where to compute; None keeps a tensor where it is. Anything but CUDA computes on the CPU.
        group: The processes that share the work; all call the same methods together.
        total: N, where each process has only the rows of its own share, `Group.bounds(N)`.
        search_dtype: Number format of the candidate search; None takes the fastest; the result is the same.
        block_bytes: Memory for one block of scores, and at least for one tile of rows; None takes 32 MiB on the CPU,
            less where a process holds few of the rows, and at most an eighth of a GPU's free.
        counts: How many images each of the N rows stands for; None for one each.

    Attributes:
        start: Number of the first row of this process's share.
        own: The rows of its share, (n, D) float32.
    """

    def __init__(
        self,
        features: FeatureArray,
        device: torch.device | None = None,
        *,
        group: Group | None = None,
        total: int | None = None,
        search_dtype: torch.dtype | None = None,
        block_bytes: int | None = None,
        counts: NDArray[np.int64] | None = None,
    ) -> None:
        self.counts = counts
        self.group = group or Group()
        rows = features if isinstance(features, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(features))
        wanted = device or rows.device
        self.device = wanted if wanted.type == "cuda" else torch.device("cpu")
        self._rows = rows.detach().to(self.device, torch.float32).contiguous()
        self._is_whole = total is None or self.group.world == 1
        self._total = len(rows) if total is None else total
        self.start, stop = self.group.bounds(self._total)
        self.own = self._rows[self.start : stop] if self._is_whole else self._rows
        assert len(self.own) == stop - self.start
        self.search_dtype = search_dtype or fastest_dtype(self.device)
        self.block_bytes = block_bytes or self._room_of_a_block()

    def __len__(self) -> int:
        return self._total

    def _room_of_a_block(self) -> int:
        if self.device.type == "cuda":
            return max(_CPU_BLOCK_BYTES, min(_MOST_BLOCK_BYTES, free_gpu_bytes(self.device) // 8))
        if self._is_whole:
            return _CPU_BLOCK_BYTES
        return min(_CPU_BLOCK_BYTES, max(_LEAST_BLOCK_BYTES, self.own.nbytes // _SHARES))

    def take(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """Return some of all rows, by ascending number, (M, D) float32: in every process."""
        if self._is_whole:
            return self._rows[torch.from_numpy(numbers).to(self.device)]
        here = (numbers >= self.start) & (numbers < self.start + len(self.own))
        mine = torch.from_numpy(numbers[here] - self.start).to(self.device)
        return self.group.gather_rows(self.own[mine])

    def tiles(self) -> Iterator[Tile]:
        """Go through all rows, in tiles: those of this process first."""
        step = self._tile_rows()
        if self._is_whole:
            firsts = range(0, len(self), step)
            for first in firsts:
                yield self._only_tile if len(firsts) == 1 else Tile(first, self._rows[first : first + step])
            return
        bounds = [self.group.bounds(len(self), rank) for rank in range(self.group.world)]
        starts = [range(first, last, step) for first, last in bounds]
        sizes = [[min(step, places.stop - first) for first in places] for places in starts]
        for rank, number, rows in rotate(self.group, lambda number: self.own[number * step :][:step], sizes):
            yield Tile(starts[rank][number], rows)

    @cached_property
    def _only_tile(self) -> Tile:
        """All rows, where one tile holds them: what was computed of them is kept."""
        return Tile(0, self._rows)

    def _tile_rows(self) -> int:
        """Rows of a tile: few tiles, as each costs some exact similarities; small ones where several are held."""
        row_bytes = 4 * max(1, self.own.shape[1])
        share = len(self) * row_bytes // (1 if self._is_whole else _SHARES * self.group.world)
        most = _TILE_BYTES[self.device.type]
        rows = min(most, max(self.block_bytes, share)) // row_bytes
        if rows >= len(self):
            return max(1, rows)
        return max(1, rows // 64 * 64 or rows)  # a product of such a width is a third faster than one of odd width

    def similarities(self, owners: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Cosine of pairs of rows, computed in double precision and rounded to float32.

        Args:
            owners: First row of each pair, one of this process's rows, counted from its first, (P,) int32, ascending.
            columns: Second row of each pair, any of all rows, (P,) int32.

        Returns:
            Similarities, (P,) float32 on the table's device.
        """
        values = self.own.new_empty(len(owners))
        for tile in self.tiles():
            inside = torch.nonzero((columns >= tile.first) & (columns < tile.first + len(tile)))[:, 0]
            mine = owners[inside].long()
            cuts = range(0, len(self.own) + _ROWS_OF_PAIRS, _ROWS_OF_PAIRS)
            ends = torch.searchsorted(mine, torch.tensor(cuts, device=mine.device)).tolist()
            for first, begin, end in zip(cuts, ends, ends[1:], strict=False):
                places = inside[begin:end]
                left = Tile(self.start + first, self.own[first : first + _ROWS_OF_PAIRS])
                values[places] = tile.similarities(left, mine[begin:end] - first, columns[places].long() - tile.first)
        return values

    def nearest(self, k: int, start: int | None = None, stop: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The k most similar rows of each of this process's rows: itself first, then by similarity and row number.

        Args:
            k: How many; at most N are given.
            start: First row, where not all of its share are wanted.
            stop: One past the last row, likewise.

        Returns:
            Similarities (n, k) float32 and row numbers (n, k) int32, on the table's device.
        """
        return self._search(k, start, stop, 1.0)

    def farthest(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """The lowest similarity of each of this process's rows to any row, (n,) float32."""
        return self._search(1, start, stop, -1.0)[0].amin(1)

    def _search(self, k: int, start: int | None, stop: int | None, sign: float) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.start if start is None else start
        last = self.start + len(self.own) if stop is None else stop
        rows = self.own[first - self.start : last - self.start]
        search = Search(rows, first, min(k, len(self)), self.search_dtype, self.block_bytes, sign)
        for tile in self.tiles():
            search.look_through(tile)
        return search.result()


def fastest_dtype(device: torch.device) -> torch.dtype:
    """The number format in which `device` multiplies matrices fastest and the search loses least."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _bfloat16_pays() else torch.float32


@lru_cache(maxsize=1)
def _bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones: a probe of some milliseconds.

    Where it only imitates them, smaller matrices take twenty times as long already; large ones would take 0.2 seconds.
    """
    imitated = _seconds(torch.bfloat16, 128) > 8 * _seconds(torch.float32, 128)
    return not imitated and _seconds(torch.bfloat16, 384) < _seconds(torch.float32, 384)


def _seconds(dtype: torch.dtype, size: int) -> float:
    """The seconds that the product of two matrices takes, the best of three."""
    matrix, seconds = torch.ones((size, size), dtype=dtype), []
    for _ in range(3):
        begin = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
