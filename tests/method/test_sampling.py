"""sample_epoch: each rule of the sampler, and its statistics against a slow loop."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.method.sampling import batches_are_short, sample_epoch, samples_per_pass

Array = NDArray[np.int64]


def slow_pass(labels: Array, cameras: Array, num_instances: int, use_cameras: bool, rng: np.random.Generator) -> Array:
    """One pass over the clusters, one cluster and one image at a time."""
    result: list[int] = []
    for cluster in rng.permutation(np.unique(labels[labels >= 0])):
        members = np.flatnonzero(labels == cluster)
        anchor = rng.choice(members)
        result.append(int(anchor))
        candidates = members[cameras[members] != cameras[anchor]] if use_cameras else members[:0]
        if len(candidates) == 0:
            candidates = members[members != anchor]
        if len(candidates) > 0:
            few = len(candidates) < num_instances
            result += rng.choice(candidates, num_instances - 1, replace=few).tolist()
    return np.array(result, dtype=np.int64)


def groups_of(batches: Array, labels: Array, num_instances: int) -> list[Array]:
    """Cut a whole epoch of complete passes back into one group of images per cluster visit."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    groups, flat, at = [], batches.reshape(-1), 0
    while at < len(flat):
        length = num_instances if counts[inverse[flat[at]]] > 1 else 1
        groups.append(flat[at : at + length])
        at += length
    return groups


def one_pass(labels: Array, cameras: Array, num_instances: int, seed: int, use_cameras: bool = True) -> Array:
    """Exactly one pass, as one batch of its whole length."""
    return sample_epoch(
        labels,
        cameras,
        batch_size=samples_per_pass(labels, num_instances),
        num_instances=num_instances,
        num_batches=1,
        use_cameras=use_cameras,
        generator=np.random.default_rng(seed),
    )[0]


@st.composite
def clusterings(draw: st.DrawFn) -> tuple[Array, Array]:
    size = draw(st.integers(1, 60))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, draw(st.integers(1, 12)), size)
    labels[rng.integers(size)] = 0
    return labels, rng.integers(-1, draw(st.integers(0, 4)), size)


@settings(max_examples=150, deadline=None)
@given(clusterings(), st.integers(1, 6), st.booleans(), st.integers(0, 100))
def test_every_group_of_a_pass_keeps_the_rules(
    clustering: tuple[Array, Array], num_instances: int, use_cameras: bool, seed: int
) -> None:
    labels, cameras = clustering
    groups = groups_of(one_pass(labels, cameras, num_instances, seed, use_cameras), labels, num_instances)
    visited = sorted(labels[group[0]] for group in groups)
    assert visited == np.unique(labels[labels >= 0]).tolist()
    for group in groups:
        anchor, others = group[0], group[1:]
        rest = np.setdiff1d(np.flatnonzero(labels == labels[anchor]), [anchor])
        elsewhere = rest[cameras[rest] != cameras[anchor]]
        candidates = elsewhere if use_cameras and len(elsewhere) else rest
        assert len(others) == (num_instances - 1 if len(rest) else 0)
        assert np.isin(others, candidates).all()
        if len(candidates) >= num_instances:
            assert len(set(others.tolist())) == len(others)


@settings(max_examples=100, deadline=None)
@given(clusterings(), st.integers(1, 6), st.integers(1, 40), st.integers(1, 9), st.integers(0, 100))
def test_an_epoch_has_the_asked_shape_however_few_the_clusters(
    clustering: tuple[Array, Array], num_instances: int, batch_size: int, num_batches: int, seed: int
) -> None:
    labels, cameras = clustering
    batches = sample_epoch(
        labels,
        cameras,
        batch_size=batch_size,
        num_instances=num_instances,
        num_batches=num_batches,
        generator=np.random.default_rng(seed),
    )
    assert batches.shape == (num_batches, batch_size)
    assert batches.dtype == np.int64
    assert (labels[batches] >= 0).all()


def test_passes_restart_with_a_new_order_and_drop_their_incomplete_batch() -> None:
    labels, cameras = np.repeat(np.arange(5), 8), np.tile(np.arange(4), 10)
    batches = sample_epoch(
        labels, cameras, batch_size=8, num_instances=4, num_batches=7, generator=np.random.default_rng(0)
    )
    visits = labels[batches].reshape(7, 2, 4)
    assert (visits == visits[:, :, :1]).all()
    per_pass = visits[:6, :, 0].reshape(3, 4)
    assert all(len(set(order.tolist())) == 4 for order in per_pass), "a pass visits no cluster twice"
    assert len({tuple(order.tolist()) for order in per_pass}) == 3, "every pass has its own order"


