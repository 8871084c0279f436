"""Which of a run's processes this is: the variables that torchrun and ``--gpus`` set. Imports no torch."""

from __future__ import annotations

import os

from ccreid_cli.core.errors import UsageError


def launched_world() -> int:
    """Return how many processes the launcher (torchrun or ``--gpus``) started; 1 without one.

    Raises:
        UsageError: WORLD_SIZE is no number.
    """
    return _from_environment("WORLD_SIZE", 1)


def launched_rank() -> int:
    """Return the number of this process among them; 0 without a launcher.

    Raises:
        UsageError: RANK is no number.
    """
    return _from_environment("RANK", 0)


def is_launched() -> bool:
    """Whether a launcher started this process, alone or with others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Whether this process writes and prints, before any group is joined."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int | None:
    """Return the number of this process among those of its machine; None where no launcher says.

    Raises:
        UsageError: LOCAL_RANK is no number.
    """
    return _from_environment("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else None


def is_first_of_machine() -> bool:
    """Whether this process does what every machine needs once."""
    number = local_rank()
    return is_main_process() if number is None else number == 0


def local_world() -> int:
    """Return how many of the launched processes are on this machine: all, where the launcher does not say."""
    return _from_environment("LOCAL_WORLD_SIZE", launched_world())


def spans_machines() -> bool:
    """Whether the launched processes are on more than one machine."""
    return local_world() < launched_world()


def threads_per_process(num_processes: int) -> int:
    """Return this machine's share of processors for each of `num_processes` processes on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_processes)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit() or (name.endswith("SIZE") and int(text) < 1):
        raise UsageError(f'{name} is "{text}", not a number of processes.', "Start ranks with torchrun.")
    return int(text)
