"""ccreid: unsupervised object re-identification by Cluster Contrast.

The Python interface is `load_model`, which gives an `Embedder`: ``load_model("logs/RUN").embed(["a.jpg", "b.jpg"])``.
Importing this package is cheap; PyTorch is imported when one of the two is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccreid_cli.inference.embedder import Embedder, load_model

from ccreid_cli.core.version import __version__

__all__ = ["Embedder", "__version__", "load_model"]

# Operations that an Apple GPU lacks run on the CPU instead of failing. PyTorch reads this when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def __getattr__(name: str) -> Any:
    """Import the Python interface on first use."""
    if name in ("Embedder", "load_model"):
        return getattr(import_module("ccreid_cli.inference.embedder"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
