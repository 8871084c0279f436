"""Many processes compute what one computes, and end together. The processes talk over gloo, on the CPU."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import steps_in_ranks
import tiny
import torch

from ccreid_cli.core.errors import DataError, DeviceError, Interrupted, UsageError
from ccreid_cli.machine import distributed
from ccreid_cli.machine.distributed import process_group
from ccreid_cli.machine.shared_failures import lost_others

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def test_processes_that_share_a_gpu_are_told_so() -> None:
    said = "NCCL error in: NCCLUtils.cpp:77, invalid usage\nLast error:\nDuplicate GPU detected : rank 1 and rank 0"
    assert "use the same GPU" in str(lost_others(RuntimeError(said), 0, 2))
    assert "process 0 of 2 lost the others: NCCL error" in str(lost_others(RuntimeError(said.split("\nLast")[0]), 0, 2))


def test_exchanges_of_uneven_pieces(tmp_path: Path) -> None:
    first, second = tiny.call_in_ranks(steps_in_ranks.exchange, 2, tmp_path, [2, 3])
    expected = torch.tensor([0.0, 0.1, 1.0, 1.1, 1.2])[:, None].expand(5, 3)
    for found in (first, second):
        torch.testing.assert_close(found["rows"], expected)
        torch.testing.assert_close(found["known"], expected)
        assert found["array"].tolist() == [0, 0, 1, 1, 1] and found["array"].dtype == np.int32
        assert (found["maximum"], found["sum"].item()) == (7, 3)
        assert (found["main"], found["broadcast"]) == ({"from": 0}, "rank 0")
        assert found["bounds"] == [(0, 3), (3, 7)]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"batch_size": 16, "samples_per_bn": 8}, 1e-6),
        # Three chunks, one for the first process, two for the second: convolutions of other sizes round otherwise.
        ({"batch_size": 24, "samples_per_bn": 8}, 1e-5),
        ({"batch_size": 23, "samples_per_bn": 8, "dropout": 0.4}, 1e-6),
    ],
    ids=["even", "uneven", "random"],
)
def test_gradients_equal_those_of_one_process(options: dict[str, Any], tolerance: float, tmp_path: Path) -> None:
    fixed = steps_in_ranks.Fixed(**options)
    fixed.step.micro_batches.count = -(-options["batch_size"] // 8)  # one process, chunk by chunk
    alone = fixed.train()
    ranks = tiny.call_in_ranks(steps_in_ranks.train_in_group, 2, tmp_path, options)
    for kind in ("gradients", "state"):
        tiny.assert_same(ranks[0][kind], ranks[1][kind])
        for name, value in alone[kind].items():
            if value.is_floating_point():
                largest = max(1.0, float(value.abs().max()))
                torch.testing.assert_close(ranks[0][kind][name], value, rtol=0, atol=tolerance * largest)
    tiny.assert_same(ranks[0]["centroids"], ranks[1]["centroids"])
    torch.testing.assert_close(ranks[0]["centroids"], alone["centroids"], rtol=0, atol=1e-6)
    sums = [sum(parts) for parts in zip(*(rank["losses"] for rank in ranks), strict=True)]
    np.testing.assert_allclose(sums, alone["losses"], atol=1e-5)


def test_deterministic_steps_are_the_same_bits_for_any_number_of_processes(tmp_path: Path) -> None:
    options = {"batch_size": 31, "samples_per_bn": 8, "exact": True}
    alone = steps_in_ranks.Fixed(**options).train(steps=5)
    for rank in tiny.call_in_ranks(steps_in_ranks.train_in_group, 3, tmp_path, options, 5):
        for kind in ("gradients", "state", "centroids"):
            tiny.assert_same(rank[kind], alone[kind])


@pytest.mark.parametrize(
    "terms",
    [
        {"method": "camera-contrast", "camera_norm": True, "camera_batch_norm": True, "drop_single_camera": True},
        {"background_norm": True, "colour_jitter": 1.0, "shard_images": True, "weight_averaging": 0.5},
        {"camera_batch_norm": True, "shard_images": True},
    ],
)
def test_terms_are_the_same_bits_in_several_processes(terms: dict[str, Any], tiny_data: Path, tmp_path: Path) -> None:
    options = {**terms, "samples_per_bn": 4, "deterministic": True, "epochs": 1}
    tiny.train(tiny_data, tmp_path / "alone", **options)
    tiny.train_in_ranks(tiny_data, tmp_path / "together", 2, **options)
    outcomes = [tiny.outcome(tmp_path / place) for place in ("alone", "together")]
    for outcome in outcomes:  # its parts are added up in single precision, for showing only
        outcome["metrics"] = [{**line, "loss": round(line["loss"], 5)} for line in outcome["metrics"]]
    tiny.assert_same(*outcomes)


WORLDS = [2, pytest.param(4, marks=pytest.mark.long)]


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_of_several_processes(world: int, tiny_data: Path, tmp_path: Path) -> None:
    """20 steps with the batch-norm chunks of four processes, whatever their number, then another epoch."""
    options = {"samples_per_bn": 4, "iters": 20, "save_every": 20, "keep": 9}
    tiny.train(tiny_data, tmp_path / "alone", **options)
    tiny.train_in_ranks(tiny_data, tmp_path / "together", world, **options)
    for epoch in range(tiny.EPOCHS):
        labels = [tiny.step_labels(tmp_path / place, epoch, 20) for place in ("alone", "together")]
        assert torch.equal(*labels)
    losses = [tiny.step_losses(tmp_path / place, 0, 20) for place in ("alone", "together")]
    assert (losses[0] - losses[1]).abs().max() < 1e-5
    results = [tiny.outcome(tmp_path / place)["result"]["last"]["mAP"] for place in ("alone", "together")]
    assert results[0] == pytest.approx(results[1], abs=1e-3)


def test_several_processes_stop_resume_and_change_their_number(tiny_data: Path, tmp_path: Path) -> None:
    """One of two gets the signal; both save the same step. Two go on bit for bit, one within rounding."""
    tiny.train_in_ranks(tiny_data, tmp_path / "whole", 2, epochs=3)
    logs = tmp_path / "stopped"
    ranks = tiny.start_ranks(logs, tiny.command(tiny_data, logs, epochs=3, save_every=1), 2)
    ranks[0].wait_for(lambda: any((logs / "run" / "checkpoints").glob("epoch-0000-*.pt")))
    ranks[1].send_signal(signal.SIGTERM)
    found = [rank.finish() for rank in ranks]
    assert [code for code, _ in found] == [143, 143], found
    assert f"ccreid resume {logs / 'run'}" in found[0][1]
    for rank in tiny.start_ranks(logs, ["resume", str(logs / "run"), "--epochs", "2"], 2):
        assert rank.finish()[0] == 0
    tiny.resume(logs, epochs=3)
    one, other = (tiny.run_of(folder).read_metrics() for folder in (tmp_path / "whole", logs))
    for epoch in (0, 1):
        assert one[epoch]["loss"] == other[epoch]["loss"]
        assert one[epoch]["mAP"] == other[epoch]["mAP"]
    assert one[2]["loss"] == pytest.approx(other[2]["loss"], abs=1e-3)
    assert one[2]["num_clusters"] == other[2]["num_clusters"]


# Failing together.


def test_more_processes_than_chunks(tiny_data: Path, tmp_path: Path) -> None:
    for rank in tiny.start_ranks(tmp_path, tiny.command(tiny_data, tmp_path, samples_per_bn=16), 2):
        code, said = rank.finish()
        assert code == 2, said
        assert "2 processes cannot share a batch of 1 batch-norm chunk" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_one_is_the_error_of_all(failing: int, tiny_data: Path, tmp_path: Path) -> None:
    command = tiny.command(tiny_data, tmp_path)
    begin = time.monotonic()
    ranks = tiny.start_ranks(tmp_path, command, 2, CCREID_TEST_FAILING_RANK=str(failing))
    found = [rank.finish() for rank in ranks]
    assert [code for code, _ in found] == [3, 3], found
    assert sum("this rank has had enough" in said for _, said in found) >= 1
    assert time.monotonic() - begin < 30
    assert not (tmp_path / "run" / ".lock").exists()


def test_an_error_of_the_first_before_training(tmp_path: Path) -> None:
    ranks = tiny.start_ranks(tmp_path, tiny.command(tmp_path / "nowhere", tmp_path), 2)
    found = [rank.finish() for rank in ranks]
    assert [code for code, _ in found] == [3, 3], found


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others(killed: int, tiny_data: Path, tmp_path: Path) -> None:
    ranks = tiny.start_ranks(tmp_path, tiny.command(tiny_data, tmp_path, epochs=400, eval_step=400), 2)
    ranks[0].wait_for((tmp_path / "run" / "metrics.jsonl").exists)
    ranks[killed].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    code, said = ranks[1 - killed].finish()
    assert code == 5, said
    assert "lost the others" in said and "ccreid resume" in said
    assert time.monotonic() - begin < 20
    ranks[killed].finish()
    tiny.resume(tmp_path, epochs=len(tiny.run_of(tmp_path).read_metrics()) + 1)


def test_a_process_that_does_not_answer(tiny_data: Path, tmp_path: Path) -> None:
    waiting, _ = tiny.call_in_ranks(steps_in_ranks.train_with_timeout, 2, tmp_path, tiny_data, tmp_path, 2.0)
    name, message, seconds = waiting
    assert name == "DeviceError" and "lost the others" in message
    assert seconds < 20


# How processes come to be.


def test_torchrun(tiny_data: Path, tmp_path: Path) -> None:
    """PyTorch's own launcher, which decides who is who; and the command as users type it."""
    command = tiny.command(tiny_data, tmp_path, epochs=1, iters=1)
    code, said = tiny.start(tmp_path, command, CCREID_TEST_TORCHRUN="2").finish()
    assert code == 0, said
    assert "2 processes" in said and said.count("final evaluation") == 1
    assert tiny.run_of(tmp_path).read_environment()["processes"] == 2
    assert len(tiny.run_of(tmp_path).read_metrics()) == 1


