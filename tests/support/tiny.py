"""A training run of a moment: a drawn dataset of strongly coloured identities and a network of two convolutions."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from pretended_gpu import pretended
from torch import Tensor, nn
from torch.distributed import run

from ccreid_cli.cli.app import main
from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.engine import checkpoint
from ccreid_cli.engine import start as training
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.engine.settings import ResolvedConfig, resolve_config
from ccreid_cli.engine.step import TrainStep
from ccreid_cli.inference import identify
from ccreid_cli.models.backbones import Backbone
from ccreid_cli.models.registry import BACKBONES, BackboneRow
from ccreid_cli.models.reid_net import ReidNet

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 50, 220), (220, 210, 30), (200, 40, 200), (30, 200, 210)]
STEPS = 4
EPOCHS = 2


class TinyNet(Backbone):
    """Two convolutions with batch norm, 16 channels."""

    def __init__(self) -> None:
        super().__init__(16)
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.bn1(self.conv1(images)))
        result: Tensor = torch.relu(self.bn2(self.conv2(maps)))
        return result


NAME = "tiny"
if NAME not in BACKBONES:  # first: a checkpoint of it is not compared with each of the others, which takes a second
    _others = dict(BACKBONES)
    BACKBONES.clear()
    BACKBONES |= {NAME: BackboneRow("two convolutions", lambda: TinyNet), **_others}


def make_dataset(folder: Path) -> Path:
    """Draw 48 training, 8 query and 16 gallery images of 32×16 in the layout of Market-1501."""
    random = np.random.default_rng(7)
    for split, identities, per_camera in (
        ("bounding_box_train", range(1, 7), 4),
        ("query", range(3, 7), 1),
        ("bounding_box_test", range(3, 7), 2),
    ):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for identity in identities:
            for camera in (1, 2):
                for number in range(per_camera):
                    name = f"{identity:04d}_c{camera}s1_{len(split) * 1000 + number:06d}_00.jpg"
                    _draw(COLOURS[identity - 1], camera, 0 if "train" in split else 70, random).save(
                        folder / split / name, quality=95
                    )
    return folder


def _draw(colour: tuple[int, int, int], camera: int, blur: float, random: np.random.Generator) -> Image.Image:
    """Draw an identity; `blur` shifts its colour by chance."""
    pixels = np.empty((32, 16, 3))
    pixels[:] = np.array(colour) * (1.0 if camera == 1 else 0.85)
    pixels[20:] *= 0.5
    pixels += random.normal(0, 12, pixels.shape) + blur * random.normal(0, 1, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def flags(data: Path, logs: Path, **changes: Any) -> dict[str, Any]:
    """Return the settings of a tiny run called ``run``."""
    return {
        "dataset": str(data),
        "data_dir": logs / "data",
        "logs_dir": logs,
        "name": "run",
        "arch": "tiny",
        "weights": "none",
        "height": 32,
        "width": 16,
        "workers": 0,
        "batch_size": 16,
        "num_instances": 4,
        "samples_per_bn": 8,
        "eps": 0.6,
        "k1": 8,
        "k2": 3,
        "epochs": EPOCHS,
        "iters": STEPS,
        "eval_step": 1,
        "print_freq": 1,
        "device": "cpu",
        "precision": "fp32",
        "lr": 0.001,
        **changes,
    }


def resolved(data: Path, logs: Path, **changes: Any) -> ResolvedConfig:
    return resolve_config(flags(data, logs, **changes), {})


class Watch:
    """What a run computed: the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []


@contextmanager
def watched(on_step: Any = None) -> Iterator[Watch]:
    """Note the loss of every step; call `on_step(number)` after each, counted from 1 within this block."""
    watch = Watch()
    original = TrainStep.__call__

    def call(self: TrainStep, *arguments: Any) -> Tensor:
        loss = original(self, *arguments)
        watch.losses.append(float(loss))
        if on_step:
            on_step(len(watch.losses))
        return loss

    with mock.patch.object(TrainStep, "__call__", call):
        yield watch


def run_of(logs: Path) -> RunFolder:
    return RunFolder(logs / "run")


def train(data: Path, logs: Path, **changes: Any) -> dict[str, Any]:
    return training.train(resolved(data, logs, **changes))


def resume(logs: Path, **changes: Any) -> dict[str, Any]:
    return training.resume(run_of(logs), changes)


