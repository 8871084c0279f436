"""A trained network for other programs: ONNX, TorchScript or safetensors, checked before the file is kept.

The contract of ONNX and TorchScript files, in the form that trackers take re-identification models:

- input ``images``: (N, 3, height, width) float32, RGB, resized, / 255, minus mean, over std (ImageNet's); or, with
  `uint8_input`, (N, height, width, 3) uint8 RGB, resized only: the rest is inside the graph;
- output ``features``: (N, D) float32, rows of length one, so that a dot product is the cosine similarity;
- N is free, height and width are fixed. One input, one output, everything in one file.

ONNX files say the same in ``metadata_props``, TorchScript files in the extra file ``ccreid.json``.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import CcreidError, DataError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.images.augment import normalize
from ccreid_cli.inference.embedder import Embedder, open_embedder
from ccreid_cli.inference.loading import ModelRequest, Preprocessing
from ccreid_cli.models.file_forms import write_safetensors

SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "safetensors": ".safetensors"}
"""The forms, and the ending of each one's file."""

INPUT, OUTPUT = "images", "features"
MIN_COSINE = 0.9999
NUM_CHECK_IMAGES = 8
_OPSET = 18
_JIT: Any = torch.jit
"""Which torch leaves without types."""
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class ExportCheck:
    """How closely the exported file agrees with the network it was made from.

    Attributes:
        images: What was compared: real images of a dataset, or noise.
        num_images: How many.
        max_abs_difference: Largest difference between two features' entries.
        min_cosine: Smallest cosine between the two features of an image.
    """

    images: str
    num_images: int
    max_abs_difference: float
    min_cosine: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def check_request(form: str, uint8_input: bool, out: Path | None = None) -> None:
    """Refuse, before any work is done, what cannot be exported.

    Raises:
        UsageError: There is no such form, it does not go with `uint8_input`, packages are missing, or the ending of
            `out` names another form.
    """
    if form not in SUFFIXES:
        raise UsageError(
            f'there is no form "{form}".', did_you_mean(form, SUFFIXES) or f"Forms: {', '.join(SUFFIXES)}."
        )
    named = next((other for other, suffix in SUFFIXES.items() if out and out.suffix.lower() == suffix), form)
    if named != form:
        raise UsageError(f"-o {out} is to be {form}, but ends as {named} does.", f"Add --format {named}, or rename it.")
    if form == "safetensors" and uint8_input:
        raise UsageError("--uint8-input: a safetensors file holds weights only.", "Use --format onnx or torchscript.")
    for package in _ONNX_PACKAGES if form == "onnx" else ():
        require(package, "onnx")


def sample_images(embedder: Embedder, data_dir: Path | None = None) -> tuple[NDArray[np.uint8], str]:
    """Return images to check an export on: of the dataset the network was trained on when it is at hand, else noise.

    Args:
        embedder: The network.
        data_dir: Folder of the datasets; None for the one it was trained in.

    Returns:
        (N, height, width, 3) uint8 of the input size, and what they are, in words.
    """
    trained_on = embedder.loaded.trained_on()
    if trained_on is not None:
        name, trained_in = trained_on
        with contextlib.suppress(CcreidError, OSError):
            return _dataset_images(embedder, name, data_dir or trained_in, embedder.loaded.settings().get("columns"))
    noise = np.random.default_rng(0).integers(0, 256, (NUM_CHECK_IMAGES, *embedder.input_size, 3), dtype=np.uint8)
    return noise, "random noise"


def _dataset_images(
    embedder: Embedder, name: str, data_dir: Path, columns: str | None
) -> tuple[NDArray[np.uint8], str]:
    if not data_dir.is_dir():
        # Otherwise `load_dataset` would make the toy dataset in a new folder.
        raise DataError(f"{data_dir} does not exist.")
    dataset = load_dataset(name, data_dir, SilentReporter(), columns=columns)
    split = "query" if len(dataset.query) else "train"
    paths = dataset.splits[split].paths
    positions = np.unique(np.linspace(0, len(paths) - 1, NUM_CHECK_IMAGES).astype(int))
    pixels = embedder.read_files([paths[position] for position in positions])
    return pixels, f"{split} images of {Path(name).name}"


def export_model(
    embedder: Embedder,
    form: str,
    out: Path,
    images: NDArray[np.uint8],
    about_images: str,
    *,
    uint8_input: bool = False,
    reporter: Reporter | None = None,
) -> ExportCheck:
    """Write a network, read the file back, and keep it only if it gives the features that PyTorch gives.

    Args:
        embedder: The network, on the CPU in float32.
        form: A name of `SUFFIXES`.
        out: The file to write.
        images: (N, height, width, 3) uint8 images of the input size to compare on.
        about_images: What they are, in words.
        uint8_input: Whether the preprocessing after the resize is inside the graph.
        reporter: Where messages go.

    Returns:
        How closely the file agrees.

    Raises:
        UsageError: As `check_request`.
        DataError: The network cannot be exported, the features differ, or the file cannot be written. Whatever was
            at `out` stays as it was.
    """
    check_request(form, uint8_input)
    expected = embedder.embed_pixels(images)
    inputs = images if uint8_input else _prepared(images)
    with atomic_path(out) as temporary:
        temporary.touch()  # a place that cannot be written says so here, not in the exporters' words
        if form == "safetensors":
            preprocess = json.dumps(embedder.preprocessing.as_json())
            write_safetensors(embedder.model.state_dict(), embedder.model.spec, temporary, preprocess=preprocess)
            found = _read_safetensors(temporary, embedder.preprocessing).embed_pixels(images)
        else:
            network = _network(embedder, uint8_input)
            contract = contract_of(embedder, uint8_input)
            write, run = (_write_onnx, _run_onnx) if form == "onnx" else (_write_torchscript, _run_torchscript)
            write(network, torch.from_numpy(inputs[:2]), temporary, contract, reporter or SilentReporter())
            # One image alone and then several: the number of images must be free.
            found = np.concatenate([run(temporary, inputs[:1]), run(temporary, inputs[1:])])
        check = compare(found, expected, about_images)
        if not check.min_cosine >= MIN_COSINE:
            raise DataError(
                f"the exported network differs from PyTorch's (cosine {check.min_cosine:.5f}, largest difference "
                f"{check.max_abs_difference:.2e}); {out} was not kept.",
                "Try another --format.",
            )
    return check


