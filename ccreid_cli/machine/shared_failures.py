"""Errors between processes: that of one becomes that of all, and one that was killed is named by the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from ccreid_cli.core import errors
from ccreid_cli.core.errors import CcreidError, DeviceError, Interrupted
from ccreid_cli.machine.device import is_out_of_memory

_FAILURE = "failure"
_GO_ON = "`ccreid resume` goes on."
_WHEN_LOST = f"A system that is short of memory kills processes (see `dmesg`). {_GO_ON}"


@contextmanager
def exchanging(rank: int, world: int) -> Iterator[None]:
    """Turn what a broken connection raises within the block (with gloo a bare RuntimeError) into a `DeviceError`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
            raise
        raise lost_others(error, rank, world) from error


def lost(rank: int, world: int) -> DeviceError:
    """Return the error of one that waits for `rank`, which was killed."""
    return DeviceError(f"process {rank} of {world} was killed, or does not answer any more.", _WHEN_LOST)


def lost_others(error: RuntimeError, rank: int, world: int) -> DeviceError:
    """Return the error of `rank`, whose connections broke."""
    if "Duplicate GPU" in str(error):
        return DeviceError(
            "two of the processes use the same GPU, and NCCL connects only processes that have one each.",
            "Start at most as many processes on a machine as it has GPUs, and name no number in --device; or use "
            "--device cpu.",
        )
    return DeviceError(
        f"process {rank} of {world} lost the others: {str(error).splitlines()[0]}",
        f"Another process was killed, or did not answer within the time-out. {_GO_ON}",
    )


def share_error(error: BaseException, notes: Store | None, rank: int, world: int) -> BaseException:
    """Write an error to the store for the others, unless another rank failed first.

    Returns:
        What this process is to raise: `error`, or that of the rank that failed first.
    """
    if isinstance(error, Interrupted):
        error.shown_elsewhere = rank > 0
        return error
    if isinstance(error, dist.DistError):  # NCCL exchanges in the background: a later operation may raise it
        error = lost_others(error, rank, world)
    if isinstance(error, CcreidError):
        return _write_failure(notes, error) or error
    what = f"failed: {type(error).__name__}: {error}" if isinstance(error, Exception) else "was stopped."
    _write_failure(notes, DeviceError(f"process {rank} of {world} {what}"))
    return error


def _write_failure(notes: Store | None, error: CcreidError) -> CcreidError | None:
    """Write an error to the store, unless there is one already: then return that."""
    if notes is None or error.shown_elsewhere:
        return None
    own = json.dumps([type(error).__name__, error.message, error.hint])
    try:
        found = notes.compare_set(_FAILURE, "", own)
    except RuntimeError:
        return None  # the rank that serves the store was killed
    return None if found.decode() == own else _failure_from(found)


def raise_shared(notes: Store) -> None:
    """Raise the error of another rank, if one has written it to the store."""
    if notes.check([_FAILURE]):
        raise _failure_from(notes.get(_FAILURE))


def _failure_from(text: bytes) -> CcreidError:
    name, message, hint = json.loads(text)
    kind: type[CcreidError] = getattr(errors, name, CcreidError)
    error = kind(message, hint)
    error.shown_elsewhere = True
    return error
