"""Work and memory must grow with the images as promised: counts of operations and bytes, never seconds.

Each test measures a stage at a size and at four times the size. A stage that is linear takes four times as much, one
that has become quadratic sixteen times; the line is drawn at five.
"""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import pairs_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ccreid_cli.bench.synthetic import made_cameras, made_features, write_images
from ccreid_cli.engine import score_blocks
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.images import decoding
from ccreid_cli.images.store import open_store
from ccreid_cli.method.memory import ClusterMemory
from ccreid_cli.method.sampling import sample_epoch
from ccreid_cli.pseudo_labels import neighbors, sparse_rows
from ccreid_cli.pseudo_labels.clustering import ClusterSettings, dbscan
from ccreid_cli.pseudo_labels.jaccard import graph_from_pairs, near_pairs, reciprocal_weights
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels

SMALL, LARGE = 1000, 4000
LINEAR = 5.0
"""Four times the images may cost at most this many times as much."""
DIM = 32
SETTINGS = ClusterSettings(eps=0.5, k1=20)


class Elements(TorchDispatchMode):
    """Counts the elements of everything new that torch's operations return, in all and in the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_new = not any(one.alias_info for one in func._schema.returns)  # neither a view nor done in place
        for one in result if isinstance(result, list | tuple) else [result]:
            if is_new and isinstance(one, torch.Tensor) and one.layout == torch.strided:
                self.total += one.numel()
                self.largest = max(self.largest, one.numel())
        return result


@contextmanager
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in blocks that are small against the sizes here, as the usual ones are against real sizes."""
    with monkeypatch.context() as patch:
        patch.setattr(neighbors, "_CPU_BLOCK_BYTES", 1 << 18)
        patch.setattr(sparse_rows, "scratch_bytes", lambda device: 1 << 18)
        patch.setattr(score_blocks, "_SCORES_PER_BLOCK", 100_000)
        yield


def growth(cost: Callable[[int], float]) -> float:
    return cost(LARGE) / cost(SMALL)


@pytest.fixture(scope="module")
def found() -> dict[int, Any]:
    """Features, their neighbours and the graph of near pairs, at both sizes."""
    sizes = {}
    for size in (SMALL, LARGE):
        table = FeatureTable(made_features(size, DIM)[0])
        similarities, indices = table.nearest(SETTINGS.k1, 0, size)
        pairs = near_pairs(table, *reciprocal_weights(table, similarities, indices, SETTINGS.k1, 6), SETTINGS.eps)
        sizes[size] = (table, similarities, indices, graph_from_pairs(pairs, size))
    return sizes


