"""What GPUs do, on GPUs that are none: where tensors lie, which calls are made, and what is waited for."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pretended_gpu
import pytest
import steps_in_ranks
import tiny
import torch
from pretended_gpu import Pretend, PretendedGpu, pretended
from torch import nn

from ccreid_cli.bench import measure
from ccreid_cli.bench.base import Bench, BenchSettings
from ccreid_cli.bench.run import run_bench
from ccreid_cli.cli.app import main
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DeviceError, Interrupted
from ccreid_cli.engine import extraction
from ccreid_cli.engine.extraction import extract_by_camera, extract_features
from ccreid_cli.engine.step import TrainStep
from ccreid_cli.images.opening import keep_on_device
from ccreid_cli.images.sharded_store import StepImages
from ccreid_cli.inference.embedder import open_embedder
from ccreid_cli.inference.loading import ModelRequest
from ccreid_cli.machine.device import resolve_precision
from ccreid_cli.machine.distributed import Group
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels
from ccreid_cli.pseudo_labels.sparse_rows import scratch_bytes

KINDS = ["cuda", "mps"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def waits_of_steps(gpu: PretendedGpu) -> list[str]:
    """Return where a training step waited for the GPU."""
    return [wait for wait in gpu.waits if f"{TrainStep.__call__.__name__}:" in wait]


def test_the_pretence_refuses_what_a_gpu_refuses() -> None:
    with pretended() as gpu:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        layer = nn.Linear(3, 2).to("cuda")
        layer(there).sum().backward()
        assert layer.weight.device.type == "cuda" and layer.weight.grad is not None
        assert layer.weight.grad.is_cuda and isinstance(layer(there), Pretend) and not here.is_cuda
        place = torch.tensor([1])
        mixtures = (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: layer(here),
            lambda: here[place.to("cuda")],
            lambda: there.__setitem__(place, here[:1]),
        )
        there[place], there[1:] = there[place], here[1:]
        for mixed in mixtures:
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert gpu.waits == ["to"] * 3  # the weights on their way there, and a place
        copy = there.cpu()
        copy += 1
        assert there.tolist() == [1, 1, 1] and not isinstance(copy, Pretend)
        assert [wait.split()[0] for wait in gpu.waits[3:]] == ["cpu", "tolist"]
    with pretended("mps"), pytest.raises(TypeError, match="float64"):
        torch.ones(3, device="mps").double()
    assert torch.ones(3).device.type == "cpu"


def test_training_on_a_gpu(kind: str, tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """The whole of it: labels, memory, steps, evaluation and saves; the same losses as on the CPU."""
    with pretended(kind) as gpu, tiny.watched() as watch:
        tiny.train(tiny_data, tmp_path, device="auto", precision="auto", print_freq=3)
    assert watch.losses == pytest.approx(undisturbed["losses"], abs=1e-4)
    found, expected = tiny.outcome(tmp_path), undisturbed
    assert found["result"]["last"]["mAP"] == pytest.approx(expected["result"]["last"]["mAP"], abs=0.02)
    for line, other in zip(found["metrics"], expected["metrics"], strict=True):
        assert line["num_clusters"] == other["num_clusters"] and line["num_outliers"] == other["num_outliers"]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["device"] == f"{kind}:0" or environment["device"] == kind
    assert environment["precision"] == ("bf16" if kind == "cuda" else "fp32")
    # The time of a stage is that of its work, not of asking for it.
    stages = [wait for wait in gpu.waits if wait.startswith("synchronize")]
    timed = ("extract", "memory", "train", "save", "evaluate")
    assert sum("_timed:" in wait for wait in stages) == tiny.EPOCHS * len(timed)
    assert sum("stage:" in wait for wait in stages) >= tiny.EPOCHS * len(("neighbors", "jaccard", "clustering"))
    assert torch.get_float32_matmul_precision() == "highest"  # the loss, the memory and distances: no TF32


RECIPES: list[dict[str, Any]] = [
    {},
    {"method": "camera-contrast", "camera_batch_norm": True, "weight_averaging": 0.98},
]


@pytest.mark.parametrize("free", [pretended_gpu.FREE_BYTES, 1 << 16])
@pytest.mark.parametrize("recipe", RECIPES, ids=["plain", "camera"])
def test_a_step_never_waits_for_the_gpu(
    recipe: dict[str, Any], free: int, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with the images on the GPU nor, where it has no room for them, in pinned memory."""
    monkeypatch.setattr(pretended_gpu, "FREE_BYTES", free)
    with pretended() as gpu:
        tiny.train(tiny_data, tmp_path, device="cuda", precision="auto", samples_per_bn=4, print_freq=50, **recipe)
    assert not waits_of_steps(gpu)
    waiting_loop = [wait for wait in gpu.waits if "_run_steps:" in wait]
    assert len(waiting_loop) <= 6 * tiny.EPOCHS  # what is sent and fetched once an epoch, and the loss shown at its end


