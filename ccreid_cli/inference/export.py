"""A trained network for other programs: ONNX, OpenVINO, TorchScript or safetensors, checked before the file is kept.

The contract of all but safetensors files, in the form that trackers take re-identification models:

- input ``images``: (N, 3, height, width) float32, RGB, resized, / 255, minus mean, over std (ImageNet's); or, with
  `uint8_input`, (N, height, width, 3) uint8 RGB, resized only: the rest is inside the graph;
- output ``features``: (N, D) float32, rows of length one, so that a dot product is the cosine similarity;
- N is free, height and width are fixed. One input, one output.

ONNX files say the same in ``metadata_props``, TorchScript files in the extra file ``ccreid.json``, OpenVINO's in
``rt_info``. Trackers resize crops by OpenCV's linear interpolation: ``--resize opencv`` prepares images likewise here.
"""

from __future__ import annotations

import contextlib
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import CcreidError, DataError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.inference.embedder import Embedder, open_embedder
from ccreid_cli.inference.export_forms import (
    INPUT,
    OUTPUT,
    Compute,
    Form,
    Work,
    exported_network,
    load_torchscript,
    prepared,
    write_torchscript,
)
from ccreid_cli.inference.export_onnx import load_onnx, write_onnx
from ccreid_cli.inference.export_openvino import load_openvino, write_openvino
from ccreid_cli.inference.loading import ModelRequest, Preprocessing
from ccreid_cli.models.file_forms import write_safetensors

FORMS: dict[str, Form] = {
    "onnx": Form(
        ".onnx",
        write_onnx,
        load_onnx,
        ("fp32", "fp16", "int8"),
        ("onnx", "onnxruntime", "onnxscript"),
        "onnx",
        tells_size=True,
    ),
    "openvino": Form(".xml", write_openvino, load_openvino, ("fp32", "fp16"), ("openvino",), "openvino", beside=".bin"),
    "torchscript": Form(".torchscript", write_torchscript, load_torchscript),
}
"""The forms that other programs compute with."""
SUFFIXES = {**{name: form.suffix for name, form in FORMS.items()}, "safetensors": ".safetensors"}
"""All forms, and the ending of each one's file."""

MIN_COSINE = {"fp32": 0.9999, "fp16": 0.99, "int8": 0.99}
"""Between the features of an image by the exported file and by PyTorch: with less a file is not kept.

The smallest counts in fp32, the mean in smaller formats, whose error differs from image to image.
"""
NUM_CHECK_IMAGES = {"fp32": 8, "fp16": 64, "int8": 64}
NUM_CALIBRATION_IMAGES = 128
_NOISE = "random noise"