def outcome(logs: Path) -> dict[str, Any]:
    """Return everything about a finished run that must not depend on interruptions."""
    run = run_of(logs)
    content = run.store().load_newest().content
    lines = []
    for line in run.read_metrics():
        lines.append({key: value for key, value in line.items() if key not in {"seconds", "images_per_second"}})
    result = {key: value for key, value in run.read_result().items() if key not in {"run", "seconds"}}
    return {"metrics": lines, "result": result, "model": content["model"], "best": content["training"]["best"]}


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Compare nested values bit for bit."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_same(first, second, f"{place}[{number}]")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def command(data: Path, logs: Path, **changes: Any) -> list[str]:
    """Return the command line of a tiny run."""
    return ["train", *options(flags(data, logs, **changes))]


def options(values: dict[str, Any]) -> list[str]:
    words = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


class Command:
    """A `ccreid` command in a process of its own, on one thread, talking into a file.

    The process is forked from a server that has imported everything, which takes a tenth of a second, not several. It
    writes a report only where that is asked for: drawing one takes longer than the training.
    """

    def __init__(self, arguments: list[str], said: Path, environment: dict[str, str]) -> None:
        self._said = said
        self._process = _server().Process(target=_run_command, args=(arguments, str(said), environment))
        self._process.start()

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: int) -> None:
        if self._process.pid and self.poll() is None:
            os.kill(self._process.pid, number)

    def finish(self, seconds: float = 60) -> tuple[int, str]:
        """Return exit code (negative: the signal it died of) and what was said."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"the process did not end within {seconds} seconds; it said: {self.said}")
        return self._process.exitcode, self.said

    @property
    def said(self) -> str:
        return self._said.read_text() if self._said.exists() else ""

    def wait_for(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        """Wait until something has happened, or the process has ended."""
        deadline = time.monotonic() + seconds
        while not condition() and self.poll() is None:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)


def call_in_ranks(
    function: Callable[..., Any],
    world: int,
    folder: Path,
    *arguments: Any,
    killed: int | None = None,
    timeout: float = 60,
) -> list[Any]:
    """Return the result of a function, a name of a module, in each of several processes of one group.

    The process `killed` ends by SIGKILL, and has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environments = rank_environments(world)
    processes = [
        _server().Process(target=_call, args=(function, folder / f"result-{rank}", environment, arguments))
        for rank, environment in enumerate(environments)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    ends = {rank: -signal.SIGKILL if rank == killed else 0 for rank in range(world)}
    assert {rank: process.exitcode for rank, process in enumerate(processes)} == ends
    return [torch.load(folder / f"result-{rank}", weights_only=False) for rank in range(world) if rank != killed]


def _call(function: Callable[..., Any], result: Path, environment: dict[str, str], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.save(function(*arguments), result)


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny", "pydantic.dataclasses", "typer._adapters"])
    places = [str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(places), OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    return context


def serve_early() -> None:
    """Fork the server of `_server` off this process, which has imported everything: started alone it takes seconds.

    For a process that has done nothing yet but import: a fork has none of its threads.
    """
    resource_tracker.ensure_running()
    started = util.spawnv_passfds

    def fork(path: bytes, arguments: list[Any], passed: list[int]) -> int:
        server = os.fork()
        if not server:
            util.spawnv_passfds = started
            _serve(str(arguments[-1]), passed)
        return server

    with mock.patch.object(util, "spawnv_passfds", fork):
        _server()


def _serve(words: str, passed: list[int]) -> NoReturn:
    """Do what `multiprocessing` tells a new process of a server to do, with the files that it would have."""
    try:
        for name in ("stdin", "stdout", "stderr"):
            setattr(sys, name, getattr(sys, f"__{name}__"))
        for before, after in itertools.pairwise(sorted([2, *passed, os.sysconf("SC_OPEN_MAX")])):
            os.closerange(before + 1, after)
        Image.init()
        exec(words, {})
    finally:
        os._exit(1)


def _run_command(arguments: list[str], said: str, environment: dict[str, str]) -> None:
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # as in conftest.py
    if arguments[0] in {"train", "resume"} and "--report" not in arguments:
        arguments = [*arguments, "--no-report"]
    sys.argv = ["ccreid", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "CCREID_TEST_SLOW_SAVE" in os.environ:
        _make_saves_slow(float(os.environ["CCREID_TEST_SLOW_SAVE"]))
    if "CCREID_TEST_KILLED_BEFORE" in os.environ:
        _die_before(os.environ["CCREID_TEST_KILLED_BEFORE"])
    if "CCREID_TEST_CHUNK" in os.environ:
        chunks_of(int(os.environ["CCREID_TEST_CHUNK"]))
    if "CCREID_TEST_PRETENDED" in os.environ:
        _lasting.enter_context(pretended(os.environ["CCREID_TEST_PRETENDED"]))
    if os.environ.get("CCREID_TEST_FAILING_RANK") == os.environ.get("RANK", "0"):
        _fail_at_third_step()
    if "CCREID_TEST_TORCHRUN" in os.environ:
        _torchrun(os.environ["CCREID_TEST_TORCHRUN"], arguments)
    else:
        main()


def _torchrun(processes: str, arguments: list[str]) -> None:
    """Let PyTorch's launcher start the command in processes forked off this one: new ones import everything again."""
    launch = run.elastic_launch

    def launch_forked(config: run.LaunchConfig, entrypoint: str) -> Any:
        assert entrypoint == sys.executable
        return launch(replace(config, start_method="fork"), _run_module)

    words = ["--standalone", "--nproc-per-node", processes, "-m", "ccreid_cli", *arguments]
    with mock.patch.object(run, "elastic_launch", launch_forked):
        run.run(run.get_args_parser().parse_args(words))


def _run_module(*words: str) -> None:
    """Do what ``python -u -m ccreid_cli ...`` does, but for the exit: it must be a return."""
    assert words[:3] == ("-u", "-m", "ccreid_cli")
    sys.argv = ["ccreid", *words[3:]]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code


_lasting = ExitStack()


def _fail_at_third_step() -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise DataError("this rank has had enough.", "Ask it why.")

    _lasting.enter_context(watched(fail))


def chunks_of(images: int) -> None:
    """Let extraction be kept in chunks of so many images."""
    _lasting.enter_context(mock.patch.object(identify, "KEPT_SIZE", images))


def _die_before(name: str) -> None:
    """Die by SIGKILL where a file of this name is written, but not yet in its place."""
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, target)

    _lasting.enter_context(mock.patch.object(Path, "replace", replace))


def _make_saves_slow(seconds: float) -> None:
    """Let every save but the first wait before it writes, and show that it does by a file."""
    original, calls = checkpoint.save_checkpoint, itertools.count()

    def save(path: Path, content: Any) -> None:
        if next(calls):
            path.with_name(f".{path.name}.{os.getpid()}.slow").touch()
            time.sleep(seconds)
        original(path, content)

    checkpoint.save_checkpoint = save


_numbers = itertools.count()


def start(logs: Path, arguments: list[str], **environment: str) -> Command:
    logs.mkdir(parents=True, exist_ok=True)
    return Command(arguments, logs / f"said-{next(_numbers)}.txt", environment)


def rank_environments(world: int) -> list[dict[str, str]]:
    """Return the variables that a launcher sets for each process of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(world)]


def start_ranks(logs: Path, arguments: list[str], world: int, **environment: str) -> list[Command]:
    """Start one process per rank, as a launcher does."""
    return [start(logs, arguments, **{**place, **environment}) for place in rank_environments(world)]


def train_in_ranks(data: Path, logs: Path, world: int, **changes: Any) -> None:
    """Train in `world` processes, to the end."""
    for rank in start_ranks(logs, command(data, logs, **changes), world):
        code, said = rank.finish()
        assert code == 0, said


def step_losses(logs: Path, epoch: int, steps: int) -> Tensor:
    """Return the losses of an epoch from the save at its last step (``save_every``)."""
    found = checkpoint.read_checkpoint(run_of(logs).store().path_of(epoch, steps))["training"]["losses"]
    assert isinstance(found, Tensor) and len(found) == steps
    return found


def step_labels(logs: Path, epoch: int, steps: int) -> Tensor:
    """Return the pseudo-labels of an epoch from the save at its last step."""
    found = checkpoint.read_checkpoint(run_of(logs).store().path_of(epoch, steps))["training"]["labels"]
    assert isinstance(found, Tensor)
    return found


class Warnings(SilentReporter):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, text: str) -> None:
        self.said.append(text)


def limit_memory(monkeypatch: pytest.MonkeyPatch, images: int, *, after_forward: bool = False, times: int = 99) -> None:
    """Let the network run out of memory for more than `images` at a time, at most `times` times."""
    forward, failures = ReidNet.forward, []

    def limited(self: ReidNet, inputs: Tensor) -> Tensor:
        result = forward(self, inputs) if after_forward else inputs
        if len(inputs) > images and len(failures) < times:
            failures.append(len(inputs))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return result if after_forward else forward(self, inputs)

    monkeypatch.setattr(ReidNet, "forward", limited)
