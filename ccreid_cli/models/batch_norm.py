"""Batch normalisation in chunks, so that its statistics do not depend on the number of GPUs.

The published numbers of Cluster Contrast come from four GPUs that each normalise a quarter of the batch. One GPU that
normalises the whole batch learns a different, worse model. Here a batch is cut into contiguous chunks of at most
`samples_per_bn` samples, and each chunk is normalised by itself, on one GPU or on many. PyTorch has no such layer: its
own normalises a GPU's whole share, or with SyncBatchNorm the whole batch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ccreid_cli.core.errors import UsageError


def bn_chunks(batch_size: int, samples_per_bn: int) -> list[int]:
    """Cut a batch into the fewest chunks of at most `samples_per_bn`, as equal as possible.

    Args:
        batch_size: Number of samples, at least 0.
        samples_per_bn: The most samples that share their statistics, at least 1.

    Returns:
        ceil(batch_size / samples_per_bn) sizes in batch order; the larger ones first, none more than one larger.

    Raises:
        ValueError: `samples_per_bn` is less than 1.
    """
    if samples_per_bn < 1:
        raise ValueError(f"samples_per_bn must be at least 1, not {samples_per_bn}")
    num_chunks = math.ceil(batch_size / samples_per_bn)
    return [batch_size // num_chunks + (chunk < batch_size % num_chunks) for chunk in range(num_chunks)]


def dense_format(tensor: Tensor) -> torch.memory_format:
    """Return the memory format in which slices of the batch are dense; a slice of channels_last channels keeps it."""
    last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.stride(1) == 1
    return torch.channels_last if last else torch.contiguous_format


def _normalize_apart(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, results: tuple[Tensor, ...]
) -> None:
    """Normalise a chunk in memory of its own, and copy its output, mean, variance, saved mean and saved invstd.

    On Apple's GPUs the kernel takes slices for their whole tensor (pytorch #133520, #174345), and before macOS 15 what
    it writes to them is lost: `Placeholder` gathers a tensor with an offset into a copy, even one to be written to.
    """
    mean, variance = torch.zeros_like(results[1]), torch.zeros_like(results[2])
    out, *saved = torch.ops.aten.native_batch_norm(x.clone(), weight, bias, mean, variance, True, 1.0, eps)
    for target, value in zip(results, (out, mean, variance, *saved), strict=True):
        target.copy_(value)


class _NormalizeChunks(torch.autograd.Function):
    """Normalise each chunk into its slice of one output, instead of normalising slices and joining copies of them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Tensor, sizes: list[int], eps: float
    ) -> Tensor:
        """Return the normalised batch and write each chunk's mean and unbiased variance to `stats` (2, chunks, C)."""
        x = x.contiguous(memory_format=dense_format(x))
        out = torch.empty_like(x)
        saved = torch.empty_like(stats)
        for chunk, (x_chunk, out_chunk) in enumerate(zip(torch.split(x, sizes), torch.split(out, sizes), strict=True)):
            if x.device.type == "mps":
                results = (out_chunk, stats[0, chunk], stats[1, chunk], saved[0, chunk], saved[1, chunk])
                _normalize_apart(x_chunk, weight, bias, eps, results)
                continue
            # With momentum 1 the kernel itself leaves the chunk's statistics in the "running" buffers.
            torch.ops.aten.native_batch_norm.out(
                *(x_chunk, weight, bias, stats[0, chunk], stats[1, chunk], True, 1.0, eps),
                out=out_chunk,
                save_mean=saved[0, chunk],
                save_invstd=saved[1, chunk],
            )
        ctx.save_for_backward(x, weight, saved)
        ctx.sizes, ctx.eps = sizes, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, the weight and the bias."""
        x, weight, saved = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        grad_out = grad_out.contiguous(memory_format=dense_format(x))
        grads: list[Tensor | None] = [torch.empty_like(x) if needed[0] else None, None, None]
        slices = zip(torch.split(x, ctx.sizes), torch.split(grad_out, ctx.sizes), strict=True)
        start = 0
        for chunk, (x_chunk, grad_chunk) in enumerate(slices):
            stop = start + len(x_chunk)
            given = [grad_chunk, x_chunk, saved[0, chunk], saved[1, chunk]]
            if x.device.type == "mps":
                given = [value.clone() for value in given]  # see _normalize_apart
            grad_x, *grad_affine = torch.ops.aten.native_batch_norm_backward(
                *(*given[:2], weight, None, None, *given[2:], True, ctx.eps, needed)
            )
            if grads[0] is not None:
                grads[0][start:stop] = grad_x
            for index, grad in enumerate(grad_affine, start=1):
                if needed[index]:
                    total = grads[index]
                    grads[index] = grad if total is None else total.add_(grad)
            start = stop
        return (*grads, None, None, None)


class _ChunkedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What both chunked layers share; parameters, buffers and state-dict keys are those of `nn.BatchNorm*d`."""

    def __init__(self, num_features: int, *, samples_per_bn: int = 64, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.samples_per_bn = samples_per_bn

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (B, C) or (B, C, H, W) chunk by chunk in training, by the running statistics in evaluation.

        One training step updates the running statistics once, with the mean over the chunks of their means and
        unbiased variances: averaged over processes, these are the same numbers as in one process.

        Raises:
            UsageError: A chunk holds a single value per channel, which has no variance.
        """
        if not self.training:
            return super().forward(input)
        check: Callable[[Tensor], None] = self._check_input_dim
        check(input)
        sizes = bn_chunks(len(input), self.samples_per_bn)
        if sizes and min(sizes) * input[0, 0].numel() == 1:
            raise UsageError(
                f"batch normalisation cannot learn from one sample (batch of {len(input)}, "
                f"chunks of at most {self.samples_per_bn}).",
                "Use a larger --batch-size, or --samples-per-bn 3 or more.",
            )
        if len(sizes) <= 1:
            return super().forward(input)
        dtype = torch.promote_types(input.dtype, torch.float32) if self.weight is None else self.weight.dtype
        stats = torch.zeros(2, len(sizes), self.num_features, dtype=dtype, device=input.device)
        out: Tensor = _NormalizeChunks.apply(input, self.weight, self.bias, stats, sizes, self.eps)
        if self.track_running_stats:
            self._update_running(stats.mean(dim=1))
        return out

    @torch.no_grad()
    def _update_running(self, stats: Tensor) -> None:
        """Move the running mean and variance towards `stats` (2, C)."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(stats[0].to(self.running_mean), momentum)
        self.running_var.lerp_(stats[1].to(self.running_var), momentum)

    def extra_repr(self) -> str:
        """Show the chunk size in the printed model."""
        plain: Callable[[], str] = super().extra_repr
        return f"{plain()}, samples_per_bn={self.samples_per_bn}"


class ChunkedBatchNorm1d(_ChunkedBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose training statistics come from chunks of at most `samples_per_bn` samples."""


class ChunkedBatchNorm2d(_ChunkedBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics come from chunks of at most `samples_per_bn` samples."""


def _chunked(plain: nn.BatchNorm1d | nn.BatchNorm2d, samples_per_bn: int) -> _ChunkedBatchNorm:
    """Return a chunked layer that holds the very parameters and buffers of `plain`."""
    kind = ChunkedBatchNorm1d if isinstance(plain, nn.BatchNorm1d) else ChunkedBatchNorm2d
    layer = kind(
        plain.num_features,
        samples_per_bn=samples_per_bn,
        eps=plain.eps,
        momentum=plain.momentum,
        affine=plain.affine,
        track_running_stats=plain.track_running_stats,
        device="meta",
    )
    for name, value in (*plain.named_parameters(recurse=False), *plain.named_buffers(recurse=False)):
        setattr(layer, name, value)
    return layer.train(plain.training)


def chunk_batch_norms(module: nn.Module, samples_per_bn: int) -> None:
    """Make every batch norm inside `module` normalise in chunks, in place; the parameters stay the same objects.

    Args:
        module: A network; layers that are chunked already get the new size.
        samples_per_bn: The most samples that share their statistics.
    """
    for name, child in module.named_children():
        if isinstance(child, _ChunkedBatchNorm):
            child.samples_per_bn = samples_per_bn
        elif isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, _chunked(child, samples_per_bn))
        else:
            chunk_batch_norms(child, samples_per_bn)


def _with_running_statistics(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    norms = (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in norms if norm.track_running_stats]


def count_statistics(module: nn.Module) -> int:
    """Return how many means and variances the batch norms of a network keep; 0 where it has none."""
    return sum(2 * norm.num_features for norm in _with_running_statistics(module))


@contextmanager
def with_statistics(module: nn.Module, statistics: Tensor) -> Iterator[None]:
    """Let the batch norms of a network use other running statistics for a while.

    Args:
        module: The network.
        statistics: (S,) the means and variances of its batch norms, as `batch_statistics` gives them.
    """
    norms = _with_running_statistics(module)
    kept = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    parts = iter(torch.split(statistics, [size for norm in norms for size in (norm.num_features,) * 2]))
    try:
        for norm in norms:
            norm.running_mean, norm.running_var = next(parts).clone(), next(parts).clone()
            norm.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=statistics.device)
        yield
    finally:
        for norm, (mean, variance, count) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, variance, count


@torch.no_grad()
def batch_statistics(module: nn.Module, compute: Callable[[], Any]) -> Tensor:
    """Return the means and variances that the batch norms of a network find in a batch; the network stays as it is.

    Args:
        module: The network, in evaluation mode.
        compute: Puts a batch through it. Each batch norm normalises the whole of it by its own statistics.

    Returns:
        (S,) float32: mean and unbiased variance of each batch norm, one after another.
    """
    norms = _with_running_statistics(module)
    momenta = [norm.momentum for norm in norms]
    chunked = {norm: norm.samples_per_bn for norm in norms if isinstance(norm, _ChunkedBatchNorm)}
    with with_statistics(module, torch.zeros(count_statistics(module), device=next(module.parameters()).device)):
        try:
            for norm in norms:
                norm.momentum = 1.0
                norm.train()
            for norm in chunked:
                norm.samples_per_bn = sys.maxsize
            compute()
            values = (value for norm in norms for value in (norm.running_mean, norm.running_var))
            return torch.cat([value for value in values if value is not None])
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
            for norm, samples in chunked.items():
                norm.samples_per_bn = samples