def test_passes_are_joined_when_one_does_not_fill_a_batch() -> None:
    labels, cameras = np.array([0, 0, 0, 1, 1, 1, -1]), np.zeros(7, dtype=np.int64)
    batches = sample_epoch(
        labels, cameras, batch_size=10, num_instances=2, num_batches=4, generator=np.random.default_rng(0)
    )
    visits = labels[batches].reshape(-1, 2)
    assert (visits[:, 0] == visits[:, 1]).all()
    assert all(set(pair) == {0, 1} for pair in visits[:, 0].reshape(-1, 2).tolist())
    assert batches_are_short(labels, 10, 2)
    assert not batches_are_short(labels, 4, 2)


def test_one_image_alone_still_fills_every_batch() -> None:
    labels = np.array([-1, 0, -1])
    batches = sample_epoch(
        labels, labels, batch_size=16, num_instances=4, num_batches=3, generator=np.random.default_rng(0)
    )
    assert (batches == 1).all()
    assert samples_per_pass(labels, 4) == 1


@pytest.mark.parametrize("use_cameras", [True, False])
@pytest.mark.parametrize("num_instances", [2, 4])
def test_frequencies_equal_those_of_the_slow_loop(use_cameras: bool, num_instances: int) -> None:
    # Clusters: two cameras with few candidates, many candidates, one camera only, a single image; and an outlier.
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, -1])
    cameras = np.array([0, 0, 1, 0, 1, 1, 2, 2, 2, 1, 5, 5, 5, 5, 5, 0, 0])
    num_passes = 3000
    length = samples_per_pass(labels, num_instances)
    fast = sample_epoch(
        labels,
        cameras,
        batch_size=length,
        num_instances=num_instances,
        num_batches=num_passes,
        use_cameras=use_cameras,
        generator=np.random.default_rng(1),
    )
    rng = np.random.default_rng(2)
    slow = np.stack([slow_pass(labels, cameras, num_instances, use_cameras, rng) for _ in range(num_passes)])

    def frequencies(passes: Array) -> dict[tuple[int, int, int], float]:
        """How often each image is the anchor (place 0), or stands in a place beside a given anchor."""
        counts: Counter[tuple[int, int, int]] = Counter()
        for group in groups_of(passes, labels, num_instances):
            counts[(int(group[0]), -1, 0)] += 1
            counts.update((int(group[0]), int(image), place) for place, image in enumerate(group[1:].tolist(), 1))
        return defaultdict(float, {key: count / num_passes for key, count in counts.items()})

    found, expected = frequencies(fast), frequencies(slow)
    assert found.keys() == expected.keys()
    # Each frequency is a mean of 3,000 draws: five standard deviations of a difference of two such means.
    assert all(abs(found[key] - expected[key]) < 5 * (expected[key] / num_passes * 2) ** 0.5 + 1e-3 for key in expected)


def test_clusters_come_in_every_order() -> None:
    labels = np.repeat(np.arange(3), 2)
    batches = sample_epoch(
        labels, labels, batch_size=3, num_instances=1, num_batches=600, generator=np.random.default_rng(0)
    )
    orders = Counter(tuple(order) for order in labels[batches].tolist())
    assert len(orders) == 6
    assert min(orders.values()) > 60


def test_the_same_generator_state_gives_the_same_batches() -> None:
    labels = np.arange(100) % 9 - 1
    cameras = np.arange(100) % 4

    def draw(seed: int) -> Array:
        return sample_epoch(
            labels, cameras, batch_size=16, num_instances=4, num_batches=20, generator=np.random.default_rng(seed)
        )

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


def test_label_numbers_need_not_be_dense() -> None:
    labels = np.array([7, 7, 40, 40])
    assert sorted(labels[one_pass(labels, np.zeros(4, dtype=np.int64), 2, 0)].tolist()) == [7, 7, 40, 40]


def test_no_cluster_is_an_error_with_advice_on_eps() -> None:
    with pytest.raises(DataError, match="none of 5 images") as caught:
        sample_epoch(
            np.full(5, -1),
            np.zeros(5, dtype=np.int64),
            batch_size=4,
            num_instances=2,
            num_batches=1,
            generator=np.random.default_rng(0),
        )
    assert caught.value.hint is not None
    assert "--eps" in caught.value.hint


def test_impossible_sizes_are_refused() -> None:
    labels = np.zeros(4, dtype=np.int64)
    for cameras, num_batches in ((labels[:3], 1), (labels, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            sample_epoch(
                labels,
                cameras,
                batch_size=2,
                num_instances=2,
                num_batches=num_batches,
                generator=np.random.default_rng(0),
            )
