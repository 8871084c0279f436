"""Files elsewhere, read over the network by fsspec: ``s3://``, ``https://`` and whatever else it knows."""

from __future__ import annotations

import errno
import time
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import CcreidError, NetworkError, UsageError

_TRIES = 3
_SECONDS_BETWEEN_TRIES = 1.0


def is_remote(place: str) -> bool:
    """Whether a place is an address, not a path of this machine."""
    scheme, sign, _ = place.partition("://")
    return bool(sign) and scheme.isalnum()


def picture_at(place: str) -> str | bytes:
    """Return what is to be decoded: a file of this machine as its path, a remote one as its content.

    Raises:
        FileNotFoundError: There is no such remote file.
        NetworkError: It could not be read.
        UsageError: A package that this needs is missing.
    """
    return read_remote(place) if is_remote(place) else place


def read_remote(address: str) -> bytes:
    """Return the content of a remote file; errors as for `picture_at`."""
    for left in reversed(range(_TRIES)):
        try:
            with closing(open_remote(address)) as file:
                return file.read()
        except (CcreidError, FileNotFoundError):
            raise
        except Exception as error:  # each of fsspec's file systems raises its own
            if not left:
                raise _unread(address, error) from error
            time.sleep(_SECONDS_BETWEEN_TRIES)
    raise AssertionError


def open_remote(address: str) -> BinaryIO:
    """Open a remote file to be read from its beginning to its end; errors as for `picture_at`."""
    options = {"block_size": 0} if address.startswith(("http://", "https://")) else {}
    system, path = _system(address)
    try:
        return cast(BinaryIO, system.open(path, "rb", **options))
    except FileNotFoundError as error:  # some of fsspec's say no more than the path
        raise FileNotFoundError(errno.ENOENT, "there is no such file", address) from error


def open_file(place: str) -> BinaryIO:
    """Open a file of this machine or a remote one; errors as for `picture_at`."""
    return open_remote(place) if is_remote(place) else Path(place).open("rb")


def list_remote(address: str) -> list[str]:
    """Return the addresses of all files in a remote folder and below it, sorted.

    Raises:
        NetworkError: It cannot be listed.
        UsageError: A package that this needs is missing.
    """
    system, path = _system(address)
    try:
        return sorted(str(system.unstrip_protocol(file)) for file in system.find(path))
    except Exception as error:  # as above
        raise _unread(address, error) from error


def _system(address: str) -> tuple[Any, str]:
    fsspec = require("fsspec", "remote")
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{address} cannot be opened: {error}.", "pip install 'ccreid[remote]'") from error
    return system, path


def _unread(address: str, error: Exception) -> NetworkError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return NetworkError(f"{address} cannot be read: {reason}.", "Try again: what was done is kept.")
