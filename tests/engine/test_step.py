"""A training step computed in parts equals the step computed at once, and running out of memory is no dead run."""

from __future__ import annotations

from typing import Any

import pytest
import steps_in_ranks
import tiny
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ccreid_cli.core.errors import DeviceError, UsageError
from ccreid_cli.engine.micro_batches import share_chunks
from ccreid_cli.engine.step import TrainStep, draws_random_numbers
from ccreid_cli.models.batch_norm import bn_chunks
from ccreid_cli.models.reid_net import ReidNet

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-6)
    torch.testing.assert_close(found["centroids"], expected["centroids"], rtol=0, atol=1e-6)
    for kind, tolerance in (("gradients", 1e-5), ("state", 1e-5)):  # convolutions of another size round otherwise
        for name, value in expected[kind].items():
            largest = max(1.0, float(value.abs().max()))
            torch.testing.assert_close(found[kind][name], value, rtol=0, atol=tolerance * largest)
    for name, value in expected["state"].items():
        if "running" in name:
            torch.testing.assert_close(found["state"][name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("after_forward", [False, True])
@pytest.mark.parametrize(("images", "parts"), [(16, 2), (8, 3)])
def test_a_step_in_parts_equals_the_whole(
    images: int, parts: int, after_forward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that fails after the forward pass has moved the running statistics: they are put back."""
    whole = steps_in_ranks.Fixed().train()
    reporter = tiny.Warnings()
    tiny.limit_memory(monkeypatch, images, after_forward=after_forward)
    fixed = steps_in_ranks.Fixed(reporter=reporter)
    assert_close(fixed.train(), whole)
    assert fixed.step.micro_batches.count == parts
    assert reporter.said[-1] == f"a step does not fit into memory: computing it in {parts} parts (same result)."


def test_a_single_failure_splits_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.limit_memory(monkeypatch, 0, times=1)
    fixed = steps_in_ranks.Fixed()
    fixed.train(steps=3)
    assert fixed.step.micro_batches.count == 2


def test_random_layers_draw_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout every chunk is computed apart from the start, in one process or several."""
    fixed = steps_in_ranks.Fixed(dropout=0.5)
    assert fixed.step.micro_batches.count == 3
    one, other = fixed.train(), steps_in_ranks.Fixed(dropout=0.5).train()
    tiny.assert_same(one, other)
    assert one["losses"] != steps_in_ranks.Fixed(dropout=0.4).train()["losses"]


def test_the_largest_size_that_fits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.limit_memory(monkeypatch, 5)
    fixed = steps_in_ranks.Fixed()
    before = {name: value.clone() for name, value in fixed.model.state_dict().items()}
    with pytest.raises(DeviceError, match=r"8 images at a time, .* do not; 4 do") as caught:
        fixed.train()
    assert "--samples-per-bn 4" in str(caught.value.hint) and "--precision bf16" in str(caught.value.hint)
    tiny.assert_same(dict(fixed.model.state_dict()), before)


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.limit_memory(monkeypatch, 0)
    with pytest.raises(DeviceError, match="8 images at a time do not, and not even 2 do"):
        steps_in_ranks.Fixed().train()


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ReidNet, inputs: Tensor) -> Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(ReidNet, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        steps_in_ranks.Fixed().train()


def test_a_run_that_runs_out_of_memory_keeps_its_saves(
    tiny_data: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shrink(number: int) -> None:
        if number == 5:
            tiny.limit_memory(monkeypatch, 0)

    with tiny.watched(shrink), pytest.raises(DeviceError):
        tiny.train(tiny_data, tmp_path)
    monkeypatch.undo()
    assert tiny.resume(tmp_path)["epochs"] == tiny.EPOCHS


def test_every_part_is_cut_into_the_chunks_of_the_whole() -> None:
    for samples in range(2, 40):
        for batch in range(2, 120):
            chunks = bn_chunks(batch, samples)
            for start in range(len(chunks)):
                for stop in range(start + 1, len(chunks) + 1):
                    assert bn_chunks(sum(chunks[start:stop]), samples) == chunks[start:stop]


def test_more_processes_than_chunks_are_refused() -> None:
    assert share_chunks(256, 64, 4) == [64] * 4
    with pytest.raises(UsageError, match="5 processes cannot share a batch of 4") as caught:
        share_chunks(256, 64, 5)
    assert "at most 4 processes" in str(caught.value.hint)


def test_which_networks_are_random() -> None:
    assert not draws_random_numbers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    assert draws_random_numbers(nn.Sequential(nn.Dropout(0.1)))
    assert draws_random_numbers(nn.Sequential(StochasticDepth(0.1, "row")))


def test_the_seed_of_torch_is_left_alone_without_random_layers() -> None:
    fixed = steps_in_ranks.Fixed()
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    fixed.train()
    assert torch.equal(torch.rand(1), expected)
    assert isinstance(fixed.step, TrainStep)
