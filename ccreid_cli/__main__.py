"""What the command ``ccreid`` and ``python -m ccreid_cli`` start."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line. Until it handles Ctrl-C itself, which takes a tenth of a second, that ends it quietly."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    from ccreid_cli.cli import app

    app.main()


if __name__ == "__main__":
    main()
