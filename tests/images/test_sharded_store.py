"""Images shared out over processes: the same batches, losses, labels and scores as with all images in every process."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shards_in_ranks
import steps_in_ranks
import tiny
import torch

from ccreid_cli.bench.plan import Workload, bytes_per_step
from ccreid_cli.core.errors import DataError
from ccreid_cli.images.sharded_store import ComingImages, ShardedStore
from ccreid_cli.images.source import ImageFiles
from ccreid_cli.images.store import ImageStore, open_store
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.ranks import local_world, spans_machines
from ccreid_cli.models.reid_net import ReidNet

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SEEDS = range(60)


@pytest.mark.parametrize("world", [2, 3])
def test_every_process_gets_its_share_of_a_batch(world: int, tmp_path: Path) -> None:
    """Against plain indexing: any number of images, batches with repeats, shares from nothing to everything."""
    ranks = tiny.call_in_ranks(shards_in_ranks.exchange_batches, world, tmp_path, SEEDS)
    for number, seed in enumerate(SEEDS):
        count, indices, sizes = shards_in_ranks.batch_of(seed, world)
        whole = ImageStore(shards_in_ranks.images_of(count))
        for share, rank in zip(np.split(indices, np.cumsum(sizes)[:-1]), ranks, strict=True):
            found, received = rank[number]
            expected = whole.gather(share, CPU)
            assert torch.equal(found, expected) and found.stride() == expected.stride()
            assert received.tolist() == sorted(set(share.tolist()))  # each once


def test_alone_everything_is_here() -> None:
    images = shards_in_ranks.images_of(9)
    store, whole = steps_in_ranks.share_of(images, Group()), ImageStore(images)
    indices = np.array([8, 0, 0, 3])
    assert len(store) == 9
    assert torch.equal(store.exchange(indices, [4]).gather(indices[1:], CPU), whole.gather(indices[1:], CPU))
    assert torch.equal(store.gather(torch.from_numpy(indices), CPU), whole.gather(indices, CPU))


def test_rows_of_others_are_refused(tmp_path: Path) -> None:
    for said in tiny.call_in_ranks(shards_in_ranks.refused_rows, 2, tmp_path):
        assert len(said) == 4
        assert said[1] == "rows 1 to 5 are not all within 0 to 4" and "rows -1 to 2" in said[2]


def test_the_plan_counts_what_moves() -> None:
    """Nine images a process, three from each: the plan's bytes are those of what the others hold."""
    world, count = 3, 81
    indices = np.concatenate([np.arange(rank * 3, count, 9) for rank in range(world)])
    height, width = shards_in_ranks.images_of(1).shape[1:3]
    work = Workload(count, world, batch_size=len(indices), height=height, width=width)
    for rank in range(world):
        start, stop = Group(rank, world).bounds(count)
        share = indices[rank * 9 : rank * 9 + 9]
        foreign = ((share < start) | (share >= stop)).sum()
        assert foreign * height * width * 3 == bytes_per_step(work)["images"]


def test_images_that_are_not_kept(tiny_data: Path) -> None:
    paths = sorted((tiny_data / "query").iterdir())
    files, store = ImageFiles(paths, 32, 16, workers=2), open_store(paths, 32, 16, cache_folder=None)
    indices = np.array([3, 0, 3, 7])
    assert len(files) == 8 and not files.to_device(CPU, 1 << 30)
    assert torch.equal(files.gather(torch.from_numpy(indices), CPU), store.gather(indices, CPU))
    with pytest.raises(DataError, match=r"gone\.jpg"):
        ImageFiles([tiny_data / "gone.jpg"], 32, 16, workers=2).gather(np.array([0]), CPU)


# Opening --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "count"), [(2, 7), (3, 2)], ids=["uneven", "more processes than images"])
def test_each_process_holds_its_share_only(world: int, count: int, tiny_data: Path, tmp_path: Path) -> None:
    paths = sorted((tiny_data / "query").iterdir())[:count]
    whole = tiny.call_in_ranks(shards_in_ranks.open_shares, world, tmp_path / "whole", paths, None, False)
    cache = tmp_path / "cache"
    for again in range(2):  # the second time from the cache files
        ranks = tiny.call_in_ranks(shards_in_ranks.open_shares, world, tmp_path / str(again), paths, cache, True)
        for rank, found in enumerate(ranks):
            start, stop = Group(rank, world).bounds(count)
            assert found["held"] == stop - start and found["bytes"] == (stop - start) * 32 * 16 * 3
            assert found["count"] == count and torch.equal(found["read"], whole[rank]["read"])
        files = sorted(file.stat().st_size for file in cache.glob("*.bin"))
        assert files == sorted(found["bytes"] for found in ranks if found["bytes"])


