"""Scores of query and gallery where what cameras do to images is taken out of the features first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.names import UNKNOWN
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.engine import extraction
from ccreid_cli.engine.evaluation_set import EvaluationSet
from ccreid_cli.engine.extraction import extract_by_camera
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.images.opening import ImageSettings
from ccreid_cli.machine.distributed import Group
from ccreid_cli.models.reid_net import ModelSpec, ReidNet
from ccreid_cli.pseudo_labels import cameras
from ccreid_cli.pseudo_labels.cameras import normalize_pair_by_camera

CPU = torch.device("cpu")
HERE = (CPU, "fp32")


@pytest.fixture
def model() -> ReidNet:
    torch.manual_seed(5)
    return ReidNet(ModelSpec(tiny.NAME))


@pytest.fixture
def test_set(tiny_data: Path, tmp_path: Path) -> EvaluationSet:
    dataset = load_dataset(str(tiny_data), tmp_path, SilentReporter())
    return EvaluationSet(dataset, ImageSettings(32, 16, 1, None), Group(), SilentReporter())


def test_batch_norms_take_the_statistics_of_test_cameras(
    test_set: EvaluationSet, model: ReidNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (extraction, cameras):
        monkeypatch.setattr(module, "LEAST_IMAGES", 4)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    query, gallery = test_set.dataset.query, test_set.dataset.gallery
    sides = (query.known_camera_ids(), gallery.known_camera_ids())
    rows = extract_by_camera(model, test_set.store, np.concatenate(sides), device=CPU).own
    split = rows[: len(query)], rows[len(query) :]
    for camera_norm in (False, True):
        pair = normalize_pair_by_camera(split[0], sides[0], split[1], sides[1]) if camera_norm else split
        expected = evaluate_features(
            pair[0], query.person_ids, query.camera_ids, pair[1], gallery.person_ids, gallery.camera_ids
        )
        found = test_set.score(model, *HERE, camera_batch_norm=True, camera_norm=camera_norm, batch_size=7)
        assert found.mean_ap == pytest.approx(expected.mean_ap, abs=1e-6) and sizes[-1] <= 7
    assert test_set.score(model, *HERE, camera_batch_norm=True).mean_ap != test_set.score(model, *HERE).mean_ap


def test_what_would_change_nothing_is_refused(test_set: EvaluationSet, model: ReidNet) -> None:
    dataset = test_set.dataset
    query, gallery = (replace(part, cameras=(UNKNOWN,) * len(part)) for part in (dataset.query, dataset.gallery))
    test_set.dataset = replace(dataset, query=query, gallery=gallery)
    with pytest.raises(UsageError, match="--camera-batch-norm needs test images of at least two known cameras"):
        test_set.score(model, *HERE, camera_batch_norm=True)
    test_set.dataset = dataset
    model.backbone.bn1, model.backbone.bn2 = nn.Identity(), nn.Identity()
    with pytest.raises(UsageError, match="--camera-batch-norm: tiny has no batch norms"):
        test_set.score(model, *HERE, camera_batch_norm=True)
