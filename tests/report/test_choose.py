"""Which queries and clusters are shown, and what is found for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccreid_cli.data.records import Record
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.images.store import ImageStore
from ccreid_cli.report.choose import (
    MAX_JUNK,
    choose_clusters,
    choose_doubtful,
    choose_outliers,
    choose_queries,
    choose_rankings,
)
from ccreid_cli.report.content import Verdict


def test_chosen_queries_are_the_worst_the_middle_and_others(rng: np.random.Generator) -> None:
    scores = rng.permutation(np.linspace(0, 1, 101))
    scores[[3, 50]] = np.nan
    chosen = choose_queries(scores, amount=5)
    ordered = np.sort(scores[np.isfinite(scores)])
    np.testing.assert_array_equal(scores[chosen["worst"]], ordered[:5])
    np.testing.assert_allclose(scores[chosen["median"]], ordered[47:52])
    everything = np.concatenate(list(chosen.values()))
    assert len(everything) == len(set(everything.tolist())) == 15
    np.testing.assert_array_equal(chosen["random"], choose_queries(scores, amount=5)["random"])


@pytest.mark.parametrize("amount", [0, 1, 4, 9])
def test_few_queries_are_shown_once(amount: int) -> None:
    chosen = np.concatenate(list(choose_queries(np.linspace(0, 1, amount), amount=4).values()))
    assert sorted(chosen.tolist()) == list(range(amount))


def _scored(rng: np.random.Generator) -> tuple[ReidDataset, ImageStore, torch.Tensor, torch.Tensor]:
    def draw(amount: int, kind: str) -> list[Record]:
        ids, cameras = rng.integers(0, 5, amount).astype(str), rng.integers(0, 3, amount).astype(str)
        return [Record(f"{kind}{row:03d}.jpg", str(ids[row]), str(cameras[row])) for row in range(amount)]

    dataset = ReidDataset.from_records("mine", Path(), {"query": draw(20, "q"), "gallery": draw(60, "g")})
    store = ImageStore(rng.integers(0, 256, (80, 8, 4, 3), dtype=np.uint8))
    rows = torch.from_numpy(rng.standard_normal((80, 6)).astype(np.float32))
    rows = rows / rows.norm(dim=1, keepdim=True)
    return dataset, store, rows[:20], rows[20:]


def test_rankings_match_a_plain_search(rng: np.random.Generator) -> None:
    dataset, store, query_features, gallery_features = _scored(rng)
    query, gallery = dataset.query, dataset.gallery
    ids = (query.person_ids, query.camera_ids, gallery_features, gallery.person_ids, gallery.camera_ids)
    evaluation = evaluate_features(query_features, *ids)
    selections = choose_rankings(dataset, store, query_features, gallery_features, evaluation)
    rankings = [ranking for selection in selections for ranking in selection.chosen]
    assert len(rankings) == 20
    for ranking in rankings:
        index = query.names.index(ranking.query.name)
        np.testing.assert_array_equal(ranking.query.image, store.images[index])
        order = np.argsort(-(gallery_features @ query_features[index]).numpy(), kind="stable")
        expected, rank, junk = [], 0, 0
        for entry in order:
            if rank == 10:
                break
            same = gallery.person_ids[entry] == query.person_ids[index]
            if same and gallery.camera_ids[entry] == query.camera_ids[index]:
                junk += 1
                if junk <= MAX_JUNK:
                    expected.append((gallery.names[entry], Verdict.JUNK, None))
                continue
            rank += 1
            expected.append((gallery.names[entry], Verdict.RIGHT if same else Verdict.WRONG, rank))
        assert [(found.picture.name, found.verdict, found.rank) for found in ranking.results] == expected
        assert ranking.num_junk_hidden == max(0, junk - MAX_JUNK)
        rights = [found.rank for found in ranking.results if found.verdict is Verdict.RIGHT]
        assert (rights[0] if rights else None) == (ranking.first_match_rank if ranking.first_match_rank <= 10 else None)
        for found in ranking.results:
            np.testing.assert_array_equal(
                found.picture.image, store.images[20 + gallery.names.index(found.picture.name)]
            )


def _clustered() -> tuple[ReidDataset, ImageStore, np.ndarray[Any, np.dtype[np.int64]]]:
    labels = np.array([0] * 20 + [1] * 8 + [2] * 8 + [3] * 6 + [-1] * 5, dtype=np.int64)
    ids = [1] * 15 + [2] * 5 + [3] * 8 + [4, 5, 6, 7] * 2 + [8] * 6 + [9] * 5
    records = [Record(f"{row:03d}.jpg", f"p{person}", f"c{row % 2}") for row, person in enumerate(ids)]
    dataset = ReidDataset.from_records("mine", Path(), {"train": records})
    return dataset, ImageStore(np.zeros((47, 8, 4, 3), dtype=np.uint8)), labels


def test_clusters_and_outliers_are_ordered() -> None:
    biggest, mixed, purest = choose_clusters(*_clustered())
    assert [cluster.number for cluster in biggest.chosen] == [0, 1, 2, 3]
    assert [(cluster.number, cluster.purity, cluster.num_ids) for cluster in mixed.chosen] == [
        (2, 0.25, 4),
        (0, 0.75, 2),
    ]
    assert [cluster.number for cluster in purest.chosen] == [1, 3, 0, 2]
    assert [picture.name for picture in choose_outliers(*_clustered())] == [f"{row:03d}.jpg" for row in range(42, 47)]


def test_every_identity_of_a_mixed_cluster_is_seen() -> None:
    cluster = choose_clusters(*_clustered())[0].chosen[0]
    assert cluster.main_id == "p1"
    assert [picture.identity for picture in cluster.pictures] == ["p1"] * 7 + ["p2"] * 5


def test_clusters_of_unknown_people() -> None:
    dataset, store, labels = _clustered()
    unknown = [Record(name, "", "") for name in dataset.train.names]
    dataset = ReidDataset.from_records("mine", Path(), {"train": unknown})
    (selection,) = choose_clusters(dataset, store, labels)
    first = selection.chosen[0]
    assert (first.num_ids, first.purity, first.main_id, first.num_cameras) == (None, None, None, None)
    assert first.pictures[0].identity is None
    assert first.pictures[0].camera is None
    assert choose_clusters(dataset, store, np.full(47, -1)) == ()


def test_without_identities_doubtful_clusters_and_merges_are_chosen(rng: np.random.Generator) -> None:
    truth = np.repeat(np.arange(6), 8)
    labels = np.where(truth < 2, 0, truth - 1)  # two identities in one cluster
    labels[truth == 5] = np.where(np.arange(8) < 4, 4, 5)  # and one in two
    rows = np.eye(6, 16)[truth] + 0.1 * rng.standard_normal((48, 16))
    rows = (rows / np.linalg.norm(rows, axis=1)[:, None]).astype(np.float32)
    dataset = ReidDataset.from_records(
        "mine", Path(), {"train": [Record(f"{row:02}.jpg", "", "") for row in range(48)]}
    )
    store = ImageStore(rng.integers(0, 256, (48, 8, 4, 3), dtype=np.uint8))
    (selection,), merges = choose_doubtful(dataset, store, rows, labels)
    assert selection.chosen[0].number == 0
    assert selection.chosen[0].num_images == 16
    assert (merges[0].first.number, merges[0].second.number) == (4, 5)
    assert merges[0].likelihood > 0.5
