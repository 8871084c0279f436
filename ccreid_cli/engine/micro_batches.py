"""How a batch is cut: into batch-norm chunks, shared over processes, and into micro-batches where memory is short."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.words import plural
from ccreid_cli.machine.distributed import Group
from ccreid_cli.models.batch_norm import bn_chunks


@dataclass(frozen=True)
class MicroBatch:
    """Neighbouring batch-norm chunks that are computed at once.

    Attributes:
        start: First image in the batch.
        stop: One past the last.
        chunk: Number of its first chunk in the batch.
        chunk_share: Its share of the batch's chunks, 0 to 1.
        is_first: Whether it is this process's first of the step.
        is_last: Whether it is this process's last of the step.
    """

    start: int
    stop: int
    chunk: int
    chunk_share: float
    is_first: bool
    is_last: bool


def share_chunks(batch_size: int, samples_per_bn: int, world: int) -> list[int]:
    """Cut a batch into batch-norm chunks that `world` processes can share.

    Returns:
        The size of each chunk, in batch order.

    Raises:
        UsageError: There are more processes than chunks.
    """
    chunks = bn_chunks(batch_size, samples_per_bn)
    if world > len(chunks):
        most = plural(len(chunks), "process", "processes")
        raise UsageError(
            f"{world} processes cannot share a batch of {plural(len(chunks), 'batch-norm chunk')} "
            f"(batch size {batch_size}, --samples-per-bn {samples_per_bn}).",
            f"Use at most {most}, or a larger batch, or a smaller --samples-per-bn.",
        )
    return chunks


class MicroBatches:
    """This process's share of every batch, in one micro-batch or, where memory is short, in several.

    Args:
        batch_size: Images of a step over all processes.
        samples_per_bn: The most images that share batch-norm statistics.
        group: The processes of the run.
        chunk_by_chunk: Compute every chunk apart from the start.

    Attributes:
        count: How many micro-batches this process computes one after another.
        sizes: (W,) images of each process.

    Raises:
        UsageError: There are more processes than chunks.
    """

    def __init__(self, batch_size: int, samples_per_bn: int, group: Group, *, chunk_by_chunk: bool = False) -> None:
        chunks = share_chunks(batch_size, samples_per_bn, group.world)
        edges = list(accumulate(chunks, initial=0))
        bounds = [group.bounds(len(chunks), rank) for rank in range(group.world)]
        self.sizes = [edges[stop] - edges[start] for start, stop in bounds]
        self._first_chunk, last = bounds[group.rank]
        self._edges = edges[self._first_chunk : last + 1]
        self._total_chunks = len(chunks)
        self.count = self._own_chunks if chunk_by_chunk else 1

    @property
    def _own_chunks(self) -> int:
        return len(self._edges) - 1

    @property
    def largest_chunk(self) -> int:
        """Images of the least that can be computed at once."""
        return self._edges[1] - self._edges[0]

    @property
    def first_image(self) -> int:
        """Where this process's share of the batch begins."""
        return self._edges[0]

    @property
    def can_split(self) -> bool:
        """Whether the micro-batches can be made smaller."""
        return self.count < self._own_chunks

    def split(self) -> None:
        """Cut this process's share into twice as many micro-batches, as far as there are chunks."""
        self.count = min(self._own_chunks, self.count * 2)

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield this process's micro-batches of a step, in batch order."""
        cuts = [self._own_chunks * number // self.count for number in range(self.count + 1)]
        for number, (first, last) in enumerate(zip(cuts, cuts[1:], strict=False)):
            yield MicroBatch(
                self._edges[first],
                self._edges[last],
                self._first_chunk + first,
                (last - first) / self._total_chunks,
                is_first=number == 0,
                is_last=number == self.count - 1,
            )
