"""Rows of features in pieces, and exact similarities of pairs: double precision, rounded to float32."""

from __future__ import annotations

import warnings
from functools import cached_property, lru_cache

import torch


class Tile:
    """Some consecutive rows of all.

    Args:
        first: Number of the first row.
        rows: Unit rows, (m, D) float32.
    """

    def __init__(self, first: int, rows: torch.Tensor) -> None:
        self.first = first
        self.rows = rows

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @cached_property
    def doubles(self) -> torch.Tensor:
        """The rows in double precision, (m, D)."""
        return self.rows.double()

    def similarities(self, left: Tile, owners: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Cosine of pairs of rows.

        Args:
            left: Some rows of all, n of them.
            owners: First row of each pair, a place in `left`, (P,) int64, ascending.
            columns: Second row of each pair, a place in this tile, (P,) int64.

        Returns:
            Similarities, (P,) float32.
        """
        if owners.numel() == 0:
            return left.rows.new_empty(0)
        if left.rows.device.type == "cpu":
            return self._sampled_product(left, owners, columns)
        return self.gathered_product(left, owners, columns)

    def gathered_product(self, left: Tile, owners: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The same as `similarities`, by gathering the rows of each pair: for GPUs, which lack the sampled product."""
        chunk = max(1, (256 << 20) // (24 * max(1, left.rows.shape[1])))
        parts = [
            (left.rows[one].double() * self.rows[other]).sum(1).float()
            for one, other in zip(torch.split(owners, chunk), torch.split(columns, chunk), strict=True)
        ]
        return torch.cat(parts)

    def _sampled_product(self, left: Tile, owners: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        _silence_beta_warning()
        offsets = torch.searchsorted(owners, torch.arange(len(left) + 1))
        zeros, shape = self.doubles.new_zeros(len(columns)), (len(left), len(self))
        pattern = torch.sparse_csr_tensor(offsets, columns, zeros, shape, check_invariants=False)
        product = torch.sparse.sampled_addmm(pattern, self._doubles_of(left), self.doubles.T, beta=0.0)
        values: torch.Tensor = product.values()
        return values.float()

    def _doubles_of(self, other: Tile) -> torch.Tensor:
        """Rows in double precision, part of this tile's where they are among them."""
        inside = other.first - self.first
        if 0 <= inside <= len(self) - len(other):
            return self.doubles[inside : inside + len(other)]
        return other.doubles


@lru_cache(maxsize=1)
def _silence_beta_warning() -> None:
    """Use up torch's one warning that CSR tensors are beta: here, since warning filters belong to all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))
