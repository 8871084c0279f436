"""A download as a terminal starts it: a module, so that a process of its own can import it."""

from __future__ import annotations

import signal
from typing import Any

from ccreid_cli.transfer.download import download


def download_in_terminal(*arguments: Any, **options: Any) -> None:
    """Download, ending on Ctrl-C even where the tests themselves were started to ignore it, as in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    download(*arguments, **options)