def test_a_stopped_run_goes_on(
    kind: str, tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)

    def interrupt(number: int) -> None:
        if number == 2:
            tiny.signal.raise_signal(tiny.signal.SIGINT)

    with pretended(kind):
        with tiny.watched(interrupt) as watch, pytest.raises(Interrupted):
            tiny.train(tiny_data, tmp_path, device=kind, precision="fp32")
        torch.backends.cudnn.allow_tf32 = True  # as in a new process
        with tiny.watched() as rest:
            tiny.resume(tmp_path)
        assert torch.backends.cudnn.allow_tf32 is (kind != "cuda")
    assert watch.losses + rest.losses == pytest.approx(undisturbed["losses"], abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"deterministic": True, "dropout": 0.5},
        {"cluster": "infomap", "eps": 0.5},
        {"background_norm": True, "colour_jitter": 1.0},
        {"camera_batch_norm": True},
    ],
)
def test_other_ways_of_training(kind: str, changes: dict[str, Any], tiny_data: Path, tmp_path: Path) -> None:
    if "cluster" in changes:
        pytest.importorskip("infomap")
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with pretended(kind):
            found = tiny.train(tiny_data, tmp_path, device=kind, precision="fp32", epochs=1, **changes)
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
    assert 0 < found["last"]["mAP"] <= 1


