from __future__ import annotations

import numpy as np
import pytest
import torch

from ccreid_cli.models.pooling import GeM, _GeneralizedMean
from ccreid_cli.models.registry import POOLINGS

OF_MAPS = [name for name in POOLINGS if not name.startswith("class")]


@pytest.fixture
def maps(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(3, 4, 5, 2)).astype(np.float32)


def _oracle(name: str, maps: np.ndarray) -> np.ndarray:
    if name == "avg":
        return maps.mean(axis=(2, 3))
    if name == "max":
        return maps.max(axis=(2, 3))
    return (np.maximum(maps, 1e-6).astype(np.float64) ** 3).mean(axis=(2, 3)) ** (1 / 3)


@pytest.mark.parametrize("name", OF_MAPS)
def test_pooling(name: str, maps: np.ndarray) -> None:
    pooled = POOLINGS[name].load()()(torch.from_numpy(maps))
    np.testing.assert_allclose(pooled.detach().numpy(), _oracle(name, maps), rtol=1e-5)


@pytest.mark.parametrize("name", OF_MAPS)
def test_pooling_answers_in_float32(name: str, maps: np.ndarray) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = POOLINGS[name].load()()(torch.from_numpy(maps).bfloat16())
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled.detach().numpy(), _oracle(name, maps), rtol=2e-2, atol=2e-2)


def test_gem_learns_its_exponent_and_survives_dead_channels() -> None:
    pool = GeM().double()
    maps = torch.rand(2, 3, 4, 4, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(pool, (maps.requires_grad_(),))
    pool(torch.zeros(2, 3, 4, 4, dtype=torch.float64)).sum().backward()
    assert pool.p.grad is not None and pool.p.grad.isfinite().all()
    assert pool.p.shape == (1,) and pool.p.item() == 3.0


def test_written_out_gradient_of_gem_is_autograds() -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    maps[0, 0] = -1.0  # a dead channel
    p = torch.tensor([2.7], dtype=torch.float64)
    weights = torch.randn(3, 4, dtype=torch.float64)
    grads = []
    for pool in (lambda x, q: _GeneralizedMean.apply(x, q, 1e-6), lambda x, q: _plain(x, q, 1e-6)):
        inputs = maps.clone().requires_grad_(), p.clone().requires_grad_()
        (pool(*inputs) * weights).sum().backward()
        grads.append([value.grad for value in inputs])
    torch.testing.assert_close(grads[0], grads[1])


def _plain(maps: torch.Tensor, p: torch.Tensor, eps: float) -> torch.Tensor:
    return maps.clamp(min=eps).pow(p).mean(dim=(2, 3)).pow(1.0 / p)


def test_gem_learns_from_bfloat16_maps_and_survives_a_large_exponent() -> None:
    pool = GeM(p=12.0)
    maps = torch.rand(2, 3, 4, 4).bfloat16()
    maps[0, 0] = 0.0  # (1e-6)^12 is zero in float32
    maps.requires_grad_()
    pool(maps).sum().backward()
    assert maps.grad is not None and maps.grad.dtype == torch.bfloat16 and maps.grad.isfinite().all()
    assert pool.p.grad is not None and pool.p.grad.shape == (1,) and pool.p.grad.isfinite().all()
