"""One training step: the batch of all processes through the network, the method's loss, the optimizer.

Batch norm sees chunks of the batch (`models.batch_norm.bn_chunks`), so a step may be computed in micro-batches of whole
chunks, in one process or several, with the same result: gradients add up, running statistics are averaged, and the
method sees the features of the whole batch afterwards. Layers that draw random numbers (dropout, stochastic depth) draw
them chunk by chunk too.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import StochasticDepth

from ccreid_cli.core.errors import DeviceError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.engine.accumulate import Gradients, RunningStatistics
from ccreid_cli.engine.micro_batches import MicroBatch, MicroBatches
from ccreid_cli.images.augment import augment
from ccreid_cli.images.sharded_store import ComingImages, ShardedStore
from ccreid_cli.images.source import ImageSet, ImageSource
from ccreid_cli.machine.device import autocast, derived_seed, unless_out_of_memory
from ccreid_cli.machine.distributed import Group
from ccreid_cli.method.batch import Batch
from ccreid_cli.method.interface import Method
from ccreid_cli.models.reid_net import ReidNet

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
"""What `--optimizer` names."""


def make_optimizer(model: nn.Module, lr: float, weight_decay: float, name: str = "adam") -> torch.optim.Optimizer:
    """Return an optimizer over every trainable parameter in one group, fused where the device has it.

    Args:
        model: The network.
        lr: The learning rate at first.
        weight_decay: Of all parameters alike.
        name: A name of `OPTIMIZERS`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = parameters[0].device.type in {"cpu", "cuda"}
    return OPTIMIZERS[name](parameters, lr=lr, weight_decay=weight_decay, fused=fused)


