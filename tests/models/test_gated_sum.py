"""The gated sum of OSNet's streams against the plain formula, left to autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ccreid_cli.models.osnet import ChannelGate


def _case(dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[ChannelGate, list[Tensor]]:
    torch.manual_seed(0)
    gate = ChannelGate(32).to(dtype)
    maps = [torch.randn(3, 32, 4, 2, dtype=dtype).to(memory_format=memory_format) for _ in range(4)]
    return gate, [value.requires_grad_() for value in maps]


def _plain(gate: ChannelGate, streams: list[Tensor]) -> Tensor:
    parts = []
    for maps in streams:
        weights = torch.sigmoid(gate.fc2(torch.relu(gate.fc1(maps.mean(dim=(2, 3), keepdim=True)))))
        parts.append(maps * weights)
    return torch.stack(parts).sum(dim=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sum_and_every_gradient_are_those_of_the_plain_formula(memory_format: torch.memory_format) -> None:
    gate, streams = _case(torch.float64, memory_format)
    slope = torch.randn(3, 32, 4, 2, dtype=torch.float64)
    wanted = [*streams, *gate.parameters()]
    expected, found = _plain(gate, streams), gate(streams)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=memory_format)
    grads = torch.autograd.grad(found, wanted, slope)
    for grad, value in zip(grads, torch.autograd.grad(expected, wanted, slope), strict=True):
        torch.testing.assert_close(grad, value)


def test_without_gradients_it_is_the_same_sum() -> None:
    gate, streams = _case(torch.float32, torch.channels_last)
    expected = _plain(gate, streams).detach()
    with torch.no_grad():
        torch.testing.assert_close(gate([maps.detach().clone() for maps in streams]), expected)


def test_streams_in_bfloat16_give_the_sum_and_their_gradients_in_bfloat16() -> None:
    gate, streams = _case(torch.float32, torch.channels_last)
    expected = _plain(gate, streams)
    halves = [maps.detach().bfloat16().requires_grad_() for maps in streams]
    with torch.autocast("cpu", torch.bfloat16):
        found = gate(halves)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)
    found.float().square().mean().backward()
    expected.square().mean().backward()
    for half, maps in zip(halves, streams, strict=True):
        assert half.grad is not None and half.grad.dtype == torch.bfloat16
        torch.testing.assert_close(half.grad.float(), maps.grad, atol=1e-3, rtol=0.1)