def test_incomplete_launchers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"), process_group(CPU):
        pass


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> torch.distributed.HashStore:
    """Pretend to be the second of two processes, which talk to nobody; the store is theirs."""
    store = torch.distributed.HashStore()
    group = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 1, 2)]))
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    return store


def break_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:542] closed by peer\nmore")

    monkeypatch.setattr(torch.distributed, "all_reduce", fails)


@pytest.mark.usefixtures("second_of_two")
def test_a_broken_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    break_connections(monkeypatch)
    with pytest.raises(DeviceError, match="^process 1 of 2 lost the others: .*peer$"), process_group(CPU) as group:
        group.sum_(torch.ones(1))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.distributed.DistBackendError("watchdog"), DeviceError),
        (RuntimeError("Connection timed out"), RuntimeError),
        (torch.OutOfMemoryError("x"), torch.OutOfMemoryError),
    ],
)
@pytest.mark.usefixtures("second_of_two")
def test_errors_between_exchanges_are_told_apart_by_type(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, process_group(CPU):
        raise error
    assert type(caught.value) is kind


def test_who_loses_the_others_raises_the_error_of_the_first_to_fail(
    second_of_two: torch.distributed.HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="broken"), process_group(CPU):
        raise DataError("broken", "Mend it.")
    break_connections(monkeypatch)
    with pytest.raises(DataError, match="broken") as caught, process_group(CPU) as group:
        group.sum_(torch.ones(1))
    assert caught.value.shown_elsewhere and caught.value.hint == "Mend it."
    with pytest.raises(Interrupted) as stopped, process_group(CPU):
        raise Interrupted("saved.")
    assert stopped.value.shown_elsewhere


@pytest.mark.parametrize(("backend", "closed"), [("nccl", False), ("gloo", True)])
@pytest.mark.usefixtures("second_of_two")
def test_a_failing_rank_does_not_wait_for_the_others(
    backend: str, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL closes its connections with all ranks or not at all; all leave together when nothing failed."""
    calls: list[str] = []
    for name, answer in {"is_initialized": True, "get_backend": backend}.items():
        monkeypatch.setattr(torch.distributed, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("destroy"))
    with pytest.raises(DataError, match="broken"), process_group(CPU):
        raise DataError("broken")
    assert bool(calls) == closed
    calls.clear()
    with process_group(CPU):
        pass
    assert calls == ["destroy"]


@pytest.mark.long
@pytest.mark.shared
@pytest.mark.parametrize("world", [2, 4])
def test_processes_on_real_images(world: int, market_mini: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """4 × 16 images: ``--samples-per-bn 16`` in one process of 64 equals four processes of 16 each."""
    settings, alone = market_mini
    logs = tmp_path / "together"
    for rank in tiny.start_ranks(
        logs, ["train", *tiny.options({**settings, "logs_dir": logs}), "--deterministic"], world
    ):
        code, said = rank.finish(seconds=1200)
        assert code == 0, said
    steps = settings["iters"]
    losses = [tiny.step_losses(place, 0, steps) for place in (alone, logs)]
    assert (losses[0] - losses[1]).abs().max() < 1e-5
    assert torch.equal(tiny.step_labels(alone, 0, steps), tiny.step_labels(logs, 0, steps))
    results = [tiny.outcome(place)["result"]["last"]["mAP"] for place in (alone, logs)]
    assert results[0] == pytest.approx(results[1], abs=0.02)
