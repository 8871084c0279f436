"""``--gpus N``: start one process per GPU on this machine and watch them; for several machines there is torchrun.

Ours, since torchrun replaces the message and exit code of a failed process by a traceback of its own and exit code 1.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

from ccreid_cli.core.errors import DeviceError, Interrupted, UsageError
from ccreid_cli.core.words import plural
from ccreid_cli.machine.ranks import is_launched, threads_per_process
from ccreid_cli.machine.signals import HANDLED, as_exit_signal

GRACE_SECONDS = 30.0
"""How long the other processes get to end by themselves after one failed."""


def num_processes(
    gpus: int | None, device: str, batch_size: int, samples_per_bn: int, say: Callable[[str], None]
) -> int:
    """Return how many processes to start here: 1 under a launcher, on a CPU, or on one GPU.

    Args:
        gpus: What the user asks for; None for every visible GPU that the batch can use.
        device: The requested device; one that names a single GPU means one process.
        batch_size: Images per step, over all GPUs.
        samples_per_bn: Images that share batch-norm statistics; a chunk of them stays on one GPU.
        say: Called with a message when GPUs stay unused.

    Raises:
        UsageError: `gpus` contradicts `device`.
        DeviceError: There are fewer GPUs than asked for.
    """
    if gpus is not None or is_launched() or _names_one_processor(device):
        return asked_processes(gpus, device)
    import torch

    visible = torch.cuda.device_count()
    usable = max(1, min(visible, -(-batch_size // samples_per_bn)))
    if usable < visible:
        say(
            f"using {usable} of {visible} GPUs: a batch of {batch_size} has {plural(usable, 'chunk')} of "
            f"{samples_per_bn} images that share batch-norm statistics (-b and --samples-per-bn change that)."
        )
    return usable


def asked_processes(gpus: int | None, device: str) -> int:
    """Return how many processes the user asks for: 1 under a launcher, and where nothing is said.

    Args:
        gpus: What the user asks for.
        device: The requested device.

    Raises:
        UsageError: `gpus` contradicts `device`.
        DeviceError: There are fewer GPUs than asked for.
    """
    if gpus is None or is_launched():
        return 1
    if _names_one_processor(device):
        if gpus > 1:
            raise UsageError(f"--gpus {gpus} does not go with --device {device}.", "Leave one of them out.")
        return 1
    import torch

    visible = torch.cuda.device_count()
    if gpus > max(visible, 1) or (gpus > 0 and visible == 0):
        raise DeviceError(f"--gpus {gpus}: {plural(visible, 'GPU is', 'GPUs are')} visible.", "See `ccreid doctor`.")
    return gpus


def _names_one_processor(device: str) -> bool:
    """Whether a requested device can only be one: processes cannot share out GPUs then."""
    return device in {"cpu", "mps"} or ":" in device


def launch(count: int) -> None:
    """Run this same command line in `count` processes and wait for them.

    Raises:
        Interrupted: They were asked to stop and have saved.
        SystemExit: One of them failed and has shown its message; this is its exit code.
        DeviceError: One of them was killed, and no other reported it.
    """
    port = _free_port()
    processes = [_start(rank, count, port) for rank in range(count)]

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in HANDLED}
    try:
        code = _wait(processes)
        codes = [process.poll() for process in processes]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
    if code in {128 + signal.SIGINT, 128 + signal.SIGTERM}:
        stopped = Interrupted("the processes have stopped.", signal_number=as_exit_signal(code - 128))
        stopped.shown_elsewhere = True
        raise stopped
    _raise_if_killed(codes)
    if code:
        sys.exit(code)


def _raise_if_killed(codes: list[int | None]) -> None:
    """Report a killed process if no other did: with NCCL, those that wait for it do not notice.

    Args:
        codes: The exit code of each process; None if it still ran at the end of the grace period.

    Raises:
        DeviceError: One was killed, and none ended by itself with an error.
    """
    killed = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    if killed and not any(code is not None and code > 0 for code in codes):
        rank = killed[0]
        raise DeviceError(
            f"process {rank} of {len(codes)} was killed by signal {-(codes[rank] or 0)}.",
            "A system that is short of memory kills processes (see `dmesg`). `ccreid resume` goes on with a training, "
            "the same command with an extraction.",
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    environment = {
        "OMP_NUM_THREADS": str(threads_per_process(count)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "ccreid_cli", *sys.argv[1:]]
    # A session of its own: Ctrl-C reaches the ranks once, through `forward`, not twice.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    """Return 0 when all end well, else the exit code of the first to fail, after the others had time to end."""
    failure, deadline = 0, math.inf
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if not failure and (failure := _first_failure(processes)):
            deadline = time.monotonic() + GRACE_SECONDS
        time.sleep(0.1)
    return failure or _first_failure(processes)


def _first_failure(processes: list[subprocess.Popen[bytes]]) -> int:
    """Return the exit code of the first process that failed, as a shell gives it; 0 while none has."""
    codes = [code for process in processes if (code := process.poll())]
    return next((code if code > 0 else 128 - code for code in codes), 0)
