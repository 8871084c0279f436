"""The forms of exported files: for each one how it is written, and how a program without ccreid computes with it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccreid_cli.core.reporter import Reporter
from ccreid_cli.images.augment import normalize
from ccreid_cli.inference.loading import Preprocessing

INPUT, OUTPUT = "images", "features"
Compute = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Input images -> (N, D) features."""
_JIT: Any = torch.jit
"""Which torch leaves without types."""


@dataclass(frozen=True)
class Work:
    """What is to be written.

    Attributes:
        network: As `exported_network` makes it.
        example: Two input images.
        files: Where it goes: the file, and the one beside it where the form has two.
        contract: What a program must know to use it, as plain JSON values.
        precision: A number format of the form.
        calibration: Input images whose values tell the ranges for int8; none for other formats.
        reporter: Where messages go.
    """

    network: nn.Module
    example: Tensor
    files: tuple[Path, ...]
    contract: dict[str, Any]
    precision: str
    calibration: NDArray[Any]
    reporter: Reporter


@dataclass(frozen=True)
class Form:
    """A form of file.

    Attributes:
        suffix: The ending of its file.
        write: Writes it.
        load: Opens its files as another program does.
        precisions: The number formats it can have.
        packages: What it needs, by import name.
        extra: The extra of ccreid that brings them.
        beside: The ending of a second file, if it has one.
        tells_size: Whether trackers read the input size off the file.
    """

    suffix: str
    write: Callable[[Work], None]
    load: Callable[[tuple[Path, ...]], Compute]
    precisions: tuple[str, ...] = ("fp32",)
    packages: tuple[str, ...] = ()
    extra: str = ""
    beside: str = ""
    tells_size: bool = False

    def boxmot_misreads(self, file: Path, height: int, width: int) -> str:
        """Say for which input size BoxMOT takes a file, where that is not its own; empty where it is.

        Args:
            file: The file, whose name decides.
            height: Its input height.
            width: Its input width.
        """
        assumed = (256, 256) if any(word in file.name for word in ("veri", "vehicleid")) else (256, 128)
        if self.tells_size or (height, width) == assumed:
            return ""
        return (
            f"BoxMOT gives a {self.suffix} file of this name crops of {assumed[0]}x{assumed[1]}, not {height}x{width}: "
            "use --format onnx, which tells its size, or train for that one."
        )


class _Uint8Input(nn.Module):
    """A network behind its normalisation: takes (N, H, W, 3) uint8."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(preprocessing.std).view(1, 3, 1, 1)))

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        features: Tensor = self.network(images)
        return features


def exported_network(network: nn.Module, preprocessing: Preprocessing, uint8_input: bool) -> nn.Module:
    """Return a copy of a network as it is exported, with its normalisation inside where it takes uint8."""
    model: nn.Module = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
    model.requires_grad_(False)
    return _Uint8Input(model, preprocessing).eval() if uint8_input else model


def prepared(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the float input for (N, H, W, 3) uint8 images."""
    inputs: NDArray[np.float32] = normalize(torch.from_numpy(images).permute(0, 3, 1, 2)).contiguous().numpy()
    return inputs


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence the exporters' own messages on stdout and stderr."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def write_torchscript(work: Work) -> None:
    """Trace and freeze the network; the contract goes into the extra file ``ccreid.json``."""
    with quietly():
        traced = _JIT.freeze(_JIT.trace(work.network, work.example, check_trace=False))
        # Through memory: PyTorch's own file writer ends the whole process when the disk is full.
        buffer = io.BytesIO()
        _JIT.save(traced, buffer, _extra_files={"ccreid.json": json.dumps(work.contract)})
    work.files[0].write_bytes(buffer.getbuffer())


def load_torchscript(files: tuple[Path, ...]) -> Compute:
    """Open a TorchScript file with PyTorch alone."""
    with quietly():
        network = _JIT.load(str(files[0]))

    def compute(inputs: NDArray[Any]) -> NDArray[np.float32]:
        with quietly():
            output: NDArray[np.float32] = network(torch.from_numpy(inputs)).numpy()
        return output

    return compute
