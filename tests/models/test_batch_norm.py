from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ccreid_cli.core.errors import UsageError
from ccreid_cli.models.batch_norm import ChunkedBatchNorm1d, ChunkedBatchNorm2d, bn_chunks, chunk_batch_norms


@given(batch_size=st.integers(0, 2000), samples=st.integers(1, 300))
def test_chunks_are_few_contiguous_and_as_equal_as_possible(batch_size: int, samples: int) -> None:
    sizes = bn_chunks(batch_size, samples)
    assert sum(sizes) == batch_size
    assert len(sizes) == math.ceil(batch_size / samples)
    assert all(0 < size <= samples for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_chunks_of_the_published_setting() -> None:
    assert bn_chunks(256, 64) == [64, 64, 64, 64]
    assert bn_chunks(64, 16) == [16, 16, 16, 16]
    assert bn_chunks(100, 64) == [50, 50]
    with pytest.raises(ValueError, match="at least 1"):
        bn_chunks(4, 0)


def _made(kind: type[ChunkedBatchNorm1d] | type[ChunkedBatchNorm2d], channels: int, samples: int) -> nn.Module:
    layer = kind(channels, samples_per_bn=samples)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    return layer


def _separately(layer: nn.Module, x: Tensor, sizes: list[int]) -> Tensor:
    parts = [F.batch_norm(part, None, None, layer.weight, layer.bias, training=True) for part in x.split(sizes)]
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("shape", "samples", "sizes"),
    [
        ((64, 5, 4, 3), 16, [16] * 4),
        ((10, 6, 3, 2), 4, [4, 3, 3]),
        ((64, 7), 16, [16] * 4),
        ((6, 3, 1, 1), 2, [2, 2, 2]),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_separately_normalised_chunks(
    shape: tuple[int, ...], samples: int, sizes: list[int], channels_last: bool
) -> None:
    torch.manual_seed(0)
    layer = _made(ChunkedBatchNorm1d if len(shape) == 2 else ChunkedBatchNorm2d, shape[1], samples)
    x = torch.randn(shape) * 3 + torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = layer(ours)
    expected = _separately(layer, theirs, sizes)
    torch.testing.assert_close(out, expected)
    assert out.stride() == x.stride()
    if shape[0] != max(sizes):
        whole = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)
        assert not torch.allclose(out, whole, atol=1e-2)

    upstream = torch.randn(shape)
    grads = torch.autograd.grad(out, [ours, layer.weight, layer.bias], upstream)
    expected_grads = torch.autograd.grad(expected, [theirs, layer.weight, layer.bias], upstream)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 2, 2, 2), (6, 3)])
def test_gradient_in_double_precision(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    kind = ChunkedBatchNorm1d if len(shape) == 2 else ChunkedBatchNorm2d
    layer = kind(shape[1], samples_per_bn=2 if len(shape) == 4 else 3, track_running_stats=False).double()
    weight, bias = torch.rand(2, shape[1], dtype=torch.float64).unbind()

    def apply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (x, weight.requires_grad_(), bias.requires_grad_()))


def test_running_statistics_are_the_mean_over_the_chunks() -> None:
    torch.manual_seed(2)
    layer = ChunkedBatchNorm2d(3, samples_per_bn=4)
    mean, var = torch.zeros(3), torch.ones(3)
    for _ in range(3):
        x = torch.randn(10, 3, 2, 2) * 2 + 1
        layer(x)
        parts = x.split([4, 3, 3])
        chunk_mean = torch.stack([part.mean(dim=(0, 2, 3)) for part in parts]).mean(0)
        chunk_var = torch.stack([part.var(dim=(0, 2, 3), unbiased=True) for part in parts]).mean(0)
        mean, var = 0.9 * mean + 0.1 * chunk_mean, 0.9 * var + 0.1 * chunk_var
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, var)
    assert layer.num_batches_tracked == 3