def test_a_broken_image_of_one_is_the_error_of_all(tiny_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "market")
    broken = sorted((data / "bounding_box_train").iterdir())[-1]  # the last process's
    broken.write_bytes(b"no image")
    begin = time.monotonic()
    ranks = tiny.start_ranks(tmp_path, [*tiny.command(data, tmp_path), "--shard-images"], 2)
    found = [rank.finish() for rank in ranks]
    assert [code for code, _ in found] == [3, 3], found
    assert any(broken.name in said and "1 of 24 images cannot be read" in said for _, said in found), found
    assert time.monotonic() - begin < 30
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"WORLD_SIZE": "4"}, False),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, False),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, True),
    ],
)
def test_several_machines(environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert spans_machines() is expected
    assert local_world() == int(environment.get("LOCAL_WORLD_SIZE", environment.get("WORLD_SIZE", 1)))


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "options"),
    [(2, {}), (3, {"batch_size": 31, "samples_per_bn": 8, "exact": True}), (2, {"batch_size": 23, "dropout": 0.4})],
    ids=["two", "three, exact", "random layers"],
)
def test_steps_are_the_same_bits(world: int, options: dict[str, Any], tmp_path: Path) -> None:
    expected, found = (
        tiny.call_in_ranks(steps_in_ranks.train_in_group, world, tmp_path / kind, {**options, "sharded": sharded}, 3)
        for kind, sharded in (("whole", False), ("sharded", True))
    )
    tiny.assert_same(found, expected)


def test_the_images_of_the_next_step_travel_during_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch once, waited for by its own step only; what was announced and does not come is exchanged anew."""
    fixed = steps_in_ranks.Fixed(sharded=True)
    done: list[Any] = []
    begin, forward = ShardedStore.begin_exchange, ReidNet.forward

    def noted_begin(store: ShardedStore, indices: Any, sizes: Any) -> ComingImages:
        done.append(("begin", indices[0]))
        coming = begin(store, indices, sizes)
        wait = coming.wait
        monkeypatch.setattr(coming, "wait", lambda: done.append(("wait", indices[0])) or wait())
        return coming

    def noted_forward(model: ReidNet, images: torch.Tensor) -> torch.Tensor:
        done.append("compute")
        return forward(model, images)

    monkeypatch.setattr(ShardedStore, "begin_exchange", noted_begin)
    monkeypatch.setattr(ReidNet, "forward", noted_forward)
    one, two, three = (fixed.batch(number) for number in (1, 2, 3))
    a, b, c = (batch.indices[0] for batch in (one, two, three))
    fixed.step(one, two.indices)
    fixed.step(two, one.indices)
    fixed.step(three, None)
    first = [("begin", a), ("wait", a), ("begin", b), "compute"]
    second = [("wait", b), ("begin", a), "compute"]
    assert done == [*first, *second, ("begin", c), ("wait", c), "compute"]


def test_one_process_may_run_short_of_memory(tmp_path: Path) -> None:
    """It computes its share in parts; images are exchanged once a step all the same, so nobody waits for ever."""
    options = {"batch_size": 32, "samples_per_bn": 8}
    expected, found = (
        tiny.call_in_ranks(
            shards_in_ranks.train_short_of_memory, 2, tmp_path / kind, {**options, "sharded": sharded}, 3
        )
        for kind, sharded in (("whole", False), ("sharded", True))
    )
    assert [rank["parts"] for rank in found] == [1, 2]
    tiny.assert_same(found, expected)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_run_is_the_same_bits(world: int, tiny_data: Path, tmp_path: Path) -> None:
    """Losses, labels, scores and weights of two epochs; and nobody, not even for the report, decodes all images."""
    settings: dict[str, Any] = {"save_every": tiny.STEPS, "keep": 9, "batch_size": 24}
    runs = {"whole": ["--report", "--no-shard-images"], "sharded": ["--report", "--shard-images"]}
    for kind, flags in runs.items():
        logs = tmp_path / kind
        for rank in tiny.start_ranks(logs, [*tiny.command(tiny_data, logs, **settings), *flags], world):
            code, said = rank.finish()
            assert code == 0, said
    whole, sharded = (tiny.outcome(tmp_path / kind) for kind in runs)
    tiny.assert_same(sharded, whole)
    for epoch in range(tiny.EPOCHS):
        for read in (tiny.step_losses, tiny.step_labels):
            assert torch.equal(*(read(tmp_path / kind, epoch, tiny.STEPS) for kind in runs))
    caches = [sorted(file.stat().st_size for file in (tmp_path / kind / "data").rglob("*.bin")) for kind in runs]
    assert caches[0] == [24 * 1536, 48 * 1536]  # test set and training set
    assert caches[1] == [24 // world * 1536] * world + [48 // world * 1536] * world
    pictures = [
        re.findall(r"data:image/\w+;base64,[^\"]+", (tmp_path / kind / "run" / "report.html").read_text())
        for kind in runs
    ]
    assert len(pictures[0]) > 50 and pictures[0] == pictures[1]


def test_sharding_may_change_on_resume(tiny_data: Path, tmp_path: Path) -> None:
    """Begun on one machine with all images in one file, gone on with on two, which hold a half each."""
    tiny.train_in_ranks(tiny_data, tmp_path / "whole", 2, epochs=2)
    logs = tmp_path / "other"
    tiny.train_in_ranks(tiny_data, logs, 2, epochs=1)
    assert tiny.run_of(logs).read_config().shard_images is None
    resume = ["resume", str(logs / "run"), "--epochs", "2"]
    for rank in tiny.start_ranks(logs, resume, 2, LOCAL_WORLD_SIZE="1", LOCAL_RANK="0"):
        code, said = rank.finish()
        assert code == 0, said
    assert len(list((logs / "data").rglob("*.bin"))) == 2 + 4
    tiny.assert_same(tiny.outcome(logs), tiny.outcome(tmp_path / "whole"))
