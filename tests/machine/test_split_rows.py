"""Columns of split rows: the same bits as one process with all rows computes."""

from __future__ import annotations

from pathlib import Path

import labels_in_ranks
import pytest
import tiny
import torch


@pytest.mark.parametrize(("count", "width"), [(11, 150), (2, 64)])
def test_columns_are_computed_from_all_their_rows(count: int, width: int, tmp_path: Path) -> None:
    """Three blocks or one for three processes, of which one may have no row."""
    alone = labels_in_ranks.columns_of(count, width, [])
    whole = torch.randn(count, width, generator=torch.Generator().manual_seed(count))
    assert torch.equal(alone[0], whole.cumsum(dim=0))
    assert torch.equal(alone[1], whole.double()[::3].cumsum(dim=0))
    for found in tiny.call_in_ranks(labels_in_ranks.columns_of, 3, tmp_path, count, width, [1, count - 1]):
        tiny.assert_same(found, alone)
