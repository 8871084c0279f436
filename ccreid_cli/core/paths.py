"""Where ccreid keeps what is not a run: caches and weights."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the user's cache folder of ccreid (not made)."""
    from platformdirs import user_cache_path

    return user_cache_path("ccreid", appauthor=False)


def torch_hub_checkpoints() -> Path:
    """Return the folder where torch.hub keeps downloaded weights, without importing torch.

    The rule is PyTorch's own: ``$TORCH_HOME``, else ``$XDG_CACHE_HOME/torch``, else ``~/.cache/torch``.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", str(Path(cache) / "torch"))).expanduser()
    return home / "hub" / "checkpoints"
