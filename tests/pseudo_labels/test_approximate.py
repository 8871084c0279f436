"""Approximate neighbours: the recall that was asked for, exact similarities, and labels close to the exact ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.pseudo_labels import approximate
from ccreid_cli.pseudo_labels.approximate import ApproximateTable
from ccreid_cli.pseudo_labels.cells import Cells
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


def slow_nearest(rows: torch.Tensor, queries: Any, among: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar of the rows `among[i]` to each query, itself first, then by similarity and row number."""
    values = rows.double().numpy()
    found = []
    for query, columns in zip(queries, among, strict=True):
        similarities = (values[np.sort(columns)] @ values[query]).astype(np.float32)
        order = np.lexsort((np.sort(columns), -similarities, np.sort(columns) != query))[:k]
        found.append((similarities[order], np.sort(columns)[order]))
    return np.stack([part[0] for part in found]), np.stack([part[1] for part in found])


@pytest.mark.parametrize("num_near", [1, 3, 9, 40])
def test_the_best_of_the_nearest_cells_are_found(num_near: int, rows: torch.Tensor) -> None:
    """Against plain NumPy; 40 cells are all there are."""
    cells = Cells(rows, rows[:40])
    queries = torch.arange(5, 300, 7)
    distances = np.square(rows.numpy()[:, None] - cells.centroids.numpy()).sum(2)
    own, order = distances.argmin(1), distances.argsort(1)[:, :num_near]
    assert cells.cell_of_row.tolist() == own.tolist()
    among = [np.nonzero(np.isin(own, order[query]))[0] for query in queries.tolist()]
    k = min(6, *map(len, among))
    similarities, columns = cells.nearest(queries, num_near, k)
    expected = slow_nearest(rows, queries.tolist(), among, k)
    np.testing.assert_array_equal(columns.numpy(), expected[1])
    np.testing.assert_allclose(similarities.numpy(), expected[0], atol=1e-7)


def test_cells_with_too_few_rows_give_way_to_all(rows: torch.Tensor) -> None:
    cells = Cells(rows, rows[:300])
    similarities, columns = cells.nearest(torch.arange(50), 1, 12)
    expected = FeatureTable(rows).nearest(12, 0, 50)
    few = (torch.bincount(cells.cell_of_row)[cells.cell_of_row[:50]] < 12).nonzero()[:, 0]
    assert len(few) > 5
    assert torch.equal(columns[few], expected[1][few]) and torch.equal(similarities[few], expected[0][few])


@pytest.mark.parametrize("recall", [0.7, 0.95])
def test_the_recall_asked_for_is_reached_with_less_work(recall: float, rows: torch.Tensor) -> None:
    table = ApproximateTable(rows, CPU, recall, 8)
    similarities, columns = table.nearest(8, 0, len(rows))
    exact, neighbours = FeatureTable(rows).nearest(8, 0, len(rows))
    hits = (columns[:, :, None] == neighbours[:, None]).any(2).float().mean()
    assert hits == pytest.approx(table.recall, abs=0.03) and hits > recall - 0.03
    assert table.compared() < 0.4
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
    assert told.num_labelled < 500 and 0.8 < told.recall <= 1 and told.compared < 0.5
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
