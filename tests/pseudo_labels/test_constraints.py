"""What must be together and what must be apart, against brute force over all pairs of tiny sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.machine.split_rows import SplitRows
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.constraints import Constraints, find_constraints
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels
from ccreid_cli.pseudo_labels.separating import separate

SETTINGS = ClusterSettings(eps=0.7, k1=8, k2=2, min_samples=2)


@dataclass
class Image:
    camera: str = "1"
    tracklet: str = ""
    time: float = np.nan
    id: str = ""
    checked: bool = False


@dataclass
class Known:
    images: list[Image]
    tracklets: list[str] = field(init=False)
    times: NDArray[np.float64] = field(init=False)
    checked: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.tracklets = [image.tracklet for image in self.images]
        self.times = np.array([image.time for image in self.images], dtype=np.float64)
        self.checked = np.array([image.checked for image in self.images], dtype=np.bool_)


def found(images: list[Image]) -> Constraints | None:
    names = [f"{number}.jpg" for number in range(len(images))]
    cameras, ids = [image.camera for image in images], [image.id for image in images]
    return find_constraints(names, cameras, ids, Known(images))


def tracks_of(images: list[Image]) -> list[list[int]]:
    by: dict[object, list[int]] = {}
    for number, image in enumerate(images):
        by.setdefault(image.tracklet or number, []).append(number)
    return list(by.values())


def forbidden(images: list[Image]) -> set[tuple[int, int]]:
    """Pairs of images that are not of one object, by the definition."""
    pairs = set()
    for one, other in combinations(tracks_of(images), 2):
        times = [[images[i].time for i in track if np.isfinite(images[i].time)] for track in (one, other)]
        beside = all(times) and images[one[0]].camera == images[other[0]].camera
        if beside and max(map(min, times)) <= min(map(max, times)):
            pairs |= {(i, j) for i in one for j in other}
    for i, j in combinations(range(len(images)), 2):
        if images[i].checked and images[j].checked and images[i].id and images[j].id and images[i].id != images[j].id:
            pairs.add((i, j))
    return {(min(pair), max(pair)) for pair in pairs}


def test_what_is_known_of_seven_images() -> None:
    images = [
        Image("1", "a", 1),
        Image("1", "b", 2),
        Image("1", "a", 3),
        Image("2", "c", 2, "ada", True),
        Image("2", "", 9, "ada", True),
        Image("2", "", 9, "bea", True),
        Image("1", "", 5, "", True),
    ]
    known = found(images)
    assert known is not None
    assert known.groups.tolist() == [0, 1, 0, 2, 2, 3, 4]
    assert known.apart.tolist() == [[0, 1], [2, 3]]
    assert (known.identities[2] >= 0, known.identities[3] >= 0) == (True, True)
    assert known.in_none.tolist() == [False] * 6 + [True]
    assert known.spread(np.array([5, 6, 7, 8, 9])).tolist() == [5, 6, 5, 7, 7, 8, -1]
    part = known.select(np.array([5, 3, 2]))
    assert part.groups.tolist() == [0, 1, 2] and part.apart.tolist() == [[0, 1]]
    assert part.identities.tolist() == [known.identities[3], known.identities[2], -1]


def test_nothing_is_known_of_single_images() -> None:
    assert found([Image(), Image("2", "a"), Image("1", "", 4.0), Image("1", "", 5.0, "ada")]) is None
    assert find_constraints(["a"], ["1"], [""], None) is None


def test_without_any_camera_there_is_one(rng: np.random.Generator) -> None:
    known = found([Image("", "a", 1), Image("", "b", 1)])
    assert known is not None and known.apart.tolist() == [[0, 1]]
    assert found([Image("", "a", 1), Image("2", "b", 1)]) is None


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([Image("1", "a"), Image("1"), Image("2", "a")], "0.jpg and 2.jpg are of one tracklet and of two cameras"),
        (
            [Image("1", "a", 1, "x", True), Image("1", "a", 2), Image("1", "a", 3, "y", True)],
            "0.jpg and 2.jpg are of one tracklet and confirmed as two",
        ),
        (
            [Image("1", "a", 1, "x", True), Image("1", "b", 1, "x", True)],
            "0.jpg and 1.jpg are of one object and seen by one camera at one time",
        ),
    ],
)
def test_a_contradiction_names_its_images(images: list[Image], words: str) -> None:
    with pytest.raises(DataError, match=words):
        found(images)


@st.composite
def scenes(draw: st.DrawFn) -> list[Image]:
    """Up to 14 images of two cameras, some in tracks, some checked: never the tracks themselves."""
    images = []
    for number in range(draw(st.integers(4, 14))):
        camera = draw(st.sampled_from("12"))
        track = draw(st.sampled_from(["", "", "a", "b", "c"]))
        time = draw(st.sampled_from([np.nan, 1.0, 2.0, 3.0, 4.0, 5.0]))
        checked = not track and np.isnan(time) and draw(st.booleans())
        person = draw(st.sampled_from(["ada", "bea", "cid"])) if checked else str(number)
        images.append(Image(camera, f"{camera}{track}" if track else "", time, person, checked))
    return images


@given(scenes(), st.integers(0, 9), st.sampled_from([0.5, 0.9]))
@settings(max_examples=25, deadline=None)
def test_no_forbidden_pair_is_in_a_cluster_and_every_tracklet_in_one(
    images: list[Image], seed: int, eps: float
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(len(images), 4)) * 0.3 + rng.normal(size=4)  # all alike: everything wants to be together
    known = found(images)
    chosen = ClusterSettings(eps=eps, k1=6, k2=2, min_samples=2)
    labels = pseudo_labels(rows, chosen, constraints=known).labels
    for i, j in forbidden(images):
        assert labels[i] != labels[j] or labels[i] == -1
    for track in tracks_of(images):
        assert len(set(labels[track].tolist())) == 1
    by_person: dict[str, set[int]] = {}
    for image, label in zip(images, labels.tolist(), strict=True):
        if image.checked:
            by_person.setdefault(image.id, set()).add(label)
    assert all(len(found) == 1 for found in by_person.values())
    clusters = np.unique(labels[labels >= 0])
    assert clusters.tolist() == list(range(len(clusters)))


def test_pools_are_means_of_unit_rows(rng: np.random.Generator) -> None:
    rows = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(9, 5)).astype(np.float32)))
    groups = np.array([0, 1, 0, 2, 1, 0, 3, 3, 0])
    known = Constraints(groups, np.empty((0, 2), np.int64), np.full(4, -1), np.zeros(9, np.bool_))
    for group, pooled in enumerate(known.pool(SplitRows(rows)).own):
        mean = rows[groups == group].double().mean(0)
        assert torch.allclose(pooled.double(), mean / mean.norm(), atol=1e-6)
    assert known.sizes().tolist() == [4, 2, 1, 2]
    scaled = known.scaled(ClusterSettings(k1=30, k2=6))
    assert (scaled.k1, scaled.k2) == (round(30 * 4 / 9), round(6 * 4 / 9))


def test_a_bridge_joins_the_more_similar_side_and_not_both() -> None:
    """Two people seen at once, and one image between them: it goes to the nearer one."""
    angles = np.array([0.0, 0.1, 0.9, 1.0, 0.45])
    rows = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    alone = np.arange(5)
    known = Constraints(alone, np.array([[0, 3]]), np.full(5, -1), np.zeros(5, np.bool_))
    labels = separate(FeatureTable(rows), np.zeros(5, dtype=np.int64), known, ClusterSettings(k1=5, min_samples=2))
    assert labels.tolist() == [0, 0, 1, 1, 0]
    kept = separate(FeatureTable(rows), np.array([0, 0, 1, 1, -1]), known, ClusterSettings(k1=5))
    assert kept.tolist() == [0, 0, 1, 1, -1]


def test_pieces_of_too_few_images_become_outliers() -> None:
    angles = np.array([0.0, 0.1, 0.2, 1.0])
    rows = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    known = Constraints(np.arange(4), np.array([[0, 3], [1, 3], [2, 3]]), np.full(4, -1), np.zeros(4, np.bool_))
    labels = separate(FeatureTable(rows), np.zeros(4, dtype=np.int64), known, ClusterSettings(k1=4, min_samples=2))
    assert labels.tolist() == [0, 0, 0, -1]


def test_nothing_known_changes_nothing(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(40, 6))
    plain = pseudo_labels(rows, SETTINGS).labels
    none = Constraints(np.arange(40), np.empty((0, 2), np.int64), np.full(40, -1), np.zeros(40, np.bool_))
    assert np.array_equal(pseudo_labels(rows, SETTINGS, constraints=none).labels, plain)
