"""Candidates from the inverted file of faiss: all rows are there, near ones come first, and training repeats itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ccreid_cli.machine.distributed import Group
from ccreid_cli.pseudo_labels.inverted_file import InvertedFile, train

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def unit_rows(count: int, dim: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(1)))


def file_of(rows: torch.Tensor) -> InvertedFile:
    found = InvertedFile(train(lambda numbers: rows[torch.from_numpy(numbers)], len(rows), Group()), CPU)
    for first in range(0, len(rows), 300):
        found.add(first, rows[first : first + 300])
    return found


@pytest.mark.parametrize("dim", [1, 2, 7, 16])
def test_all_cells_hold_all_rows(dim: int) -> None:
    rows = unit_rows(700, dim)
    file = file_of(rows)
    found = file.search(rows[:20], file.num_cells, 700)
    assert (found.sort(1)[0] == torch.arange(700)).all()


def test_near_rows_come_first_and_few_cells_lack_some() -> None:
    rows = unit_rows(800, 16)
    file = file_of(rows)
    found = file.search(rows[:100], file.num_cells, 60)
    exact = (rows[:100] @ rows.T).topk(10)[1]
    assert (exact[:, :, None] == found[:, None]).any(2).float().mean() > 0.9
    few = file.search(rows[:100], 1, 60)
    assert (few[:, 0] >= 0).all() and (few[:, -1] == -1).any()


def test_training_again_gives_the_same_bytes() -> None:
    rows = unit_rows(400, 8)
    one, other = (train(lambda numbers: rows[torch.from_numpy(numbers)], 400, Group()) for _ in range(2))
    np.testing.assert_array_equal(one, other)