def test_the_neighbour_search_multiplies_all_pairs_once() -> None:
    for size in (SMALL, LARGE):
        table = FeatureTable(made_features(size, DIM)[0], search_dtype=torch.float32)
        with FlopCounterMode(display=False) as counter:
            table.nearest(SETTINGS.k1, 0, size)
        padded = -(-(DIM + 2) // 32) * 32
        all_pairs = 2 * size**2 * padded
        assert all_pairs <= counter.get_total_flops() <= 1.1 * all_pairs + 1e6


def test_the_neighbour_search_holds_a_block_of_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest(size: int) -> float:
        table = FeatureTable(made_features(size, DIM)[0], search_dtype=torch.float32)
        with Elements() as counted:
            table.nearest(SETTINGS.k1, 0, size)
        return counted.largest

    with small_blocks(monkeypatch):
        assert growth(largest) < LINEAR
        assert largest(LARGE) < LARGE**2 / 10


def test_jaccard_distances_take_linear_work(found: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def elements(size: int) -> Elements:
        table, similarities, indices, _ = found[size]
        with Elements() as counted:
            near_pairs(table, *reciprocal_weights(table, similarities, indices, SETTINGS.k1, 6), SETTINGS.eps)
        return counted

    with small_blocks(monkeypatch):
        small, large = elements(SMALL), elements(LARGE)
    assert large.total / small.total < LINEAR
    assert large.largest < LARGE**2 / 10


def test_the_graph_and_its_clustering_are_linear(found: dict[int, Any]) -> None:
    assert growth(lambda size: found[size][3].nnz) < LINEAR
    assert found[LARGE][3].nnz < LARGE * SETTINGS.k1

    def peak(size: int) -> float:
        return peak_bytes(lambda: dbscan(pairs_of(found[size][3]), size, SETTINGS.eps))

    assert growth(peak) < LINEAR


def peak_bytes(action: Callable[[], Any]) -> float:
    """Memory of NumPy and Python at the worst moment of an action (torch's own is not seen)."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        action()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_pseudo_labels_hold_linear_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {size: made_features(size, DIM)[0] for size in (SMALL, LARGE)}
    with small_blocks(monkeypatch):
        assert growth(lambda size: peak_bytes(lambda: pseudo_labels(features[size], SETTINGS))) < LINEAR


def test_evaluation_never_holds_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_blocks, "_SCORES_PER_BLOCK", 100_000)

    def largest(size: int) -> float:
        features, ids = made_features(size, DIM)
        numbers, cams, half = ids.numpy(), made_cameras(size), size // 2
        query, gallery = (slice(0, half), slice(half, size))
        with Elements() as counted:
            evaluate_features(
                *(features[query], numbers[query], cams[query]), *(features[gallery], numbers[gallery], cams[gallery])
            )
        return counted.largest

    assert growth(largest) < LINEAR
    assert largest(LARGE) < (LARGE // 2) ** 2 / 10


def test_evaluation_looks_at_each_pair_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    blocks = score_blocks.similarity_blocks

    def counting(*arguments: Any) -> Iterator[Any]:
        for start, scores in blocks(*arguments):
            looked.append(scores.numel())
            yield start, scores

    monkeypatch.setattr("ccreid_cli.engine.retrieval_scores.similarity_blocks", counting)
    features, ids = made_features(800, DIM)
    numbers, cams = ids.numpy(), made_cameras(800)
    evaluate_features(features[:200], numbers[:200], cams[:200], features[200:], numbers[200:], cams[200:])
    assert sum(looked) == 200 * 600


def test_every_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: Counter[str] = Counter()
    decode = decoding.decode

    def counting(path: str, *arguments: Any) -> Any:
        decoded[path] += 1
        return decode(path, *arguments)

    monkeypatch.setattr(decoding, "decode", counting)
    (tmp_path / "images").mkdir()
    paths = write_images(tmp_path / "images", 40)
    for _ in range(3):  # three epochs, each of a new process
        store = open_store(paths, 32, 16, cache_folder=tmp_path / "cache", workers=1)
        for rows in torch.split(torch.randperm(40), 8):
            store.gather(rows, torch.device("cpu"))
    assert len(decoded) == 40 and set(decoded.values()) == {1}


def test_reading_the_store_copies_only_the_batch(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 64)
    open_store(paths, 64, 32, cache_folder=tmp_path / "cache", workers=1)
    one_image = 64 * 32 * 3
    with Elements() as counted:
        store = open_store(paths, 64, 32, cache_folder=tmp_path / "cache", workers=1)
        store.gather(torch.arange(8), torch.device("cpu"))
    assert counted.largest == 8 * one_image


def test_an_epoch_of_batches_takes_linear_memory() -> None:
    def peak(size: int) -> float:
        labels, cams = np.arange(size) // 17, made_cameras(size)
        generator = np.random.default_rng(0)
        return peak_bytes(
            lambda: sample_epoch(
                labels, cams, batch_size=64, num_instances=16, num_batches=size // 64, generator=generator
            )
        )

    assert growth(peak) < LINEAR


def test_the_memory_update_takes_as_many_rounds_as_the_fullest_cluster() -> None:
    class Operations(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return func(*args, **(kwargs or {}))

    def operations(batch: int) -> int:
        memory = ClusterMemory(torch.nn.functional.normalize(torch.randn(64, 8)))
        with Operations() as counted:
            memory.update(torch.randn(batch, 8), torch.arange(batch) // 16)
        return counted.count

    assert operations(512) == operations(64)  # 16 images of each cluster, of 32 or of 4 clusters
