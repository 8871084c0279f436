"""Learning rates and optimizers: the published schedules, and settings that are no schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ccreid_cli.core.checking import validate
from ccreid_cli.core.errors import UsageError
from ccreid_cli.engine.schedule import learning_rate
from ccreid_cli.engine.step import OPTIMIZERS, make_optimizer


def _rate(epoch: int, step: int = 0, **settings: Any) -> float:
    return learning_rate(validate({"lr": 1.0, "iters": 10, **settings}, "test"))(epoch, step)


def test_steps_and_milestones() -> None:
    assert [_rate(epoch, step_size=2) for epoch in (0, 1, 2, 4)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [_rate(epoch, milestones="2,5") for epoch in (1, 2, 4, 5, 50)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_warm_up_rises_in_a_line_and_ends_where_the_schedule_is() -> None:
    rise = [_rate(epoch, step, warmup=2, warmup_factor=0.1) for epoch in (0, 1, 2) for step in (0, 5)]
    assert rise == pytest.approx([0.1, 0.325, 0.55, 0.775, 1, 1])
    assert _rate(3, warmup=2, milestones="3") == pytest.approx(0.1)


@pytest.mark.parametrize("text", ["20,20", "40,20", "0", "a", "20,", "-3"])
def test_what_is_no_list_of_milestones_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--milestones") as caught:
        validate({"milestones": text}, "settings")
    assert "--milestones 20,40" in str(caught.value.hint)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_moves_what_is_trained_and_nothing_else(name: str) -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    optimizer = make_optimizer(layer, 0.1, 0.01, name)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before["weight"]) and torch.equal(layer.bias, before["bias"])
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_sgd_has_the_momentum_that_the_recipes_were_published_with() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = make_optimizer(layer, 0.1, 0.0, "sgd")
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    assert layer.weight.item() == pytest.approx(-0.1 - 0.19)
