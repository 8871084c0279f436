"""One training step: the batch of all processes through the network, the loss, the optimiser, the memory.

Batch norm sees chunks of the batch (`models.batch_norm.bn_chunks`), so a step may be computed chunk by chunk, in one
process or several, with the same result: gradients add up, running statistics average, the memory moves afterwards.
Layers that draw random numbers (dropout, stochastic depth) draw them chunk by chunk too.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import StochasticDepth

from ccreid_cli.core.errors import DeviceError, UsageError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import plural
from ccreid_cli.engine.step_sums import Gradients, RunningStatistics
from ccreid_cli.images.augment import AugmentPlan, augment
from ccreid_cli.images.sharded_store import ShardedStore
from ccreid_cli.images.source import ImageSet, ImageSource
from ccreid_cli.machine.device import autocast, derived_seed, unless_out_of_memory
from ccreid_cli.machine.distributed import Group
from ccreid_cli.method.memory import ClusterMemory
from ccreid_cli.models.batch_norm import bn_chunks
from ccreid_cli.models.reid_net import ReidNet


@dataclass(frozen=True)
class Batch:
    """What one step of all processes trains on.

    Attributes:
        indices: (B,) rows of the image store.
        targets: (B,) int64 clusters.
        plan: The augmentation of the B images.
        seed: What random layers start from.
    """

    indices: NDArray[np.int64]
    targets: Tensor
    plan: AugmentPlan
    seed: int = 0


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Return Adam over every trainable parameter in one group, fused where the device has it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = parameters[0].device.type in {"cpu", "cuda"}
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


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


class TrainStep:
    """Runs training steps, splitting them over processes and, when memory is short, over time.

    Args:
        model: The network, on this process's device.
        optimizer: Over the network's parameters.
        store: The training images.
        precision: ``fp32`` or ``bf16``.
        group: The processes of the run.
        batch_size: Images of a step over all processes.
        samples_per_bn: The most images that share batch-norm statistics.
        reporter: Told when a step has to be split.
        exact: Give the same bits for any number of processes: compute chunk by chunk and sum in double precision.

    Attributes:
        parts: In how many parts, one after another, this process computes its share of a step.

    Raises:
        UsageError: There are more processes than batch-norm chunks.
    """

    def __init__(
        self,
        model: ReidNet,
        optimizer: torch.optim.Optimizer,
        store: ImageSet,
        *,
        precision: str,
        group: Group,
        batch_size: int,
        samples_per_bn: int,
        reporter: Reporter,
        exact: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.store = store
        self._images: ImageSource = store
        self.precision = precision
        self.group = group
        self.reporter = reporter
        chunks = share_chunks(batch_size, samples_per_bn, group.world)
        edges = np.concatenate([[0], np.cumsum(chunks)]).tolist()
        bounds = [group.bounds(len(chunks), rank) for rank in range(group.world)]
        first, last = bounds[group.rank]
        self._first_chunk = first
        self._edges: list[int] = edges[first : last + 1]
        self._sizes: list[int] = [edges[stop] - edges[start] for start, stop in bounds]
        self._num_chunks = len(chunks)
        self._batch_size = batch_size
        self._is_random = draws_random_numbers(model)
        self.parts = last - first if self._is_random or exact else 1
        self._statistics = RunningStatistics(model)
        self._gradients = Gradients(model) if exact else None
        self._exchanging = False
        self._network: nn.Module = model
        if group.world > 1 and not exact:
            self._network = _parallel(model)

    def __call__(self, batch: Batch, memory: ClusterMemory) -> Tensor:
        """Train on one batch and move the memory.

        Args:
            batch: The same batch in every process.
            memory: The same memory in every process.

        Returns:
            This process's part of the mean loss, detached; the parts of all processes add up to the loss.

        Raises:
            DeviceError: The step does not fit into the device's memory, however it is split.
        """
        self._statistics.remember()
        if isinstance(self.store, ShardedStore):  # once, however often parts of the step are tried
            self._images = self.store.exchange(batch.indices, self._sizes)
        done = None
        while done is None:
            done = unless_out_of_memory(lambda: self._forward_backward(batch, memory))
            if done is None:
                self._split_further(batch, memory)
        loss, features = done
        self._finish_sums()
        self.optimizer.step()
        memory.update(self.group.gather_rows(features, self._sizes), batch.targets)
        return loss

    def _forward_backward(self, batch: Batch, memory: ClusterMemory) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        cuts = self._cuts()
        total: Tensor = torch.zeros((), device=self.group.device)
        rows = []
        for part, (first, last) in enumerate(zip(cuts, cuts[1:], strict=False)):
            if self._is_random:
                torch.manual_seed(derived_seed(batch.seed, self._first_chunk + first))
            if part:
                self._statistics.begin_part()
            loss, features = self._part(batch, memory, self._edges[first], self._edges[last], part == self.parts - 1)
            if self._is_summed:
                self._statistics.end_part((last - first) / self._num_chunks)
            if self._gradients:
                self._gradients.end_part()
            total += loss
            rows.append(features)
        return total, torch.cat(rows) if len(rows) > 1 else rows[0]

    @property
    def _is_summed(self) -> bool:
        return self.parts > 1 or self.group.world > 1

    def _finish_sums(self) -> None:
        if self._is_summed:
            self._statistics.finish(self.group)
        if self._gradients:
            self._gradients.finish(self.group)

    def _part(self, batch: Batch, memory: ClusterMemory, start: int, stop: int, is_last: bool) -> tuple[Tensor, Tensor]:
        """Add the gradients of the images [start, stop) of the batch; the last part exchanges them between ranks."""
        network = self._network
        parallel = network if isinstance(network, DistributedDataParallel) else None
        with parallel.no_sync() if parallel and not is_last else contextlib.nullcontext():
            loss, features = self._loss(network, batch, memory, start, stop)
            self._exchanging = is_last and parallel is not None
            # DistributedDataParallel averages gradients over processes; the loss is a sum over them.
            scale = self.group.world if parallel else 1
            torch.autograd.backward(loss * scale)
        self._exchanging = False
        return loss.detach(), features.detach()

    def _loss(
        self, network: nn.Module, batch: Batch, memory: ClusterMemory, start: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        images = self._images.gather(batch.indices[start:stop], self.group.device)
        inputs = augment(images, batch.plan.slice(start, stop))
        with autocast(self.group.device, self.precision):
            features = network(inputs)
        return memory.loss(features, batch.targets[start:stop]) * ((stop - start) / self._batch_size), features

    def _cuts(self) -> list[int]:
        """Return where the parts of this process's share begin and end, in batch-norm chunks."""
        chunks = len(self._edges) - 1
        return [chunks * part // self.parts for part in range(self.parts + 1)]

    def _split_further(self, batch: Batch, memory: ClusterMemory) -> None:
        """Make the parts smaller, then the room larger, or give up.

        Raises:
            DeviceError: Neither can be done.
        """
        chunks = len(self._edges) - 1
        left = not self._exchanging and self.parts >= chunks and self.store.leave_device()
        self._clear()
        if left:
            self.reporter.warning(
                f"a step does not fit into memory beside the images: they leave {self.group.device} (same result)."
            )
            return
        if self._exchanging or self.parts >= chunks:
            raise self._too_large(batch, memory)
        self.parts = min(chunks, self.parts * 2)
        self.reporter.warning(f"a step does not fit into memory: computing it in {self.parts} parts (same result).")

    def _clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.undo()
        if self._gradients:
            self._gradients.clear()
        if self.group.device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_large(self, batch: Batch, memory: ClusterMemory) -> DeviceError:
        advice = "Use --precision bf16, a smaller --height and --width, or another --device"
        tried = self._edges[1] - self._edges[0]
        message = f"a training step does not fit into the memory of {self.group.device}"
        if self._exchanging:
            return DeviceError(f"{message}, by little: it ended while exchanging gradients.", f"{advice}.")
        fits = self._largest_that_fits(batch, memory, tried)
        if not fits:
            return DeviceError(f"{message}: {tried} images at a time do not, and not even 2 do.", f"{advice}.")
        return DeviceError(
            f"{message}: {tried} images at a time, which share batch-norm statistics, do not; {fits} do.",
            f"{advice}; or --samples-per-bn {fits}, which changes the result.",
        )

    def _largest_that_fits(self, batch: Batch, memory: ClusterMemory, tried: int) -> int:
        """Return how many images, halving from what was tried, can be computed at once; 0 for less than two."""
        number = tried // 2
        while number >= 2:
            fits = unless_out_of_memory(partial(self._try, batch, memory, self._edges[0], number))
            self._clear()
            if fits:
                return number
            number //= 2
        return 0

    def _try(self, batch: Batch, memory: ClusterMemory, start: int, number: int) -> bool:
        loss, _ = self._loss(self.model, batch, memory, start, start + number)
        torch.autograd.backward(loss)
        return True


def _parallel(model: nn.Module) -> DistributedDataParallel:
    """Wrap the network so that gradients are averaged over processes; buffers are ours to keep equal."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in 2.14
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)


def draws_random_numbers(model: nn.Module) -> bool:
    """Tell whether the network has layers that are random in training."""
    kinds = (nn.Dropout, nn.Dropout2d, StochasticDepth)
    drawn = [module.p for module in model.modules() if isinstance(module, kinds)]
    return any(drawn) or (isinstance(model, ReidNet) and model.spec.dropout > 0)
