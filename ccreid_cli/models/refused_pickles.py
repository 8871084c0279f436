"""What to tell a user whose weight file is refused because it asks to run something: what it is, and the way out."""

from __future__ import annotations

import re
import shlex
import zipfile
from pathlib import Path

from ccreid_cli.core.errors import CheckpointError

# What a pickle names -> what that tells of the file; the first that fits counts.
_LOOKS_LIKE = {
    r"pytorch-lightning_version": "a PyTorch Lightning checkpoint, with its hyper-parameters beside the weights",
    r"lightning": "a PyTorch Lightning checkpoint, with its hyper-parameters beside the weights",
    r"fastreid|yacs\.": "a file of fast-reid, with its settings or whole objects beside the weights",
    r"torchreid": "a file of torchreid that holds a whole model",
    r"ultralytics|models\.yolo": "a file of Ultralytics that holds a whole model",
    r"modeling\.": "a file of reid-strong-baseline, or a program like it, that holds a whole model",
    r"omegaconf": "a checkpoint with OmegaConf settings beside the weights",
    r"argparse": "a checkpoint with the options of its program beside the weights",
    r"torch\.nn\.|torchvision\.models": "a whole model, saved with `torch.save(model)`",
}
_START = 1 << 20


def _names_within(path: Path) -> str:
    """Return the start of a file's pickle as text, to look for names in; it is never unpickled."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    return file.read(_START).decode("latin-1")
        with path.open("rb") as file:
            return file.read(_START).decode("latin-1")
    except (OSError, StopIteration, zipfile.BadZipFile, RuntimeError):  # the last: encrypted, or an unknown compression
        return ""


def extraction_command(path: Path) -> str:
    """Return the command that saves the plain state dict of a file, run with the program that made it installed."""
    code = (
        f"import torch; c = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        "c = next((c[k] for k in ('state_dict', 'model', 'model_state_dict') if k in c), c) "
        "if isinstance(c, dict) else c; "
        "torch.save(c if isinstance(c, dict) else c.state_dict(), 'plain.pth')"
    )
    return f"python -c {shlex.quote(code)}"


def refused(path: Path, called: str) -> CheckpointError:
    """Say that a file is refused, which program it looks like, and how to get plain weights out of it.

    Args:
        path: The file.
        called: What it asks to run, as ``module.name``.
    """
    within = _names_within(path)
    looks = next((what for pattern, what in _LOOKS_LIKE.items() if re.search(pattern, f"{called} {within}")), None)
    return CheckpointError(
        f"{path} is refused: it is not plain weights but asks to run {called}. Nothing was run."
        + (f" It looks like {looks}." if looks else ""),
        "Ask whoever made it for a file with only the state_dict, best as .safetensors. If it is your own, this saves "
        f"one as plain.pth, where the program that made it is installed: {extraction_command(path)}",
    )