@dataclass(frozen=True)
class ExportCheck:
    """How closely the exported file agrees with the network it was made from.

    Attributes:
        images: What was compared: real images of a dataset, or noise.
        num_images: How many.
        max_abs_difference: Largest difference between two features' entries.
        min_cosine: Smallest cosine between the two features of an image.
        mean_cosine: Their mean.
    """

    images: str
    num_images: int
    max_abs_difference: float
    min_cosine: float
    mean_cosine: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def check_request(form: str, uint8_input: bool, out: Path | None = None, precision: str = "fp32") -> None:
    """Refuse, before any work is done, what cannot be exported.

    Raises:
        UsageError: There is no such form, it does not go with `uint8_input` or `precision`, packages are missing, or
            the ending of `out` names another form.
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
    precisions = FORMS[form].precisions if form in FORMS else ("fp32",)
    if precision not in precisions:
        others = [name for name, row in FORMS.items() if precision in row.precisions]
        raise UsageError(
            f"--precision {precision}: {form} files are written in {', '.join(precisions)}.",
            f"Use --format {' or '.join(others)}." if others else f"Use one of {', '.join(MIN_COSINE)}.",
        )
    for package in FORMS[form].packages if form in FORMS else ():
        require(package, FORMS[form].extra)


def files_of(out: Path, form: str) -> tuple[Path, ...]:
    """Return the files that an export to `out` makes, without its cards."""
    beside = FORMS[form].beside if form in FORMS else ""
    return (out, out.with_suffix(beside)) if beside else (out,)


def dataset_at_hand(
    embedder: Embedder,
    data_dir: Path | None = None,
    name: str | None = None,
    columns: str | None = None,
    pattern: str | None = None,
) -> ReidDataset | None:
    """Return the dataset to check an export on: `name`, else the one that the network was trained on, if it is there.

    Args:
        embedder: The network.
        data_dir: Folder of the datasets; None for the one it was trained in.
        name: A dataset's name or a path, where the user names one.
        columns: As ``--columns``.
        pattern: As ``--pattern``.

    Raises:
        DataError: `name` is missing or broken.
    """
    if name is not None:
        return load_dataset(name, data_dir or Path("data"), SilentReporter(), columns=columns, pattern=pattern)
    trained_on = embedder.loaded.trained_on()
    if trained_on is None:
        return None
    folder = data_dir or trained_on[1]
    with contextlib.suppress(CcreidError, OSError):
        # Without a folder `load_dataset` would make the toy dataset in a new one.
        if folder.is_dir():
            own = embedder.loaded.settings()
            columns, pattern = own.get("columns"), own.get("pattern")
            return load_dataset(trained_on[0], folder, SilentReporter(), columns=columns, pattern=pattern)
    return None


def sample_images(
    embedder: Embedder, dataset: ReidDataset | None, count: int, *, train: bool = False
) -> tuple[NDArray[np.uint8], str]:
    """Return images to check an export on, or to calibrate it with: evenly from a dataset, else noise.

    Args:
        embedder: The network.
        dataset: As `dataset_at_hand`.
        count: How many, at most.
        train: Whether training images are wanted rather than queries.

    Returns:
        (N, height, width, 3) uint8 of the input size, and what they are, in words.
    """
    if dataset is not None:
        split = "query" if len(dataset.query) and not train else "train"
        paths = dataset.splits[split].paths
        positions = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))
        with contextlib.suppress(CcreidError, OSError):
            pixels = embedder.read_files([paths[position] for position in positions])
            return pixels, f"{split} images of {Path(dataset.name).name}"
    return np.random.default_rng(0).integers(0, 256, (count, *embedder.input_size, 3), dtype=np.uint8), _NOISE


def calibration_images(embedder: Embedder, dataset: ReidDataset | None) -> NDArray[np.uint8]:
    """Return the training images by whose values int8's ranges are chosen.

    Raises:
        UsageError: There are none: the ranges of noise would be wrong ones.
    """
    images, about = sample_images(embedder, dataset, NUM_CALIBRATION_IMAGES, train=True)
    if about == _NOISE:
        raise UsageError(
            "int8 needs images to choose its ranges by, and the run's own are not at hand.",
            "Name images like those of later use: `ccreid export RUN --precision int8 -d DATASET|FOLDER`.",
        )
    return images


def export_model(
    embedder: Embedder,
    form: str,
    out: Path,
    images: NDArray[np.uint8],
    about_images: str,
    *,
    uint8_input: bool = False,
    precision: str = "fp32",
    calibration: NDArray[np.uint8] | None = None,
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
        precision: ``fp32``, or a smaller number format that the form has.
        calibration: As `images`; for int8, what `calibration_images` gives.
        reporter: Where messages go.

    Returns:
        How closely the file agrees.

    Raises:
        UsageError: As `check_request`.
        DataError: The network cannot be exported, the features differ, or the file cannot be written. Whatever was
            at `out` stays as it was.
    """
    check_request(form, uint8_input, out, precision)
    expected = embedder.embed_pixels(images)
    with ExitStack() as stack:
        files = tuple(stack.enter_context(atomic_path(file)) for file in files_of(out, form))
        for file in files:
            file.touch()  # a place that cannot be written says so here, not in the exporters' words
        if form == "safetensors":
            preprocess = json.dumps(embedder.preprocessing.as_json())
            write_safetensors(embedder.model.state_dict(), embedder.model.spec, files[0], preprocess=preprocess)
            found = _read_safetensors(files[0], embedder.preprocessing).embed_pixels(images)
        else:
            inputs = _inputs(images, uint8_input)
            ranges = _inputs(images if calibration is None else calibration, uint8_input)
            network = exported_network(embedder.model, embedder.preprocessing, uint8_input)
            contract = contract_of(embedder, uint8_input)
            example = torch.from_numpy(inputs[:2])
            FORMS[form].write(Work(network, example, files, contract, precision, ranges, reporter or SilentReporter()))
            compute = FORMS[form].load(files)
            # One image alone and then several: the number of images must be free.
            found = np.concatenate([compute(inputs[:1]), compute(inputs[1:])])
        check = compare(found, expected, about_images)
        cosine = check.min_cosine if precision == "fp32" else check.mean_cosine
        if not cosine >= MIN_COSINE[precision]:
            raise DataError(
                f"the exported network differs from PyTorch's (cosine {cosine:.5f}, not {MIN_COSINE[precision]} or "
                f"more; largest difference {check.max_abs_difference:.2e}); {out} was not kept.",
                "Try another --format." if precision == "fp32" else "Leave --precision out, or try fp16.",
            )
    return check


def open_exported(out: Path, form: str, uint8_input: bool) -> Compute:
    """Open an exported file as another program does; it then takes (N, height, width, 3) uint8 images."""
    compute = FORMS[form].load(files_of(out, form))
    return lambda images: compute(_inputs(images, uint8_input))


def _inputs(images: NDArray[np.uint8], uint8_input: bool) -> NDArray[Any]:
    return images if uint8_input else prepared(images)


def compare(found: NDArray[np.float32], expected: NDArray[np.float32], images: str) -> ExportCheck:
    """Compare (N, D) features with those expected; NaN counts as a difference."""
    if found.shape != expected.shape:
        raise DataError(f"the exported network gives features of shape {found.shape}, not {expected.shape}.")
    left, right = found.astype(np.float64), expected.astype(np.float64)
    cosines = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    largest, least, mean = float(np.abs(left - right).max()), float(np.min(cosines)), float(cosines.mean())
    return ExportCheck(images, len(found), largest, least, mean)


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


def _read_safetensors(path: Path, preprocessing: Preprocessing) -> Embedder:
    embedder = open_embedder(ModelRequest(resume=str(path)), logs_dir=path.parent, device="cpu", precision="fp32")
    if embedder.preprocessing != preprocessing:
        raise DataError(f"the preprocessing was not kept: {embedder.preprocessing}, not {preprocessing}.")
    return embedder
