"""Features without what the edges tell, against plain NumPy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.pseudo_labels import background
from ccreid_cli.pseudo_labels.background import without_background
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels


def oracle(features: NDArray[np.float32], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Dimension by dimension: least squares with rows that pull every coefficient of the standardised edges to zero."""
    deviation = edges.std(axis=0)
    columns = (edges - edges.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    pull = np.sqrt(background.RIDGE * len(edges)) * np.eye(edges.shape[1])
    rows = []
    for values in features.astype(np.float64).T:
        values = values - values.mean()
        target = np.concatenate([values, np.zeros(edges.shape[1])])
        coefficients = np.linalg.lstsq(np.concatenate([columns, pull]), target, rcond=None)[0]
        rows.append(values - columns @ coefficients)
    left = np.array(rows).T
    return left / np.linalg.norm(left, axis=1, keepdims=True)


def test_what_the_edges_tell_is_subtracted(rng: np.random.Generator) -> None:
    edges = rng.normal(3, 5, (60, 7))
    edges[:, 2] = 4.0  # says nothing
    features = (rng.normal(size=(60, 300)) + edges @ rng.normal(size=(7, 300))).astype(np.float32)
    found = without_background(SplitRows(torch.from_numpy(features)), torch.from_numpy(edges)).own
    np.testing.assert_allclose(found.numpy(), oracle(features, edges), atol=2e-6)


def test_few_images_stay_as_they_are(rng: np.random.Generator) -> None:
    features = torch.from_numpy(rng.normal(size=(background.LEAST_IMAGES - 1, 8)).astype(np.float32))
    assert torch.equal(without_background(SplitRows(features), torch.ones(len(features), 3)).own, features)


def test_persons_are_found_before_a_background_that_hides_them(rng: np.random.Generator) -> None:
    """Eight persons seen at four places, whose background weighs more in the features than the person."""
    persons, places = np.repeat(np.arange(8), 20), np.arange(160) % 4
    colours = rng.normal(size=(4, 54))
    features = rng.normal(size=(8, 64))[persons] + 2 * rng.normal(size=(4, 64))[places]
    features = (features + 0.2 * rng.normal(size=(160, 64))).astype(np.float32)
    edges = torch.from_numpy(colours[places] + 0.05 * rng.normal(size=(160, 54)))
    settings = ClusterSettings(eps=0.5, k1=20, k2=3)
    hidden = pseudo_labels(features, settings).labels
    found = pseudo_labels(features, settings, edges=edges).labels
    assert len(set(zip(hidden.tolist(), persons.tolist(), strict=True))) > 8
    assert len(set(zip(found.tolist(), persons.tolist(), strict=True))) == len(set(found.tolist())) == 8
