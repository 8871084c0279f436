"""Which GPU has most free memory, found without opening a context (hundreds of MiB, a second) on each of them."""

from __future__ import annotations

import subprocess

import torch

from ccreid_cli.core.errors import DeviceError

_SECONDS = 10.0
_QUESTION = ("nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits")


def freest_gpu() -> tuple[int, float, float]:
    """Return (index, free GiB, total GiB) of the GPU with most free memory.

    nvidia-smi says how much each has; only the one that is taken is opened, or the next where it does not answer. Where
    nvidia-smi cannot tell, all are opened and asked.

    Raises:
        DeviceError: No GPU answers.
    """
    count = torch.cuda.device_count()
    free = _free_by_index(count) if count > 1 else {}
    if len(free) == count:
        opened = map(_open, sorted(free, key=lambda index: (-free[index], index)))
        found = next(filter(None, opened), None)
    else:
        answers = filter(None, map(_open, range(count)))
        found = max(answers, key=lambda answer: (answer[1], -answer[0]), default=None)
    if found is None:
        raise DeviceError("CUDA is there but no GPU answers.", "See `nvidia-smi`, or use --device cpu.")
    index, free_bytes, total_bytes = found
    return index, free_bytes / 2**30, total_bytes / 2**30


def _open(index: int) -> tuple[int, int, int] | None:
    """Return (index, free bytes, total bytes) of a GPU, which opens a context on it; None if it does not answer."""
    try:
        return index, *torch.cuda.mem_get_info(index)
    except RuntimeError:
        return None


def _free_by_index(count: int) -> dict[int, int]:
    """Return the free MiB of the visible GPUs that nvidia-smi knows by their UUID; it numbers them in its own order."""
    try:
        said = subprocess.run(_QUESTION, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    fields = [[field.strip() for field in line.split(",")] for line in said.splitlines()]
    free = {pair[0].removeprefix("GPU-"): int(pair[1]) for pair in fields if len(pair) == 2 and pair[1].isdigit()}
    uuids = {index: str(torch.cuda.get_device_properties(index).uuid) for index in range(count)}
    return {index: free[uuid] for index, uuid in uuids.items() if uuid in free}
