"""The gate that the streams of a block of OSNet share, and the sum of what it lets through, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class GatedSum(torch.autograd.Function):
    """Weigh S streams by what their maps show on average, and add them up, with the gradient written out.

    With means m, weights w = sigmoid(relu(m·A + a)·B + b) and sum y = Σ w·x over the streams x, the gradient of a
    stream is dy·w + dm / (H·W). Left to autograd these are four passes over the maps of every stream; here it is one.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, bias_a: Tensor, b: Tensor, bias_b: Tensor, *streams: Tensor) -> Tensor:
        """Return the sum (B, C, H, W) of streams of that shape; `a` is (hidden, C), `b` is (C, hidden)."""
        with torch.autocast(streams[0].device.type, enabled=False):
            means = torch.cat([maps.mean(dim=(2, 3)) for maps in streams]).to(a.dtype)
            hidden = F.linear(means, a, bias_a).relu_()
            weights = F.linear(hidden, b, bias_b).sigmoid_()
        ctx.save_for_backward(a, b, means, hidden, weights, *streams)
        first, *others = per_stream(weights, streams)
        total: Tensor = streams[0] * first
        for maps, weight in zip(streams[1:], others, strict=True):
            total.addcmul_(maps, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of both matrices, of both biases and of the streams."""
        a, b, means, hidden, weights, *streams = ctx.saved_tensors
        product = torch.empty_like(grad)
        grad_weights = torch.cat([torch.mul(grad, maps, out=product).sum(dim=(2, 3)) for maps in streams]).to(a.dtype)
        grad_out = grad_weights * weights * (1 - weights)
        grad_hidden = (grad_out @ b).mul_(hidden > 0)
        shares = (grad_hidden @ a).div_(grad.shape[2] * grad.shape[3])
        grad_streams = [
            torch.addcmul(share, grad, weight)
            for share, weight in zip(per_stream(shares, streams), per_stream(weights, streams), strict=True)
        ]
        return (grad_hidden.T @ means, grad_hidden.sum(0), grad_out.T @ hidden, grad_out.sum(0), *grad_streams)


def per_stream(values: Tensor, streams: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Turn (S·B, C) values into (S, B, C, 1, 1), in the number format of the streams."""
    return values.to(streams[0].dtype).view(len(streams), *streams[0].shape[:2], 1, 1)
