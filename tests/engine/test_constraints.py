"""Tracklets and frames of a dataset reach the training labels and the scores."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import labels_in_ranks
import numpy as np
import pytest
import tiny
import torch

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.evaluation_set import _by_tracklet


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of the tiny dataset: pairs of images of one identity and camera are tracklets, some at one time."""
    root = tiny.make_dataset(tmp_path_factory.mktemp("tracks"))
    table = root / "tracks.csv"
    splits = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "id", "camera", "split", "tracklet", "frame"])
        for path in sorted(root.rglob("*.jpg")):
            match = re.match(r"(\d+)_c(\d)s1_(\d+)", path.name)
            assert match
            number = int(match[3]) % 1000
            track = f"{match[2]}-{match[1]}-{number // 2}"
            split = splits[path.parent.name]
            writer.writerow([path.relative_to(root), match[1], match[2], split, f"{split}-{track}", number])
    return table


@pytest.fixture
def dataset(table: Path) -> ReidDataset:
    return load_dataset(str(table), table.parent, SilentReporter())


def test_training_labels_keep_to_them(table: Path, dataset: ReidDataset, tmp_path: Path) -> None:
    tiny.train(table, tmp_path, save_every=tiny.STEPS, epochs=1, min_samples=2, eps=0.95, keep=9)
    labels = tiny.step_labels(tmp_path, 0, tiny.STEPS).numpy()
    tracks = dataset.train.tracks
    assert tracks is not None
    for name in set(tracks.tracklets):
        assert len(set(labels[[track == name for track in tracks.tracklets]].tolist())) == 1
    # All identities of a camera were filmed at the same frames: none of them shares a cluster.
    for camera in ("1", "2"):
        for time in range(4):
            here = (np.array(dataset.train.cameras) == camera) & (tracks.times == time)
            found = labels[here][labels[here] >= 0]
            assert here.sum() == 6 and len(set(found.tolist())) == len(found)


def test_several_processes_give_the_same_labels(tmp_path: Path) -> None:
    alone = labels_in_ranks.constrained_labels()
    assert alone.max() > 1
    for labels in tiny.call_in_ranks(labels_in_ranks.constrained_labels, 2, tmp_path):
        assert np.array_equal(labels, alone)


def test_tracklets_are_scored_by_their_means(dataset: ReidDataset, rng: np.random.Generator) -> None:
    rows = [
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(len(split), 4)).astype(np.float32)))
        for split in (dataset.query, dataset.gallery)
    ]
    pooled, query, gallery = _by_tracklet(dataset, *rows)
    assert (len(pooled.query), len(pooled.gallery)) == (8, 8) == (len(query), len(gallery))
    tracks = dataset.gallery.tracks
    assert tracks is not None and pooled.gallery.tracks is not None
    for row, name in enumerate(pooled.gallery.tracks.tracklets):
        mean = rows[1][[track == name for track in tracks.tracklets]].mean(0)
        assert torch.allclose(gallery[row], mean / mean.norm(), atol=1e-6)


def test_a_dataset_without_tracklets_says_so(tmp_path: Path) -> None:
    dataset = load_dataset(str(tiny.make_dataset(tmp_path)), tmp_path, SilentReporter())
    with pytest.raises(DataError, match="has no tracklets"):
        _by_tracklet(dataset, torch.ones(8, 2), torch.ones(16, 2))
