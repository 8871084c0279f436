"""Networks built without tensors have the same names and shapes, cost no drawing, and leave the generator alone."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import resnet18

from ccreid_cli.machine.without_tensors import without_tensors


def test_names_and_shapes_are_the_same() -> None:
    state = torch.get_rng_state()
    with without_tensors():
        net = resnet18()
        maps = net(torch.zeros(2, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert {key: value.shape for key, value in net.state_dict().items()} == {
        key: value.shape for key, value in resnet18().state_dict().items()
    }
    assert all(value.is_meta for value in net.state_dict().values()) and maps.shape == (2, 1000)


def test_tensors_that_have_values_are_filled() -> None:
    values = torch.zeros(3)
    with without_tensors():
        nn.init.constant_(values, 2.0)
        nn.init.uniform_(tensor=torch.empty(2))
        assert values.add_(1).tolist() == [3.0, 3.0, 3.0]
