"""Decoded images split over the processes, so that no machine holds them all.

Extraction reads only what a process holds itself. A training batch is drawn from all images, so the processes exchange
its images, during the step before it. Every process knows the whole batch and who holds which row, so no requests are
sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccreid_cli.images.store import ImageStore
from ccreid_cli.machine.distributed import Group


class ShardedStore:
    """N images of one size, of which this process holds the rows `group.bounds(N)`.

    Args:
        local: The images that this process holds, in order.
        count: N, the images of all processes.
        group: The processes.

    Attributes:
        local: As given.

    Raises:
        ValueError: `local` is not this process's share of `count` images.
    """

    def __init__(self, local: ImageStore, count: int, group: Group) -> None:
        self.local = local
        self._count = count
        self._group = group
        self._start, stop = group.bounds(count)
        self._edges = [group.bounds(count, rank)[0] for rank in range(group.world)] + [count]
        if len(local) != stop - self._start:
            raise ValueError(f"{len(local)} images are not rows {self._start} to {stop} of {count}")

    def __len__(self) -> int:
        return self._count

    def to_device(self, device: torch.device, max_bytes: int) -> bool:
        """Keep this process's images on `device` when they fit, as `ImageStore.to_device`."""
        return self.local.to_device(device, max_bytes)

    def leave_device(self) -> bool:
        """Free what this process's images take of a device, as `ImageStore.leave_device`."""
        return self.local.leave_device()

    def release_pages(self) -> None:
        """Free the RAM that memory-mapped images take, as `ImageStore.release_pages`."""
        self.local.release_pages()

    def gather(self, indices: NDArray[np.int64] | Tensor, device: torch.device) -> Tensor:
        """Pick images that this process holds.

        Args:
            indices: (B,) rows of the whole, within `group.bounds(N)`.
            device: Where the batch is wanted.

        Returns:
            (B, 3, height, width) uint8 in channels_last.

        Raises:
            IndexError: Another process holds one of them.
        """
        rows = np.asarray(indices)
        _check_within(rows, self._start, self._start + len(self.local))
        return self.local.gather(rows - self._start, device)

    def exchange(self, indices: NDArray[np.int64], sizes: Sequence[int]) -> StepImages:
        """Give every process the images of its share of a batch. All processes take part, once for each batch.

        As `begin_exchange`, and waits for it.
        """
        return self.begin_exchange(indices, sizes).wait()

    def begin_exchange(self, indices: NDArray[np.int64], sizes: Sequence[int]) -> ComingImages:
        """Begin to give every process the images of its share of a batch. All processes take part, in the same order.

        An image that a share repeats is sent once. Received are thus at most (W-1)/W of a share on average, of
        3·height·width bytes each: what `engine.plan.bytes_per_step` counts.

        Args:
            indices: (B,) rows of the whole, repeats allowed; the same in every process.
            sizes: (W,) how many of them are each process's share, in rank order.

        Returns:
            What waits for the images of this process's share, on its device.

        Raises:
            IndexError: There is no such row; in every process.
        """
        _check_within(indices, 0, self._count)
        wanted = [np.unique(share) for share in np.split(indices, np.cumsum(sizes)[:-1])]
        own = wanted[self._group.rank]
        stop = self._start + len(self.local)
        sent = [rows[slice(*np.searchsorted(rows, [self._start, stop]))] for rows in wanted]
        # Sorted rows of shares in rank order: what comes from the ranks, one after another, is in the order of `own`.
        wait = self._group.begin_exchange_rows(
            self.gather(np.concatenate(sent), self._group.device).permute(0, 2, 3, 1),
            [len(rows) for rows in sent],
            np.diff(np.searchsorted(own, self._edges)).tolist(),
        )
        return ComingImages(indices, own, wait)


class ComingImages:
    """The images of one process's share of a batch, on their way.

    Args:
        indices: (B,) the batch's rows of the whole.
        rows: (M,) those that come here, each once.
        wait: Waits for them.

    Attributes:
        indices: As given.
    """

    def __init__(self, indices: NDArray[np.int64], rows: NDArray[np.int64], wait: Callable[[], Tensor]) -> None:
        self.indices = indices
        self._rows, self._wait = rows, wait

    def wait(self) -> StepImages:
        """Return the images, once they are there."""
        return StepImages(self._rows, self._wait())


class StepImages:
    """The images of one process's share of a batch, each once.

    Args:
        rows: (M,) their rows of the whole, ascending.
        images: (M, height, width, 3) uint8.

    Attributes:
        rows: As given.
        images: As given.
    """

    def __init__(self, rows: NDArray[np.int64], images: Tensor) -> None:
        self.rows = rows
        self.images = images

    def gather(self, indices: NDArray[np.int64] | Tensor, device: torch.device) -> Tensor:
        """Pick images by their row of the whole, as `ImageStore.gather`; each must be among `rows`."""
        places = torch.from_numpy(np.searchsorted(self.rows, np.asarray(indices)))
        places = places.to(self.images.device, non_blocking=self.images.is_cuda)
        return self.images.index_select(0, places).to(device).permute(0, 3, 1, 2)


def _check_within(rows: NDArray[np.int64], start: int, stop: int) -> None:
    if len(rows) and not start <= rows.min() <= rows.max() < stop:
        raise IndexError(f"rows {rows.min()} to {rows.max()} are not all within {start} to {stop - 1}")