def test_a_step_that_does_not_fit_is_split(
    kind: str, tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.limit_memory(monkeypatch, 8)
    with pretended(kind), tiny.watched() as watch:
        tiny.train(tiny_data, tmp_path, device=kind, precision="fp32")
    assert watch.losses == pytest.approx(undisturbed["losses"], abs=1e-4)


def test_images_make_room_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small GPU they may be what keeps the smallest part of a step from fitting."""
    options: dict[str, Any] = {"batch_size": 16, "samples_per_bn": 8}
    fixed = steps_in_ranks.Fixed(**options)
    fixed.step.micro_batches.count = 2
    expected = fixed.train()
    forward = ReidNet.forward
    with pretended() as gpu:
        reporter = tiny.Warnings()
        fixed = steps_in_ranks.Fixed(Group(device=gpu.device), **options, reporter=reporter, device=gpu.device)
        assert keep_on_device(fixed.store, gpu.device)

        def limited(model: ReidNet, images: torch.Tensor) -> torch.Tensor:
            if fixed.store._rows.is_cuda:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(model, images)

        monkeypatch.setattr(ReidNet, "forward", limited)
        found = fixed.train()
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert ["2 parts" in said or "they leave cuda:0" in said for said in reporter.said] == [True, True]


def test_extraction_halves_a_batch_that_does_not_fit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = steps_in_ranks.Fixed()
    expected = extract_features(fixed.model, fixed.store, device=torch.device("cpu")).own
    tiny.limit_memory(monkeypatch, 7)
    reporter = tiny.Warnings()
    with pretended(kind) as gpu:
        model = fixed.model.to(kind)
        found = extract_features(model, fixed.store, device=gpu.device, batch_size=24, reporter=reporter).own
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
        assert [said.split(" do not fit")[0] for said in reporter.said] == ["24 images", "12 images"]
        tiny.limit_memory(monkeypatch, 0)
        with pytest.raises(DeviceError, match="not even one image"):
            extract_features(model, fixed.store, device=gpu.device, batch_size=24)
        model.cpu()


def test_a_batch_that_is_not_full_is_filled_where_cudnn_times_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, sizes = steps_in_ranks.Fixed(), list[int]()
    expected = extract_features(fixed.model, fixed.store, device=torch.device("cpu")).own
    with pretended("cuda") as gpu:
        model = fixed.model.to("cuda")
        handle = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        for timed in (False, True):
            monkeypatch.setattr(torch.backends.cudnn, "benchmark", timed)
            found = extract_features(model, fixed.store, device=gpu.device, batch_size=24).own
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
        handle.remove()
        model.cpu()
    assert sizes == [24, 24, 12, 24, 24, 24]


def test_last_batches_of_cameras_are_filled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, sizes = steps_in_ranks.Fixed(), list[int]()
    cameras = np.arange(60) % 2 * np.where(np.arange(60) < 40, 1, 0)
    monkeypatch.setattr(extraction, "LEAST_IMAGES", 10)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    expected = extract_by_camera(fixed.model, fixed.store, cameras, device=torch.device("cpu")).own
    with pretended("cuda") as gpu:
        model = fixed.model.to("cuda")
        handle = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        found = extract_by_camera(model, fixed.store, cameras, device=gpu.device, batch_size=16).own
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
        handle.remove()
        model.cpu()
    assert sizes == [40, 20] + [16] * 5  # the statistics of 40 and 20 images, then 3 and 2 batches


def test_features_that_do_not_fit_stay_on_the_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, empty = steps_in_ranks.Fixed(), torch.empty
    expected = extract_features(fixed.model, fixed.store, device=torch.device("cpu")).own

    def limited(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        if device is not None and torch.device(device).type == kind and size == ((60, 16),):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        return empty(*size, device=device, **options)

    with pretended(kind) as gpu:
        model = fixed.model.to(kind)
        monkeypatch.setattr(torch, "empty", limited)
        found = extract_features(model, fixed.store, device=gpu.device).own
        model.cpu()
    assert not isinstance(found, Pretend)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_labels_that_do_not_fit_are_made_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    centres = torch.nn.functional.normalize(torch.randn(10, 16), dim=1).repeat_interleave(8, 0)
    rows = torch.nn.functional.normalize(centres + 0.05 * torch.randn(80, 16), dim=1)
    settings, reporter = ClusterSettings(k1=8, k2=3, eps=0.5), tiny.Warnings()
    expected = pseudo_labels(rows, settings)

    def limited(device: torch.device) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pretended() as gpu:
        monkeypatch.setattr(torch.cuda, "mem_get_info", limited)
        group = Group(device=gpu.device)
        found = pseudo_labels(rows.to("cuda"), settings, group=group, reporter=reporter)
        with pytest.raises(torch.OutOfMemoryError):  # nobody would hear of it
            pseudo_labels(rows.to("cuda"), settings, group=group)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.num_clusters == 10 and "the same on the CPU" in reporter.said[-1]


def test_memory_that_pytorch_keeps_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """After training little is free but what PyTorch keeps for the next tensors."""
    with pretended() as gpu:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 80 << 30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 78 << 30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 15 << 30)
        assert FeatureTable(torch.eye(3, device="cuda")).block_bytes == 8 << 30
        assert scratch_bytes(gpu.device) == 2 << 30


def test_images_of_other_processes_are_picked_without_a_wait() -> None:
    with pretended() as gpu:
        images = StepImages(np.array([2, 5, 7]), torch.arange(3, device="cuda").to(torch.uint8).view(3, 1, 1, 1))
        found = images.gather(np.array([7, 2]), gpu.device)
        assert not gpu.waits and found.flatten().tolist() == [2, 0]


@pytest.mark.parametrize("method", ["dbscan", "infomap"])
def test_labels_are_those_of_the_cpu(kind: str, method: str) -> None:
    """Float16 proposes on CUDA and pairs are gathered; some rows are so close that the proof fails for them."""
    if method == "infomap":
        pytest.importorskip("infomap")
    random = np.random.default_rng(0)
    features = np.repeat(random.normal(size=(60, 24)), 5, axis=0) + random.normal(size=(300, 24)) * 0.35
    features[40:180] = features[40] + random.normal(size=(140, 24)) * 1e-6
    rows = torch.from_numpy((features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32))
    settings = ClusterSettings(method=method, eps=0.5, k1=12, k2=4)
    expected = pseudo_labels(rows, settings)
    assert expected.num_clusters > 10
    with pretended(kind):
        found = pseudo_labels(rows.to(kind), settings, group=Group(device=torch.device(kind)))
    np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.fixture
def trained(kind: str, tiny_data: Path, tmp_path: Path) -> Iterator[Path]:
    """The logs of a run on a GPU, while the GPU is still there."""
    with pretended(kind):
        tiny.train(tiny_data, tmp_path / "logs", device=kind, precision="fp32", data_dir=tmp_path / "data", epochs=1)
        yield tmp_path / "logs"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command of this process; it has to end well."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["ccreid", *map(str, arguments)])
        patch.setenv("CCREID_DEBUG", "1")
        main()
    said = capsys.readouterr()
    assert ended.value.code in (None, 0), said.err
    return said.out


def test_commands_on_a_gpu(
    kind: str,
    trained: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Evaluation with re-ranking, feature files, search, clustering, a report: all on the GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    model, gallery = trained / "run", tmp_path / "gallery.npz"
    there = ("--device", kind, "--progress", "none")
    for rerank in ((), ("--rerank",)):
        result = json.loads(run(capsys, "eval", "--resume", model, *rerank, *there, "--json"))
        assert 0 < result["mAP"] <= 1
    run(capsys, "extract", tiny_data / "bounding_box_test", "--resume", model, "-o", gallery, *there)
    query = next((tiny_data / "query").iterdir())
    found = json.loads(run(capsys, "search", query, "--gallery", gallery, "--resume", model, *there, "--json"))
    assert len(found["queries"][0]["matches"]) == 10
    clusters = ("--k1", 4, "--k2", 2, "--eps", 0.7, "-o", tmp_path / "labels.npz")
    run(capsys, "cluster", gallery, *clusters, "--device", kind, "--progress", "none")
    torch.backends.cudnn.allow_tf32 = True  # as in a new process
    run(capsys, "report", model, *there)
    assert torch.backends.cudnn.allow_tf32 is (kind != "cuda")
    assert "0." in (model / "report.html").read_text()


def test_bench_on_a_gpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cpu", "cuda"):
        monkeypatch.setitem(measure.PRODUCT_SIDE, name, 64)
    monkeypatch.setattr(measure, "COPIED_BYTES", 1 << 16)
    config = TrainConfig(arch="tiny", height=32, width=16, precision="auto", device=kind, k1=8, k2=3, eps=0.5)
    settings = BenchSettings(config, 64, 16, dim=16, num_queries=30, num_gallery=90, budget=0.02)
    tf32, baseline_model = list[bool](), Bench.baseline_model

    def watched(bench: Bench) -> ReidNet:
        model = baseline_model(bench)
        model.register_forward_pre_hook(lambda *_: tf32.append(torch.backends.cudnn.allow_tf32))
        return model

    monkeypatch.setattr(Bench, "baseline_model", watched)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pretended(kind):
        stages = {row.stage: row for row in run_bench(["all"], settings)["results"]}
    assert list(stages) == ["store build", "store read", "extract", "labels", "step", "eval"]
    assert not [row.error for row in stages.values() if row.error]
    assert tf32 and set(tf32) == {kind != "cuda"}  # float32 is what the baseline says


@pytest.mark.parametrize("changes", [{}, {"shard_images": True, "deterministic": True}, {"cluster": "infomap"}])
def test_several_gpus(changes: dict[str, Any], tiny_data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """One process per GPU, as a launcher starts them; tensors of the CPU are nothing for NCCL."""
    settings = {"device": "cuda", "precision": "auto", "samples_per_bn": 8, **changes}
    flags = [f"--{name.replace('_', '-')}" for name, value in settings.items() if value is True]
    values = {name: value for name, value in settings.items() if value is not True}
    words = [*tiny.command(tiny_data, tmp_path, **values), *flags]
    for rank in tiny.start_ranks(tmp_path, words, 2, CCREID_TEST_PRETENDED="cuda"):
        code, said = rank.finish()
        assert code == 0, said
    found = tiny.outcome(tmp_path)["metrics"]
    if "cluster" not in changes:
        losses = [line["loss"] for line in found]
        assert losses == pytest.approx([line["loss"] for line in undisturbed["metrics"]], abs=1e-3)


def test_doctor_sees_the_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pretended():
        said = run(capsys, "doctor", "--json")
    assert "Pretended GPU" in said and "8/16 GiB free" in said


def test_only_what_is_on_the_gpu_counts(kind: str) -> None:
    """The order of what is made does not matter: the class of a tensor does."""
    with pretended(kind):
        for first, second in itertools.product((kind, "cpu"), repeat=2):
            pair = torch.ones(2, device=first), torch.ones(2).to(second)
            same = first == second
            if same:
                assert isinstance(pair[0] + pair[1], Pretend) == (first == kind)
            else:
                with pytest.raises(RuntimeError, match="same device"):
                    pair[0] * pair[1]


@pytest.mark.parametrize(("request_", "resolved", "allowed"), [("fp32", "fp32", False), ("auto", "bf16", True)])
def test_float32_is_never_tf32(request_: str, resolved: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not allowed)
    with pretended() as gpu:
        assert resolve_precision(request_, gpu.device) == resolved
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_every_process_prepares_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(Group):
        def on_main(self, action: Any) -> Any:
            return "fp32"  # as the first process settled it

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pretended() as gpu:
        second = Second(1, 2, gpu.device)
        embedder = open_embedder(ModelRequest(arch="tiny", weights="none"), logs_dir=tmp_path, group=second)
    assert embedder.precision == "fp32" and not torch.backends.cudnn.allow_tf32
