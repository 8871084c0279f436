"""Made weights: the golden numbers' fill recipe, and files of the forms that users hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ccreid_cli.models.key_maps import from_official, to_official

State = dict[str, Tensor]


def _fill(key: str, shape: torch.Size, index: int) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key == "gap.p":
        return torch.tensor([3.0])
    if key.endswith("running_var"):
        return 1 + 0.1 * torch.rand(shape, generator=generator)
    draw = torch.randn(shape, generator=generator)
    if key.endswith(("running_mean", ".bias")):
        return 0.1 * draw
    if len(shape) == 1:
        return 1 + 0.1 * draw
    return draw * math.sqrt(2 / math.prod(shape[1:]))


@pytest.fixture
def filled() -> Callable[[torch.nn.Module], State]:
    """Fill the weights of a model as the golden numbers' were, and return them under the official names."""

    def fill(model: torch.nn.Module) -> State:
        shapes = {key: value.shape for key, value in to_official(model.state_dict()).items()}
        official = {key: _fill(key, shapes[key], index) for index, key in enumerate(sorted(shapes))}
        model.load_state_dict(from_official(official))
        return official

    return fill