def test_two_processes_learn_what_one_does() -> None:
    torch.manual_seed(3)
    alone, first, second = (ChunkedBatchNorm2d(4, samples_per_bn=8) for _ in range(3))
    x = torch.randn(32, 4, 3, 3)
    together = alone(x)
    apart = torch.cat([first(x[:16]), second(x[16:])])
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(alone.running_mean, (first.running_mean + second.running_mean) / 2)
    torch.testing.assert_close(alone.running_var, (first.running_var + second.running_var) / 2)


def test_momentum_none_is_the_average_over_the_steps() -> None:
    layer = ChunkedBatchNorm1d(2, samples_per_bn=4, momentum=None)
    steps = [torch.randn(8, 2) for _ in range(3)]
    for x in steps:
        layer(x)
    torch.testing.assert_close(layer.running_mean, torch.stack([x.mean(0) for x in steps]).mean(0))


@pytest.mark.parametrize("samples", [64, 65])
def test_one_chunk_is_plain_batch_norm(samples: int) -> None:
    x = torch.randn(64, 5, 2, 2)
    plain, chunked = nn.BatchNorm2d(5), ChunkedBatchNorm2d(5, samples_per_bn=samples)
    assert torch.equal(plain(x), chunked(x))
    assert torch.equal(plain.running_var, chunked.running_var)
    assert type(chunked(x).grad_fn) is type(plain(x).grad_fn)


def test_evaluation_uses_the_running_statistics() -> None:
    x = torch.randn(9, 5, 2, 2)
    plain, chunked = nn.BatchNorm2d(5), ChunkedBatchNorm2d(5, samples_per_bn=2)
    chunked.load_state_dict(plain.state_dict())
    assert torch.equal(plain.eval()(x), chunked.eval()(x))
    assert chunked.num_batches_tracked == 0


def test_bfloat16_autocast_keeps_float32_statistics() -> None:
    torch.manual_seed(4)
    conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    layer = _made(ChunkedBatchNorm2d, 8, 4)
    x = torch.randn(12, 3, 9, 7).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = conv(x)
        out = layer(maps)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.float(), _separately(layer, maps.float(), [4, 4, 4]), rtol=2e-2, atol=2e-2)
    out.float().square().sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()
    assert layer.running_var.dtype == torch.float32


def test_input_that_is_a_slice_of_channels() -> None:
    torch.manual_seed(5)
    whole = torch.randn(6, 8, 3, 2).to(memory_format=torch.channels_last)
    layer = _made(ChunkedBatchNorm2d, 4, 3)
    part = whole[:, 4:].requires_grad_()
    out = layer(part)
    torch.testing.assert_close(out, _separately(layer, part.contiguous(), [3, 3]))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("batch", "samples"), [(1, 64), (3, 2)])
def test_a_chunk_of_one_sample_is_explained(batch: int, samples: int) -> None:
    with pytest.raises(UsageError, match="one sample") as caught:
        ChunkedBatchNorm1d(4, samples_per_bn=samples)(torch.randn(batch, 4))
    assert caught.value.hint is not None and "--samples-per-bn" in caught.value.hint


def test_conversion_keeps_keys_tensors_and_options() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3, momentum=0.01)), nn.BatchNorm1d(5)
    )
    before, keys = dict(net.named_parameters()), list(net.state_dict())
    chunk_batch_norms(net, 16)
    assert list(net.state_dict()) == keys
    assert all(before[name] is value for name, value in net.named_parameters())
    layer = net[1][0]
    assert isinstance(layer, ChunkedBatchNorm2d)
    assert (layer.eps, layer.momentum, layer.samples_per_bn) == (1e-3, 0.01, 16)
    chunk_batch_norms(net, 8)
    assert net[1][0] is layer and layer.samples_per_bn == 8
    assert "samples_per_bn=8" in repr(net)
    assert isinstance(pickle.loads(pickle.dumps(copy.deepcopy(net)))[2], ChunkedBatchNorm1d)