def compare(found: NDArray[np.float32], expected: NDArray[np.float32], images: str) -> ExportCheck:
    """Compare (N, D) features with those expected; NaN counts as a difference."""
    if found.shape != expected.shape:
        raise DataError(f"the exported network gives features of shape {found.shape}, not {expected.shape}.")
    left, right = found.astype(np.float64), expected.astype(np.float64)
    cosines = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return ExportCheck(images, len(found), float(np.abs(left - right).max()), float(np.min(cosines)))


def contract_of(embedder: Embedder, uint8_input: bool) -> dict[str, Any]:
    """Return what a program must know to use an exported file, as plain JSON values."""
    height, width = embedder.input_size
    shape: list[Any] = ["N", height, width, 3] if uint8_input else ["N", 3, height, width]
    steps = (
        f"RGB upright by EXIF, over white where transparent; resize ({embedder.preprocessing.resize}) to height x width"
    )
    if not uint8_input:
        steps += ", / 255, minus mean, over std, channels first"
    return {
        "model": embedder.fingerprint,
        "arch": embedder.model.spec.arch,
        "input": {"name": INPUT, "dtype": "uint8" if uint8_input else "float32", "shape": shape, "prepare": steps},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["N", embedder.embedding_dim], "rows": "unit length"},
        "preprocess": embedder.preprocessing.as_json(),
        "preprocess_inside": uint8_input,
    }


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


def _network(embedder: Embedder, uint8_input: bool) -> nn.Module:
    model: nn.Module = copy.deepcopy(embedder.model).cpu().to(memory_format=torch.contiguous_format).eval()
    model.requires_grad_(False)
    return _Uint8Input(model, embedder.preprocessing).eval() if uint8_input else model


def _prepared(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the float input for (N, H, W, 3) uint8 images."""
    prepared: NDArray[np.float32] = normalize(torch.from_numpy(images).permute(0, 3, 1, 2)).contiguous().numpy()
    return prepared


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporters' own messages on stdout and stderr."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _write_onnx(network: nn.Module, example: Tensor, path: Path, contract: dict[str, Any], reporter: Reporter) -> None:
    """Write the graph by PyTorch's newer exporter, or by the older one where the newer fails."""
    import onnx

    for newer in (True, False):
        try:
            with _quietly():
                _trace_onnx(network, example, path, newer)
            break
        except OSError:  # a full disk
            raise
        except Exception as error:  # the exporters raise nearly every type there is
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if not newer:
                raise DataError(
                    f"this network cannot be exported to ONNX: {reason}.", "Try --format torchscript."
                ) from error
            reporter.message("PyTorch's newer ONNX exporter fails here; the older one is tried.")
    model = onnx.load(str(path))
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in contract.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _trace_onnx(network: nn.Module, example: Tensor, path: Path, newer: bool) -> None:
    names: dict[str, Any] = {
        "input_names": [INPUT],
        "output_names": [OUTPUT],
        "opset_version": _OPSET,
        "verbose": False,
    }
    if newer:
        batch = torch.export.Dim("batch", min=1)
        free: dict[str, Any] = {"dynamic_shapes": ({0: batch},), "external_data": False, "dynamo": True}
    else:
        free = {"dynamic_axes": {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}, "dynamo": False}
    torch.onnx.export(network, (example,), str(path), **names, **free)


def _run_onnx(path: Path, inputs: NDArray[Any]) -> NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # As trackers do: the first input and the first output.
    output: NDArray[np.float32] = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: inputs})[
        0
    ]
    return output


def _write_torchscript(
    network: nn.Module, example: Tensor, path: Path, contract: dict[str, Any], reporter: Reporter
) -> None:
    with _quietly():
        traced = _JIT.freeze(_JIT.trace(network, example, check_trace=False))
        # Through memory: PyTorch's own file writer ends the whole process when the disk is full.
        buffer = io.BytesIO()
        _JIT.save(traced, buffer, _extra_files={"ccreid.json": json.dumps(contract)})
    path.write_bytes(buffer.getbuffer())


def _run_torchscript(path: Path, inputs: NDArray[Any]) -> NDArray[np.float32]:
    with _quietly():
        network = _JIT.load(str(path))
        output: NDArray[np.float32] = network(torch.from_numpy(inputs)).numpy()
    return output


def _read_safetensors(path: Path, preprocessing: Preprocessing) -> Embedder:
    embedder = open_embedder(ModelRequest(resume=str(path)), logs_dir=path.parent, device="cpu", precision="fp32")
    if embedder.preprocessing != preprocessing:
        raise DataError(f"the preprocessing was not kept: {embedder.preprocessing}, not {preprocessing}.")
    return embedder
