"""Pooling: from a map of local features, or from tokens, to one feature per image. `models.registry` names them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ccreid_cli.models.backbones import Tokens


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32, or as it is when it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _GeneralizedMean(torch.autograd.Function):
    """The generalised mean with the gradient written out.

    With u = max(x, eps), m = mean(u^p), y = m^(1/p) over the n positions of a map:
    dy/dx = y / m · u^p / u / n where x >= eps, and dy/dp = y / (p·m) · mean(u^p·log u) - y·log(m) / p². Left to
    autograd, this takes a tenth of a ResNet-50 step on a CPU: it raises every element to two powers again.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, p: Tensor, eps: float) -> Tensor:
        """Return (B, C) of (B, C, H, W)."""
        powers = at_least_float32(maps).clamp(min=eps).pow(p)
        mean = powers.mean(dim=(2, 3))
        pooled: Tensor = mean.pow(1.0 / p)
        ctx.save_for_backward(maps, p, powers, mean, pooled)
        ctx.eps = eps
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of the maps and of the exponent."""
        maps, p, powers, mean, pooled = ctx.saved_tensors
        # A channel that is zero everywhere has m = eps^p, which a large p takes to zero.
        scaled = grad * pooled / mean.clamp(min=torch.finfo(mean.dtype).tiny)
        base = at_least_float32(maps).clamp(min=ctx.eps)
        grad_maps = grad_p = None
        if ctx.needs_input_grad[0]:
            size = maps.shape[2] * maps.shape[3]
            slopes = (powers / base).mul_((scaled / size)[:, :, None, None]).masked_fill_(maps < ctx.eps, 0.0)
            grad_maps = slopes.to(maps.dtype)
        if ctx.needs_input_grad[1]:
            weighed = base.log_().mul_(powers).mean(dim=(2, 3))
            log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
            grad_p = ((scaled * weighed).sum() / p - (grad * pooled * log_mean).sum() / p**2).reshape(p.shape)
        return grad_maps, grad_p, None


class GeM(nn.Module):
    """Generalised mean over the positions: ``(mean(x^p))^(1/p)``, with a learnt p (Radenović et al., TPAMI 2018).

    Args:
        p: The exponent at the start: 1 is the average, infinity the maximum.
        eps: The features are clamped to at least this, so that every power exists.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) feature maps to (B, C) float32 features."""
        if torch.is_grad_enabled() and maps.dtype in (torch.bfloat16, torch.float16):
            # In float32 autograd's own order of operations: the reference's training steps, to the last bit.
            learnt: Tensor = _GeneralizedMean.apply(maps, self.p, self.eps)
            return learnt
        powers = at_least_float32(maps).clamp(min=self.eps).pow(self.p)
        pooled: Tensor = powers.mean(dim=(2, 3)).pow(1.0 / self.p)
        return pooled

    def extra_repr(self) -> str:
        """Show the exponent in the printed model."""
        return f"p={self.p.item():.3f}, eps={self.eps}"


class AveragePooling(nn.Module):
    """The mean over the positions."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) feature maps to (B, C) float32 features."""
        return maps.mean(dim=(2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


class MaxPooling(nn.Module):
    """The maximum over the positions."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) feature maps to (B, C) float32 features."""
        return at_least_float32(F.adaptive_max_pool2d(maps, 1).flatten(1))


class TokenPooling(nn.Module):
    """A pooling that takes `Tokens`, not maps.

    Attributes:
        parts: How many times as long as a token its result is.
    """

    parts = 1


class ClassToken(TokenPooling):
    """The class token of a transformer."""

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (B, C) float32 features."""
        return at_least_float32(tokens.class_token)


class ClassAndAverage(TokenPooling):
    """The class token and the mean of the patches, side by side."""

    parts = 2

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (B, 2 C) float32 features."""
        token = at_least_float32(tokens.class_token)
        return torch.cat([token, tokens.maps.mean(dim=(2, 3), dtype=token.dtype)], dim=1)
