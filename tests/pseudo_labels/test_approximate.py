"""Approximate neighbours: the recall that was asked for, exact similarities, and labels close to the exact ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import labels_in_ranks
import numpy as np
import pytest
import tiny
import torch

from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.pseudo_labels import approximate
from ccreid_cli.pseudo_labels.approximate import ApproximateTable
from ccreid_cli.pseudo_labels.clustering import ClusterSettings, agreement
from ccreid_cli.pseudo_labels.constraints import Constraints
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def features_of(num_ids: int, per_id: int, noise: float = 0.25, dim: int = 16, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_ids, dim, generator=generator).repeat_interleave(per_id, 0)
    rows = centres + noise * torch.randn(num_ids * per_id, dim, generator=generator)
    return torch.nn.functional.normalize(rows[torch.randperm(len(rows), generator=generator)])


@pytest.fixture
def rows() -> torch.Tensor:
    return features_of(120, 8)


@pytest.mark.parametrize("recall", [0.7, 0.95])
def test_the_recall_asked_for_is_reached_with_less_work(recall: float, rows: torch.Tensor) -> None:
    table = ApproximateTable(rows, CPU, recall, 8)
    similarities, columns = table.nearest(8, 0, len(rows))
    exact, neighbours = FeatureTable(rows).nearest(8, 0, len(rows))
    hits = (columns[:, :, None] == neighbours[:, None]).any(2).float().mean()
    assert hits == pytest.approx(table.recall, abs=0.03) and hits > recall - 0.03
    assert table.effort.num_probed < 0.4 * table.index.num_cells and table.effort.num_candidates < 64
    assert torch.equal(columns[:, 0].long(), torch.arange(len(rows)))
    assert (similarities <= exact).all()
    again = ApproximateTable(rows, CPU, recall, 8)
    assert torch.equal(again.nearest(8, 0, len(rows))[1], columns)


def test_parts_of_the_rows_are_the_rows_of_the_whole(rows: torch.Tensor) -> None:
    """So that processes can share them."""
    table = ApproximateTable(rows, CPU, 0.9, 8)
    whole = table.nearest(8, 0, len(rows))
    parts = [table.nearest(8, *bounds) for bounds in ((0, 333), (333, 334), (334, 960), (960, 960))]
    for number in (0, 1):
        assert torch.equal(torch.cat([part[number] for part in parts]), whole[number])


def test_processes_that_hold_some_rows_each_find_the_same(tmp_path: Path, rows: torch.Tensor) -> None:
    rows = rows[:-1]
    table = ApproximateTable(rows, CPU, 0.9, 8)
    similarities, columns = table.nearest(8)
    for found in tiny.call_in_ranks(labels_in_ranks.approximate_neighbours, 2, tmp_path, rows, 8):
        assert torch.equal(found[0], similarities) and torch.equal(found[1], columns)
        assert (found[2] == table.sample_for_labels()).all()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on small sets what is meant for large ones."""
    monkeypatch.setattr("ccreid_cli.pseudo_labels.pipeline.LEAST_ROWS", 100)
    monkeypatch.setattr(approximate, "_LABELLED_ROWS", 400)


class Messages(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("eps", [0.6, "auto"])
def test_labels_say_how_near_they_are_to_the_exact_ones(eps: Any, rows: torch.Tensor) -> None:
    settings = {"k1": 8, "k2": 3, "eps": eps}
    exact = pseudo_labels(rows, ClusterSettings(**settings))
    reporter = Messages()
    found = pseudo_labels(rows, ClusterSettings(**settings, neighbors="approximate", recall=0.9), reporter=reporter)
    assert exact.approximation is None and found.approximation is not None
    told = found.approximation
    assert told.num_labelled < 500 and 0.8 < told.recall <= 1 and told.num_probed < 0.5 * told.num_cells
    assert agreement(found.labels, exact.labels) == pytest.approx(told.agreement, abs=0.1)
    assert told.agreement > 0.8
    assert told.as_json()["neighbor_recall"] == round(told.recall, 4)
    assert any(f"{told.recall:.1%} of the exact ones" in text for text in reporter.said)
    assert "sample" in found.seconds


@pytest.mark.usefixtures("small")
def test_with_constraints(rows: torch.Tensor) -> None:
    """Images of one tracklet are one row, which counts for all of them."""
    groups = np.arange(len(rows)) // 2
    nobody = np.full(len(rows) // 2, -1), np.zeros(len(rows), dtype=np.bool_)
    constraints = Constraints(groups, np.empty((0, 2), dtype=np.int64), *nobody)
    found = pseudo_labels(rows, ClusterSettings(k1=8, k2=3, neighbors="approximate"), constraints=constraints)
    assert (found.labels[::2] == found.labels[1::2]).all() and found.approximation is not None


def test_few_images_are_searched_exactly(rows: torch.Tensor) -> None:
    settings = ClusterSettings(k1=8, k2=3, neighbors="approximate")
    found = pseudo_labels(rows, settings)
    assert found.approximation is None
    assert (found.labels == pseudo_labels(rows, ClusterSettings(k1=8, k2=3)).labels).all()


def test_equal_rows_stand_for_one_another() -> None:
    """More equal images than neighbours: any of them is as near as any other, and none is lost."""
    rows = torch.cat([features_of(40, 8), features_of(1, 1).expand(100, 16)])
    table = ApproximateTable(rows, CPU, 0.95, 8)
    similarities, columns = table.nearest(8, 320, 420)
    assert table.recall > 0.9
    assert torch.equal(columns[:, 0].long(), torch.arange(320, 420))
    torch.testing.assert_close(similarities, torch.ones(100, 8))
