"""Writing files so that a crash, a full disk or a power cut never leaves a half-written one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ccreid_cli.core.errors import DataError


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced to disk and renamed over `path`.

    Args:
        path: The file that is to appear whole or not at all. Its folder is made.

    Yields:
        The temporary path to write to. It is removed when the block fails.

    Raises:
        DataError: The disk is full, or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"could not write {path}: {error.strerror or error}.", "Free some space or choose another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all.

    Raises:
        DataError: The disk is full, or the folder is not writable.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` whole or not at all.

    Raises:
        DataError: The disk is full, or the folder is not writable.
    """
    atomic_write_bytes(path, text.encode())


def write_or_keep(path: Path, write: Callable[[Path], None]) -> None:
    """Write the result of long work to `path`; where that fails, to the system's folder of temporary files.

    Args:
        path: Where it belongs.
        write: Writes it to the path that it is given, of the same ending.

    Raises:
        DataError: It could not be written to `path`; the hint names the file that holds it instead, if one does.
    """
    try:
        write(path)
    except Exception as error:
        problem = error.message if isinstance(error, DataError) else f"could not write {path}: {error}."
        hint = error.hint if isinstance(error, DataError) else None
        with contextlib.suppress(Exception):
            kept = Path(tempfile.mkdtemp(prefix="ccreid-")) / path.name
            try:
                write(kept)
            except BaseException:
                shutil.rmtree(kept.parent, ignore_errors=True)
                raise
            hint = f"What was computed is not lost: it is in {kept}; move it from there."
        raise DataError(problem, hint) from error


def digest_of(values: Iterable[str | bytes]) -> str:
    """Return a SHA-256, in hexadecimal digits, over values in their order, each of them told from the next."""
    digest = hashlib.sha256()
    for value in values:
        data = value if isinstance(value, bytes) else value.encode(errors="surrogateescape")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that holds `folder`, which need not exist yet."""
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    return shutil.disk_usage(existing).free
