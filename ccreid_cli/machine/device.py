"""The processor to compute on, the number format, repeatable runs, and running out of memory."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ccreid_cli.core.errors import DeviceError, UsageError
from ccreid_cli.core.words import plural
from ccreid_cli.machine.freest_gpu import freest_gpu
from ccreid_cli.machine.ranks import local_rank

T = TypeVar("T")


@dataclass(frozen=True)
class DeviceChoice:
    """A device and, in words, why it was taken."""

    device: torch.device
    reason: str


def _cuda_problem() -> str:
    """Return why CUDA cannot be used, in words; empty when it can."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this build of PyTorch has no CUDA support"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        return ""
    for warning in caught:
        if "driver" in str(warning.message):
            return f"the NVIDIA driver does not fit PyTorch {torch.__version__} (CUDA {torch.version.cuda})"
    return "no NVIDIA GPU is visible"


def resolve_device(request: str = "auto") -> DeviceChoice:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that works.

    ``auto`` prefers CUDA, then MPS, then the CPU; among GPUs it takes the one with most free memory. A process started
    for one of several ranks takes the GPU of its ``LOCAL_RANK``.

    Raises:
        UsageError: The name is none of these.
        DeviceError: The device that was asked for cannot be used, and why.
    """
    name, _, index = request.partition(":")
    if name not in {"auto", "cpu", "cuda", "mps"} or (index and not (name == "cuda" and index.isdigit())):
        raise UsageError(f'device "{request}" is not known.', "Use auto, cpu, cuda, cuda:N or mps.")
    if name == "cpu":
        return DeviceChoice(torch.device("cpu"), "as asked")
    if name in {"auto", "cuda"}:
        problem = _cuda_problem()
        if not problem:
            return _choose_cuda(int(index) if index else None)
        if name == "cuda":
            raise DeviceError(f"--device {request}: {problem}.", "Use --device cpu, or run `ccreid doctor`.")
    if torch.backends.mps.is_available():
        return DeviceChoice(torch.device("mps"), "Apple GPU")
    if name == "mps":
        raise DeviceError("--device mps: this machine has no Apple GPU that PyTorch can use.", "Use --device cpu.")
    return DeviceChoice(torch.device("cpu"), problem)


def _choose_cuda(index: int | None) -> DeviceChoice:
    count = torch.cuda.device_count()
    if index is not None and index >= count:
        raise DeviceError(
            f"--device cuda:{index}: only {plural(count, 'GPU is', 'GPUs are')} visible.", "`ccreid doctor` lists them."
        )
    reason = "as asked"
    if index is None and (rank := local_rank()) is not None:
        index = rank % count
        reason = "local rank"
    elif index is None:
        index, free, total = freest_gpu()
        reason = f"{free:.0f} of {total:.0f} GiB free" + (f", the freest of {count}" if count > 1 else "")
    device = torch.device("cuda", index)
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise DeviceError(
            f"GPU {index} cannot be used: {str(error).splitlines()[0].removesuffix('.')}.",
            "Another process may fill it (see `nvidia-smi`); use another --device.",
        ) from error
    torch.cuda.set_device(device)
    return DeviceChoice(device, f"{torch.cuda.get_device_name(index)}, {reason}")


def cpu_has_bf16() -> bool:
    """Tell whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX)."""
    capability: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16") or capability.get("bf16"))


def resolve_precision(request: str, device: torch.device, probe: Callable[[str], float] | None = None) -> str:
    """Turn ``auto`` into ``fp32`` or ``bf16``.

    On CUDA: bf16 where the hardware has it; with fp32 this process computes in float32 throughout from here on, never
    in TF32. On a CPU with bf16 hardware `probe` times one step in either format, and bf16 is taken when it is at least
    a fifth faster (MobileNetV2 is not, ResNet-50 is).

    Args:
        request: ``auto``, ``fp32`` or ``bf16``.
        device: Where the model runs.
        probe: Format -> seconds of one step.

    Raises:
        DeviceError: bf16 was asked for on a GPU without it.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if request == "bf16" and not supported:
            raise DeviceError(
                "this GPU has no bfloat16 units.",
                "Use another --device, or --precision fp32; a run that was begun with bf16 stays with it.",
            )
        precision = request if request != "auto" else ("bf16" if supported else "fp32")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"  # PyTorch's default gives such convolutions 10 bits
        return precision
    if request != "auto":
        return request
    if device.type != "cpu" or probe is None or not cpu_has_bf16():
        return "fp32"
    return "bf16" if probe("bf16") < 0.8 * probe("fp32") else "fp32"


def step_seconds(model: nn.Module, images: torch.Tensor, precision: str, repeats: int = 2) -> float:
    """Time one forward and backward pass in `precision`, leaving weights and statistics as they were.

    Args:
        model: The network, on the device of `images`.
        images: (B, 3, H, W) float32.
        precision: ``fp32`` or ``bf16``.
        repeats: How often; the fastest counts, after one pass that warms up.

    Returns:
        Seconds.
    """
    state = {name: value.detach().clone() for name, value in model.named_buffers()}
    was_training = model.training
    model.train()
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with autocast(images.device, precision):
            loss = model(images).square().mean()
        loss.backward()
        best = min(best, time.perf_counter() - start)
    model.zero_grad(set_to_none=True)
    for name, value in model.named_buffers():
        value.copy_(state[name])
    model.train(was_training)
    return best


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Run the block in `precision`: bf16 autocast, or plain float32."""
    if precision != "bf16":
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def derived_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of `parts`, for example ("augment", seed, epoch, step)."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def choose_fastest_convolutions() -> None:
    """Let cuDNN time its algorithms once for each shape: training meets few shapes, thousands of times each."""
    torch.backends.cudnn.benchmark = True


def make_deterministic() -> None:
    """Choose algorithms that give the same bits every time, at some cost in speed on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # PyTorch warns of this one although its kernels add in a fixed order: each place sums the windows that it won.
    warnings.filterwarnings("ignore", "max_pool2d_with_indices_backward_cuda")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` is a device or host running out of memory.

    A convolution that has no room for any of cuDNN's workspaces says that it finds no engine (pytorch #108645).
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED", "unable to find an engine")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def unless_out_of_memory(action: Callable[[], T]) -> T | None:
    """Return the result of `action`, or None where it runs out of memory; what it held is free by then."""
    try:
        return action()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def device_for_resume(stored: str) -> str:
    """Return the device to ask for when a run is resumed and the user names none.

    A run on the CPU stays there; any other takes the best GPU of now, which may be another than before.
    """
    return "cpu" if stored == "cpu" else "auto"


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one CPU thread: for thousands of operations of a millisecond, which more threads slow down.

    Where other processes use the cores too, the threads wait for one another at each operation: ten times the work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def free_gpu_bytes(device: torch.device) -> int:
    """Return the bytes of a GPU that this process may still use, what PyTorch's allocator holds unused included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def exact_product(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply matrices with full float32 factors and sums, whatever the process allows elsewhere (TF32, split sums).

    Args:
        left: (n, D), bfloat16, float16 or float32.
        right: (D, m), the same type.
        out: Where to write it.

    Returns:
        (n, m), the same type.
    """
    settings = torch.backends.cuda.matmul
    precision, halves = torch.get_float32_matmul_precision(), settings.allow_fp16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    settings.allow_fp16_reduced_precision_reduction = False
    try:
        return torch.mm(left, right, out=out)
    finally:
        torch.set_float32_matmul_precision(precision)
        settings.allow_fp16_reduced_precision_reduction = halves
