"""OpenVINO files (IR: ``.xml`` with ``.bin`` beside it), by OpenVINO's own converter."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.inference.export_forms import INPUT, OUTPUT, Compute, Work, quietly


def write_openvino(work: Work) -> None:
    """Convert the network; in ``fp16`` the weights are kept in float16.

    Raises:
        OSError: The files could not be written.
    """
    import openvino

    with tempfile.TemporaryDirectory(dir=work.files[0].parent, prefix=f"{work.files[0].name}.") as name, quietly():
        shape = openvino.PartialShape([-1, *work.example.shape[1:]])
        model = openvino.convert_model(work.network, example_input=work.example, input=[shape])
        model.inputs[0].get_tensor().set_names({INPUT})
        model.outputs[0].get_tensor().set_names({OUTPUT})
        model.set_rt_info(json.dumps(work.contract), "ccreid")
        xml = Path(name) / "model.xml"
        try:
            openvino.save_model(model, str(xml), compress_to_fp16=work.precision == "fp16")
        except RuntimeError as error:  # so its file streams say that the disk is full
            raise OSError(f"OpenVINO could not write its files ({error})") from error
        for written, file in zip((xml, xml.with_suffix(".bin")), work.files, strict=True):
            written.replace(file)


def load_openvino(files: tuple[Path, ...]) -> Compute:
    """Open the files in OpenVINO, on the CPU, in float32 (its default there may be bfloat16)."""
    import openvino

    core = openvino.Core()
    model = core.read_model(files[0].read_bytes(), files[1].read_bytes())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def compute(inputs: NDArray[Any]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = compiled([inputs])[compiled.outputs[0]]
        return output

    return compute
