from __future__ import annotations

from pathlib import Path

import numpy as np
import steps_in_ranks
import tiny
import torch

from ccreid_cli.data.records import Record
from ccreid_cli.data.splits import ReidDataset, queries_without_match
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.engine.shared_scores import evaluate_together
from ccreid_cli.machine.distributed import Group

CPU = torch.device("cpu")


def scored_dataset(rng: np.random.Generator, num_query: int, ids: int) -> ReidDataset:
    def draw(count: int) -> list[Record]:
        return [Record(f"{n:03d}.jpg", str(rng.integers(0, ids)), str(rng.integers(0, 3))) for n in range(count)]

    return ReidDataset.from_records("made", Path("images"), {"query": draw(num_query), "gallery": draw(40)})


def test_evaluation_equals_that_of_one_process(tmp_path: Path, rng: np.random.Generator) -> None:
    dataset = scored_dataset(rng, 11, 25)  # so many identities that some queries have no match
    query, gallery = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (11, 40))
    ids = (dataset.query.person_ids, dataset.query.camera_ids)
    alone = evaluate_features(query, *ids, gallery, dataset.gallery.person_ids, dataset.gallery.camera_ids)
    assert alone.num_queries_skipped > 0
    without = queries_without_match(dataset.query, dataset.gallery)
    np.testing.assert_array_equal(without, np.isnan(alone.average_precision))
    for found in tiny.call_in_ranks(steps_in_ranks.evaluation_in_group, 2, tmp_path, query, gallery, dataset):
        np.testing.assert_array_equal(found.average_precision, alone.average_precision)
        np.testing.assert_array_equal(found.first_match_rank, alone.first_match_rank)
        np.testing.assert_array_equal(found.cmc, alone.cmc)
        assert found.as_json() == alone.as_json()


def test_evaluation_alone_is_that_of_the_evaluator(rng: np.random.Generator) -> None:
    dataset = scored_dataset(rng, 5, 4)
    query, gallery = torch.eye(8)[:5], torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    found = evaluate_together(query, gallery, dataset, Group(), device=CPU)
    assert found.num_queries == 5
