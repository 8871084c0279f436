"""Small things that several command groups share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ccreid_cli.cli import output

if TYPE_CHECKING:
    from ccreid_cli.data.splits import ReidDataset
    from ccreid_cli.machine.distributed import Group


def data_dir_or_default(given: Path | None) -> Path:
    """Return the data directory: flag, environment, ``./data``.

    Raises:
        UsageError: As `named_data_dir`.
    """
    return named_data_dir(given) or Path("data")


def named_data_dir(given: Path | None) -> Path | None:
    """Return the data directory that flag or environment name, if any: a run knows where it was trained.

    Raises:
        UsageError: It is a file.
    """
    named = os.environ.get("CCREID_DATA_DIR")
    path = given or (Path(named) if named else None)
    if path is not None:
        refuse_file(path)
    return path


def refuse_file(data_dir: Path) -> None:
    """Refuse a data directory that is a file or a link to nothing, before something in it is said to be missing.

    Raises:
        UsageError: It is one.
    """
    from ccreid_cli.core.errors import UsageError

    is_broken_link = data_dir.is_symlink() and not data_dir.exists()
    if is_broken_link or data_dir.is_file():
        what = "a link to nothing" if is_broken_link else "a file"
        raise UsageError(
            f"the data directory {data_dir} is {what}, not a folder.",
            "Name a folder with --data-dir or CCREID_DATA_DIR.",
        )


def logs_dir_or_default(given: Path | None) -> Path:
    """Return the folder of the runs: flag, environment, ``./logs``."""
    return given or Path(os.environ.get("CCREID_LOGS_DIR") or "logs")


def refuse_existing(force: bool, *files: Path) -> None:
    """Refuse, before any work is done, to lose what lies where a command is about to write.

    Args:
        force: Whether the user allows files to be replaced.
        files: All that the command will write.

    Raises:
        UsageError: One of them is there and may not be replaced, is a folder, a device or a pipe, or would lie in a
            file or in a folder that cannot be written.
    """
    from ccreid_cli.core.errors import UsageError

    for file in files:
        if above := next((folder for folder in file.parents if folder.is_file()), None):
            raise UsageError(f"{above} is a file, so {file} cannot be written in it.", "Choose another folder.")
        if file.is_dir():
            raise UsageError(f"{file} is a folder, so no file of that name can be written.", "Choose another name.")
        if file.exists() and not file.is_file():
            raise UsageError(f"{file} is a device or a pipe, which no file can replace.", "Choose another name.")
        # A link to nothing is something, too.
        if not force and (file.exists() or file.is_symlink()):
            raise UsageError(f"{file} is there already.", "Choose another name, or add --force to replace it.")
        folder = next(folder for folder in file.absolute().parents if folder.exists())
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{folder} cannot be written, so {file} cannot be made.", "Choose another folder.")


def started_processes(gpus: int | None, device: str | None) -> bool:
    """Run this command line in several processes where that is asked for; tell whether that was done."""
    from ccreid_cli.machine.launch import asked_processes, launch

    count = asked_processes(gpus, device or "auto")
    if count == 1:
        return False
    launch(count)
    return True


@contextmanager
def processes(device: str | None) -> Iterator[tuple[Group, str]]:
    """Join the processes that a launcher started, if there are several.

    Yields:
        The group, and the name of this process's device.
    """
    from ccreid_cli.machine.device import resolve_device
    from ccreid_cli.machine.distributed import Group, process_group
    from ccreid_cli.machine.ranks import launched_world

    if launched_world() == 1:
        yield Group(), device or "auto"
        return
    choice = resolve_device(device or "auto")
    with process_group(choice.device) as group:
        yield group, str(choice.device)


def place_of_shards(result: Path | None, command: str = "") -> Path:
    """Return where features are kept until the work of a command is done: beside its result, else in the cache."""
    from ccreid_cli.core.paths import cache_folder

    return result.with_name(f".{result.name}.features") if result else cache_folder() / command


def show_dataset(dataset: ReidDataset) -> None:
    """Show a dataset's statistics on stderr."""
    from ccreid_cli.data.statistics import dataset_statistics

    statistics = dataset_statistics(dataset)
    rows = [[row.split, row.num_ids, row.num_images, row.num_cameras] for row in statistics.splits if row.num_images]
    title = f"{statistics.name}: {statistics.root}"
    output.print_table(title, ["split", "ids", "images", "cameras"], rows, to_stderr=True)
