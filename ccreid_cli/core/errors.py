"""The one exception tree. Everything a user can cause is a `CcreidError`.

`cli.error_messages` maps each class to an exit code. A message says what is wrong and where; `hint` says what to do
about it.
"""

from __future__ import annotations


class CcreidError(Exception):
    """A problem that a person can understand and mend.

    Args:
        message: What is wrong, and where (a file, an option, a value).
        hint: What to do about it: a command, an option, a place to look.

    Attributes:
        shown_elsewhere: Whether another process of the run shows it: this one only ends with its exit code.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.shown_elsewhere = False


class UsageError(CcreidError):
    """The command line, an option or a recipe asks for something that does not exist or does not fit (exit code 2)."""


class DataError(CcreidError):
    """A dataset, image, feature file or run folder is missing, broken or inconsistent (exit code 3)."""


class CheckpointError(DataError):
    """A checkpoint or weight file is missing, damaged, unsafe or does not fit the model (exit code 3)."""


class BrokenImagesError(DataError):
    """Image files are missing or cannot be decoded (exit code 3)."""


class NetworkError(CcreidError):
    """Something could not be downloaded (exit code 4)."""


class DeviceError(CcreidError):
    """The GPU, its driver or the memory cannot do what was asked (exit code 5)."""


class Interrupted(CcreidError):
    """The user or the system asked the program to stop; what was done is saved (exit code 128 + signal).

    Args:
        message: What was saved, and where.
        hint: The command that goes on from there.
        signal_number: The signal that was caught: 2 SIGINT, 15 SIGTERM, 10 SIGUSR1.
    """

    def __init__(self, message: str, hint: str | None = None, *, signal_number: int = 2) -> None:
        super().__init__(message, hint)
        self.signal_number = signal_number
