"""Exported files in a tracker: BoxMOT, which takes crops in OpenCV's order of colours and resizes them by OpenCV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ccreid_cli import load_model
from ccreid_cli.engine.checkpoint import save_checkpoint
from ccreid_cli.inference import export_onnx
from ccreid_cli.inference.export import export_model
from ccreid_cli.models.reid_net import ModelSpec, ReidNet


@pytest.fixture
def crops(tmp_path: Path) -> list[Path]:
    """Smooth pictures of several sizes, smaller and larger than the network's input, without loss."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8))
        coarse.resize((20 + 17 * number, 40 + 31 * number), Image.Resampling.BICUBIC).save(path)
    return paths


def test_boxmot_gives_the_features_of_extract(
    crops: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("boxmot")
    from boxmot.reid.core.runtime import ReID
    from boxmot.utils.checks import RequirementsChecker

    # It would install the version of ONNX Runtime that it was made with.
    monkeypatch.setattr(RequirementsChecker, "check_packages", lambda *arguments, **options: None)
    trace = export_onnx.trace_onnx
    monkeypatch.setattr(
        export_onnx, "trace_onnx", lambda network, example, path, newer: trace(network, example, path, False)
    )
    torch.manual_seed(0)
    spec = ModelSpec("resnet18", "gem", 8)
    content = {"model": ReidNet(spec).state_dict(), "spec": dict(vars(spec)), "preprocess": {"height": 64, "width": 32}}
    save_checkpoint(tmp_path / "last.pt", content)
    embedder = load_model(tmp_path / "last.pt", device="cpu", precision="fp32", resize="opencv")
    export_model(embedder, "onnx", tmp_path / "reid.onnx", embedder.read_files(crops), "crops")
    tracker = ReID(tmp_path / "reid.onnx")
    found = np.concatenate([tracker(str(crop)) for crop in crops])
    assert tracker.model.input_shape == (64, 32)
    assert (found * embedder.embed(crops)).sum(1).min() >= 0.99