class TrainStep:
    """Runs training steps, splitting them over processes and, when memory is short, over time.

    Args:
        model: The network, on this process's device.
        optimizer: Over the network's parameters.
        store: The training images.
        method: What is learnt from; the same state in every process.
        precision: ``fp32`` or ``bf16``.
        group: The processes of the run.
        batch_size: Images of a step over all processes.
        samples_per_bn: The most images that share batch-norm statistics.
        reporter: Told when a step has to be split.
        exact: Give the same bits for any number of processes: compute chunk by chunk and sum in double precision.

    Attributes:
        micro_batches: How this process's share of a step is cut.

    Raises:
        UsageError: There are more processes than batch-norm chunks.
    """

    def __init__(
        self,
        model: ReidNet,
        optimizer: torch.optim.Optimizer,
        store: ImageSet,
        method: Method,
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
        self.method = method
        self.precision = precision
        self.group = group
        self.reporter = reporter
        self._is_random = draws_random_numbers(model)
        self.micro_batches = MicroBatches(batch_size, samples_per_bn, group, chunk_by_chunk=self._is_random or exact)
        self._statistics = RunningStatistics(model)
        self._gradients = Gradients(model) if exact else None
        self._coming: ComingImages | None = None
        self._parallel = _parallel(model) if group.world > 1 and not exact else None

    def __call__(self, batch: Batch, upcoming: NDArray[np.int64] | None = None) -> Tensor:
        """Train on one batch.

        Args:
            batch: The same batch in every process.
            upcoming: The images of the next batch, (B,) their rows: sharded ones are exchanged during this step.

        Returns:
            This process's part of the mean loss, detached; the parts of all processes add up to the loss.

        Raises:
            DeviceError: The step does not fit into the device's memory, however it is split.
        """
        self._statistics.remember()
        images = self._images_of(batch, upcoming)
        done = None
        while done is None:
            done = unless_out_of_memory(partial(self._accumulate, batch, images))
            if done is None:
                self._make_room(batch, images)
        loss, features = done
        self._finish_sums()
        self.optimizer.step()
        self.method.after_step(self.group.gather_rows(features, self.micro_batches.sizes), batch)
        return loss

    def _images_of(self, batch: Batch, upcoming: NDArray[np.int64] | None) -> ImageSource:
        """Return where the step's images are; sharded ones come once, however often parts of the step are tried."""
        if not isinstance(self.store, ShardedStore):
            return self.store
        coming, sizes = self._coming, self.micro_batches.sizes
        if coming is None or not np.array_equal(coming.indices, batch.indices):
            coming = self.store.begin_exchange(batch.indices, sizes)
        images = coming.wait()
        self._coming = None if upcoming is None else self.store.begin_exchange(upcoming, sizes)
        return images

    def _accumulate(self, batch: Batch, images: ImageSource) -> tuple[Tensor, Tensor]:
        """Add up the gradients of this process's micro-batches; return its part of the loss, and its features."""
        self.optimizer.zero_grad(set_to_none=True)
        total: Tensor = torch.zeros((), device=self.group.device)
        rows = []
        for micro in self.micro_batches:
            if self._is_random:
                torch.manual_seed(derived_seed(batch.seed, micro.chunk))
            if not micro.is_first:
                self._statistics.begin_micro_batch()
            loss, features = self._forward_backward(batch, images, micro)
            if self._is_summed:
                self._statistics.end_micro_batch(micro.chunk_share)
            if self._gradients:
                self._gradients.end_micro_batch()
            total += loss
            rows.append(features)
        return total, torch.cat(rows) if len(rows) > 1 else rows[0]

    @property
    def _is_summed(self) -> bool:
        return self.micro_batches.count > 1 or self.group.world > 1

    def _finish_sums(self) -> None:
        if self._is_summed:
            self._statistics.finish(self.group)
        if self._gradients:
            self._gradients.finish(self.group)

    def _forward_backward(self, batch: Batch, images: ImageSource, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Add the gradients of a micro-batch; with the last one, processes exchange them."""
        parallel = self._parallel
        exchanges = parallel is not None and micro.is_last
        with parallel.no_sync() if parallel and not exchanges else contextlib.nullcontext():
            loss, features = self._loss(parallel or self.model, batch, images, micro.start, micro.stop)
            # DistributedDataParallel averages gradients over processes; the loss is a sum over them.
            backward = partial(torch.autograd.backward, loss * (self.group.world if parallel else 1))
            if exchanges:
                self._exchange(backward)
            else:
                backward()
        return loss.detach(), features.detach()

    def _exchange(self, backward: Callable[[], Any]) -> None:
        """Run the backward pass in which processes exchange gradients: none may try it again by itself.

        Raises:
            DeviceError: It does not fit into memory.
        """

        def run() -> bool:
            backward()
            return True

        if not unless_out_of_memory(run):
            raise DeviceError(f"{self._too_large}, by little: it ended while exchanging gradients.", f"{_ADVICE}.")

    def _loss(
        self, network: nn.Module, batch: Batch, images: ImageSource, start: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        """Return the images' part of the batch's mean loss, and their features."""
        part = batch.slice(start, stop)
        inputs = augment(images.gather(part.indices, self.group.device), part.plan)
        with autocast(self.group.device, self.precision):
            features = network(inputs)
        return self.method.loss(features, inputs, part) * (len(part) / len(batch)), features

    def _make_room(self, batch: Batch, images: ImageSource) -> None:
        """Make the micro-batches smaller; where they cannot be, let kept images leave the device.

        Raises:
            DeviceError: Neither can be done.
        """
        images_left = not self.micro_batches.can_split and self.store.leave_device()
        self._clear()
        if images_left:
            self.reporter.warning(
                f"a step does not fit into memory beside the images: they leave {self.group.device} (same result)."
            )
        elif self.micro_batches.can_split:
            self.micro_batches.split()
            parts = self.micro_batches.count
            self.reporter.warning(f"a step does not fit into memory: computing it in {parts} parts (same result).")
        else:
            raise self._does_not_fit(batch, images)

    def _clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.undo()
        if self._gradients:
            self._gradients.clear()
        if self.group.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _too_large(self) -> str:
        return f"a training step does not fit into the memory of {self.group.device}"

    def _does_not_fit(self, batch: Batch, images: ImageSource) -> DeviceError:
        tried = self.micro_batches.largest_chunk
        fits = self._largest_that_fits(batch, images, tried)
        if not fits:
            return DeviceError(f"{self._too_large}: {tried} images at a time do not, and not even 2 do.", f"{_ADVICE}.")
        return DeviceError(
            f"{self._too_large}: {tried} images at a time, which share batch-norm statistics, do not; {fits} do.",
            f"{_ADVICE}; or --samples-per-bn {fits}, which changes the result.",
        )

    def _largest_that_fits(self, batch: Batch, images: ImageSource, tried: int) -> int:
        """Return how many images, halving from what was tried, can be computed at once; 0 for less than two."""
        number = tried // 2
        while number >= 2:
            fits = unless_out_of_memory(partial(self._try, batch, images, number))
            self._clear()
            if fits:
                return number
            number //= 2
        return 0

    def _try(self, batch: Batch, images: ImageSource, number: int) -> bool:
        start = self.micro_batches.first_image
        loss, _ = self._loss(self.model, batch, images, start, start + number)
        torch.autograd.backward(loss)
        return True


_ADVICE = "Use --precision bf16, a smaller --height and --width, or another --device"


def _parallel(model: nn.Module) -> DistributedDataParallel:
    """Wrap the network so that gradients are averaged over processes; buffers are ours to keep equal."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in 2.14
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)


def draws_random_numbers(model: nn.Module) -> bool:
    """Tell whether the network has layers that are random in training."""
    return any(map(_random_share, model.modules())) or (isinstance(model, ReidNet) and model.spec.dropout > 0)


def _random_share(module: nn.Module) -> float:
    """Return how likely a layer drops something; a layer named so that does not say how likely is taken to."""
    if "drop" not in type(module).__name__.lower() and not isinstance(module, StochasticDepth):
        return 0.0
    known = (getattr(module, name, None) for name in ("p", "drop_prob", "prob", "drop"))
    return next((float(value) for value in known if isinstance(value, int | float)), 1.0)
