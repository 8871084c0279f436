"""Nearest neighbours among the rows of a few cells: the inverted file (IVF) of Jégou et al., PAMI 2011, section IV.

faiss finds the cells, by k-means. The search is here: faiss looks up one query after another, which at the number of
cells that a high recall needs costs more than the exact search; here all queries of a cell are multiplied at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ccreid_cli.machine.device import exact_product

_ROWS_PER_BLOCK = 32768
_SCORES_PER_PRODUCT = 1 << 22
_POINTS_PER_CELL = 32
_ITERATIONS = 8
_SPARE = 8
"""Candidates beyond the k asked for: the exact similarities of all of them decide."""
_ROUNDS = (1, 8, 64)
"""Cells that are looked through before the limit that a candidate must pass is raised again."""


def find_centroids(rows: torch.Tensor, num_cells: int, seed: int = 1) -> torch.Tensor:
    """Find the centres of cells by k-means on a sample of the rows: the same for the same seed.

    Args:
        rows: (N, D) float32.
        num_cells: C, at most N.
        seed: Of the sample and of the first centres.

    Returns:
        (C, D) float32, on the device of the rows.
    """
    import faiss

    count = min(len(rows), num_cells * _POINTS_PER_CELL)
    chosen = np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))
    sample = rows[torch.from_numpy(chosen).to(rows.device)].cpu().numpy()
    on_gpu = rows.device.type == "cuda" and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    means = faiss.Kmeans(
        rows.shape[1], num_cells, niter=_ITERATIONS, seed=seed, gpu=on_gpu, min_points_per_centroid=1, verbose=False
    )
    means.train(sample)
    return torch.from_numpy(np.asarray(means.centroids)).to(rows.device)


class Cells:
    """Rows in cells, and the search among the rows of the cells near a row.

    Args:
        rows: (N, D) float32 unit rows.
        centroids: (C, D) float32: a row is in the cell of the nearest.

    Attributes:
        rows: As given.
        centroids: As given.
        cell_of_row: (N,) int64.
    """

    def __init__(self, rows: torch.Tensor, centroids: torch.Tensor) -> None:
        self.rows, self.centroids = rows, centroids
        self._half_squares = centroids.square().sum(1) / 2
        numbers = torch.arange(len(rows), device=rows.device)
        self.cell_of_row = torch.cat([self.near(part, 1)[:, 0] for part in torch.split(numbers, _ROWS_PER_BLOCK)])
        self.members = self.cell_of_row.argsort(stable=True)
        sizes = torch.bincount(self.cell_of_row, minlength=len(centroids))
        self._edges = [0, *sizes.cumsum(0).tolist()]

    def __len__(self) -> int:
        return len(self.centroids)

    def members_of(self, cell: int) -> torch.Tensor:
        """Return the numbers of the rows of a cell, (m,) int64 ascending."""
        return self.members[self._edges[cell] : self._edges[cell + 1]]

    def near(self, queries: torch.Tensor, count: int) -> torch.Tensor:
        """The cells nearest to rows, nearest first.

        Args:
            queries: Row numbers, (n,) int64.
            count: How many cells.

        Returns:
            (n, count) int64.
        """
        parts = [self._near(self.rows[part], count) for part in torch.split(queries, 4096)]
        return torch.cat(parts) if parts else queries.new_empty((0, count))

    def _near(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        scores = exact_product(rows, self.centroids.T) - self._half_squares
        return scores.argmax(1, keepdim=True) if count == 1 else scores.topk(count, dim=1)[1]

    def nearest(self, queries: torch.Tensor, num_near: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k most similar rows among those of the nearest cells: itself first, then by similarity and row number.

        Args:
            queries: Row numbers, (n,) int64.
            num_near: Cells that are looked through for each row.
            k: How many, at most N; where the cells hold fewer, all rows are looked through.

        Returns:
            Similarities (n, k) float32, exact for the rows found, and row numbers (n, k) int32.
        """
        parts = [self._nearest(part, num_near, k) for part in torch.split(queries, _ROWS_PER_BLOCK)]
        if not parts:
            return self.rows.new_empty((0, k)), queries.new_empty((0, k), dtype=torch.int32)
        similarities, columns = (torch.cat(found) for found in zip(*parts, strict=True))
        return similarities, columns.to(torch.int32)

    def _nearest(self, queries: torch.Tensor, num_near: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        near = self.near(queries, num_near)
        best = _Best(len(queries), k + _SPARE, self.rows.device)
        edges = [0, *(edge for edge in _ROUNDS if edge < num_near), num_near]
        for first, last in zip(edges, edges[1:], strict=False):
            best.take(list(self._look_through(queries, near[:, first:last], best.limits(), k + _SPARE)))
        similarities, columns = self.decide(queries, best.columns, k)
        lacking = torch.nonzero((best.columns >= 0).sum(1) < k)[:, 0]
        if len(lacking):
            similarities[lacking], columns[lacking] = self.nearest_of_all(queries[lacking], k)
        return similarities, columns

    def _look_through(
        self, queries: torch.Tensor, near: torch.Tensor, limits: torch.Tensor, count: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield places among the queries, row numbers and scores of what is above the limits, cell by cell.

        Of no cell more than `count` for a query can be wanted.
        """
        cells, order = near.reshape(-1).sort(stable=True)
        owners = torch.div(order, near.shape[1], rounding_mode="floor")
        edges = torch.searchsorted(cells, torch.arange(len(self) + 1, device=cells.device)).tolist()
        for cell in range(len(self)):
            members = self.members_of(cell)
            if edges[cell] == edges[cell + 1] or not len(members):
                continue
            columns = self.rows[members].T
            for own in torch.split(owners[edges[cell] : edges[cell + 1]], max(1, _SCORES_PER_PRODUCT // len(members))):
                scores = exact_product(self.rows[queries[own]], columns)
                if near.shape[1] == 1:  # nothing is known yet: the best of the one cell, where that is large
                    scores, places = scores.topk(min(scores.shape[1], count), dim=1)
                    yield own[:, None].expand_as(scores).reshape(-1), members[places].reshape(-1), scores.reshape(-1)
                    continue
                left, right = torch.nonzero(scores > limits[own][:, None], as_tuple=True)
                yield own[left], members[right], scores[left, right]

    def nearest_of_all(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k most similar of all rows, for a few rows: what `nearest` is measured against.

        Args:
            queries: Row numbers, (n,) int64.
            k: How many, at most N.

        Returns:
            Similarities (n, k) float32 and row numbers (n, k) int64, ordered as by `nearest`.
        """
        best = _Best(len(queries), k + _SPARE, self.rows.device)
        for first in range(0, len(self.rows), _ROWS_PER_BLOCK):
            block = self.rows[first : first + _ROWS_PER_BLOCK]
            scores, places = exact_product(self.rows[queries], block.T).topk(min(k + _SPARE, len(block)), dim=1)
            owners = torch.arange(len(queries), device=places.device)[:, None].expand_as(places)
            best.take([(owners.reshape(-1), places.reshape(-1) + first, scores.reshape(-1))])
        return self.decide(queries, best.columns, k)

    def decide(self, queries: torch.Tensor, columns: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Order candidates (n, m), -1 for none, by their similarity in double precision and keep the best k.

        The last candidate gives way to the row itself where that is not among them: where many rows are equal.
        """
        is_missing = (columns != queries[:, None]).all(1)
        columns = torch.cat([columns[:, :-1], torch.where(is_missing, queries, columns[:, -1])[:, None]], dim=1)
        columns = columns.sort(dim=1)[0]
        parts = []
        for own, others in zip(torch.split(queries, 1024), torch.split(columns, 1024), strict=True):
            products = torch.bmm(self.rows[others.clamp(min=0)].double(), self.rows[own].double()[:, :, None])
            parts.append(products[:, :, 0].float())
        exact = torch.cat(parts).masked_fill_(columns < 0, -torch.inf)
        keys = exact.masked_fill(columns == queries[:, None], torch.inf)
        best = keys.sort(dim=1, descending=True, stable=True)[1][:, :k]
        return exact.gather(1, best), columns.gather(1, best)


class _Best:
    """The best candidates of n queries so far.

    Attributes:
        columns: (n, count) int64 row numbers, best first, -1 for none.
    """

    def __init__(self, num_queries: int, count: int, device: torch.device) -> None:
        self._scores = torch.full((num_queries, count), -torch.inf, device=device)
        self.columns = torch.full((num_queries, count), -1, device=device)

    def limits(self) -> torch.Tensor:
        """Return what a further candidate of each query must exceed, (n,)."""
        return self._scores[:, -1]

    def take(self, found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        """Add candidates: places of their queries, row numbers and scores, each pair once."""
        num_queries, count = self.columns.shape
        own = torch.arange(num_queries, device=self.columns.device).repeat_interleave(count)
        owners = torch.cat([own, *(part[0] for part in found)])
        columns = torch.cat([self.columns.reshape(-1), *(part[1] for part in found)])
        scores = torch.cat([self._scores.reshape(-1), *(part[2] for part in found)])
        order = scores.argsort(descending=True, stable=True)
        order = order[owners[order].argsort(stable=True)]
        owners = owners[order]
        starts = torch.searchsorted(owners, torch.arange(num_queries, device=owners.device))
        kept = order[(starts[:, None] + torch.arange(count, device=order.device)).reshape(-1)]
        self.columns = columns[kept].view(num_queries, count)
        self._scores = scores[kept].view(num_queries, count)
