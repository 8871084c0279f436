"""ONNX files, in float32, or made smaller by ONNX Runtime's own converters: float16, or int8 by calibrated ranges."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccreid_cli.core.errors import DataError
from ccreid_cli.inference.export_forms import INPUT, OUTPUT, Compute, Work, quietly

_OPSET = 18
_IN_FLOAT32 = ("ReduceL2", "Pow", "Clip", "Div")
"""Of a float16 file: the pooling's exponent and the length of the feature, whose squares float16 cannot hold."""
_QUANTISED = ("Conv", "Gemm", "MatMul")
_POOLINGS = ("ReduceMean", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax")
_CALIBRATION_BATCH = 16


def write_onnx(work: Work) -> None:
    """Write the graph by PyTorch's newer exporter, or by the older one where the newer fails.

    Raises:
        DataError: Both fail.
    """
    import onnx

    path = work.files[0]
    for newer in (True, False):
        try:
            with quietly():
                trace_onnx(work.network, work.example, path, newer)
            break
        except OSError:  # a full disk
            raise
        except Exception as error:  # the exporters raise nearly every type there is
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if not newer:
                raise DataError(
                    f"this network cannot be exported to ONNX: {reason}.", "Try --format torchscript."
                ) from error
            work.reporter.message("PyTorch's newer ONNX exporter fails here; the older one is tried.")
    model = onnx.load(str(path))
    if work.precision == "fp16":
        model = _halved(model)
    if work.precision == "int8":
        model = _quantised(path, work.calibration)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in work.contract.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def trace_onnx(network: nn.Module, example: Tensor, path: Path, newer: bool) -> None:
    """Write a graph by one of PyTorch's two exporters."""
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


def _halved(model: Any) -> Any:
    """Return the graph with weights and arithmetic in float16; input and output stay as they are."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with quietly():
        small = OnnxModel(
            convert_float_to_float16(model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_IN_FLOAT32])
        )
        small.topological_sort()  # the converter puts its casts at the end
        return small.model


def _quantised(path: Path, inputs: NDArray[Any]) -> Any:
    """Return the graph of `path` with int8 weights (per channel) and uint8 values, in the ranges seen on `inputs`.

    What `_kept_in_float32` names stays as it is: with all of OSNet x0.25 in int8 cosines fall to 0.96, with the rest
    alone they are 0.995 on average.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as name, quietly():
        plain, small = Path(name) / "plain.onnx", Path(name) / "small.onnx"
        quant_pre_process(str(path), str(plain), skip_symbolic_shape=True)
        quantize_static(
            str(plain),
            str(small),
            _Batches(inputs),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=_kept_in_float32(onnx.load(str(plain)).graph),
        )
        return onnx.load(str(small))


def _kept_in_float32(graph: Any) -> list[str]:
    """Name the layers that lose most in int8: the first, depthwise ones, and what is computed from pooled values.

    The last are gates and the head: few numbers, which decide much.
    """
    constants = {tensor.name for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in _QUANTISED]
    kept = [node.name for node in layers if any(item.name == "group" and item.i > 1 for item in node.attribute)]
    pooled: set[str] = set()
    for node in graph.node:  # in the order of computation
        computed = [name for name in node.input if name and name not in constants]
        if node.op_type in _POOLINGS or (computed and pooled.issuperset(computed)):
            pooled.update(node.output)
            kept += [node.name] if node.op_type in _QUANTISED else []
    return [*kept, *[node.name for node in layers[:1]]]


class _Batches:
    """Hands out images a few at a time, as ONNX Runtime's calibration asks for them."""

    def __init__(self, inputs: NDArray[Any]) -> None:
        starts = range(0, len(inputs), _CALIBRATION_BATCH)
        self._batches = iter([inputs[start : start + _CALIBRATION_BATCH] for start in starts])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch by the name of the input, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def load_onnx(files: tuple[Path, ...]) -> Compute:
    """Open an ONNX file in ONNX Runtime, as trackers do: the first input and the first output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
    taken, given = session.get_inputs()[0].name, session.get_outputs()[0].name

    def compute(inputs: NDArray[Any]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = session.run([given], {taken: inputs})[0]
        return output

    return compute


def tensorrt_command(file: Path, height: int, width: int) -> str:
    """Return the command line that builds a TensorRT engine from an ONNX file, for 1 to 64 images at once."""
    shapes = " ".join(
        f"--{which}Shapes={INPUT}:{count}x3x{height}x{width}" for which, count in (("min", 1), ("opt", 16), ("max", 64))
    )
    return f"trtexec --onnx={file} --saveEngine={file.with_suffix('.engine')} {shapes} --fp16"
