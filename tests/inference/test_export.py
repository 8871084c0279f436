from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccreid_cli import Embedder, load_model
from ccreid_cli.core.checking import validate
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.engine.checkpoint import save_checkpoint
from ccreid_cli.images.augment import normalize
from ccreid_cli.inference import export, export_onnx
from ccreid_cli.inference.export import (
    ExportCheck,
    calibration_images,
    compare,
    dataset_at_hand,
    export_model,
    open_exported,
    sample_images,
)
from ccreid_cli.inference.export_onnx import tensorrt_command
from ccreid_cli.inference.exported_scores import score_both
from ccreid_cli.inference.model_card import card_text, model_card, write_cards
from ccreid_cli.models.backbones import Backbone
from ccreid_cli.models.registry import BACKBONES, BackboneRow
from ccreid_cli.models.reid_net import ModelSpec, ReidNet

HEIGHT, WIDTH, DIM = 32, 16, 8
SCORES = {"epoch": 3, "mAP": 0.123, "mINP": 0.05, "rank1": 0.456, "rank5": 0.5, "rank10": 0.6}


class Wide(Backbone):
    """Two convolutions: little to trace and compute, and most of a file is weights."""

    def __init__(self) -> None:
        super().__init__(512)
        self.conv1 = nn.Conv2d(3, 64, 3, stride=4, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 512, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(512)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(images))))))
        return result


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "wide", BackboneRow("two convolutions", lambda: Wide))
        yield load_checkpoint_of(ModelSpec("wide", "gem", DIM), tmp_path_factory.mktemp("secret-place") / "tiny")


def load_checkpoint_of(spec: ModelSpec, folder: Path) -> Embedder:
    """Write a checkpoint that says all that one can say, and load it."""
    torch.manual_seed(0)
    config = validate({"dataset": "toy", "data_dir": folder, "logs_dir": folder, "height": HEIGHT}, "test")
    content: dict[str, Any] = {"model": ReidNet(spec).state_dict(), "spec": dict(vars(spec))}
    content["preprocess"] = {"height": HEIGHT, "width": WIDTH}
    content["config"] = config.to_json()
    content["training"] = {"epoch": 4, "last": json.dumps(SCORES), "best": json.dumps({**SCORES, "epoch": 1})}
    path = folder / "checkpoints" / "last.pt"
    save_checkpoint(path, content)
    recipe = {"name": "toy", "title": "The toy recipe"}
    (folder / "environment.json").write_text(json.dumps({"recipe": recipe}))
    return load_model(path, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, HEIGHT, WIDTH, 3), dtype=np.uint8)


def older_exporter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer exporter takes ten seconds and fails with some pairs of torch and onnxscript."""
    original = export_onnx.trace_onnx

    def trace(network: torch.nn.Module, example: torch.Tensor, path: Path, newer: bool) -> None:
        if newer:
            raise RuntimeError("not here")
        original(network, example, path, newer)

    monkeypatch.setattr(export_onnx, "trace_onnx", trace)


def load_as_trackers_do(path: Path) -> Any:
    """Fixed height and width read off the first input, float32 NCHW in, first output out."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entry, result = session.get_inputs()[0], session.get_outputs()[0]
    assert len(session.get_inputs()) == len(session.get_outputs()) == 1
    return session, entry, lambda batch: session.run([result.name], {entry.name: batch})[0]


@pytest.mark.parametrize(
    ("spec", "newer"),
    [
        (ModelSpec("timm:test_vit", "class", height=HEIGHT, width=WIDTH), True),
        (ModelSpec("resnet18", "gem", DIM), False),
    ],
)
def test_onnx_file_is_what_trackers_take(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: ModelSpec, newer: bool
) -> None:
    """Once by each exporter: neither is quick."""
    pytest.importorskip("onnx")
    if newer:
        pytest.importorskip("timm")
    else:
        older_exporter_only(monkeypatch)
    embedder = load_checkpoint_of(spec, tmp_path / "run")
    out = tmp_path / "reid.onnx"
    check = export_model(embedder, "onnx", out, images, "noise")
    assert check.num_images == 5 and check.min_cosine > 0.99999 and check.max_abs_difference < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"reid.onnx", "run"}
    session, entry, run = load_as_trackers_do(out)
    assert (entry.name, entry.type, entry.shape[1:]) == ("images", "tensor(float)", [3, HEIGHT, WIDTH])
    assert isinstance(entry.shape[0], str)
    batch = normalize(torch.from_numpy(images).permute(0, 3, 1, 2)).contiguous().numpy()
    for count in (1, 2, 5):
        features = run(batch[:count])
        assert features.dtype == np.float32 and features.shape == (count, embedder.embedding_dim)
        np.testing.assert_allclose(features, embedder.embed(images[:count]), atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert about["model"] == embedder.fingerprint
    assert json.loads(about["preprocess"])["mean"] == [0.485, 0.456, 0.406]
    assert json.loads(about["input"])["shape"] == ["N", 3, HEIGHT, WIDTH]


def test_uint8_onnx_takes_raw_pixels(
    embedder: Embedder, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    older_exporter_only(monkeypatch)
    export_model(embedder, "onnx", tmp_path / "u8.onnx", images, "noise", uint8_input=True)
    _, entry, run = load_as_trackers_do(tmp_path / "u8.onnx")
    assert (entry.type, entry.shape[1:]) == ("tensor(uint8)", [HEIGHT, WIDTH, 3])
    np.testing.assert_allclose(run(images), embedder.embed(images), atol=1e-4)


@pytest.mark.parametrize(("precision", "size"), [("fp16", 0.6), ("int8", 0.4)])
def test_smaller_numbers_give_a_smaller_file_of_nearly_the_same_features(
    embedder: Embedder,
    images: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    size: float,
) -> None:
    pytest.importorskip("onnxruntime")
    older_exporter_only(monkeypatch)
    out, whole = tmp_path / "small.onnx", tmp_path / "whole.onnx"
    check = export_model(embedder, "onnx", out, images, "noise", precision=precision, calibration=images)
    export_model(embedder, "onnx", whole, images, "noise")
    assert 0.99 <= check.mean_cosine < 1 and out.stat().st_size < size * whole.stat().st_size
    _, entry, run = load_as_trackers_do(out)
    assert (entry.type, entry.shape[1:]) == ("tensor(float)", [3, HEIGHT, WIDTH])
    features = run(normalize(torch.from_numpy(images).permute(0, 3, 1, 2)).contiguous().numpy())
    assert features.dtype == np.float32 and compare(features, embedder.embed(images), "").mean_cosine >= 0.99


def test_a_file_of_smaller_numbers_that_differs_too_much_is_not_kept(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    older_exporter_only(monkeypatch)
    embedder, black = load_checkpoint_of(ModelSpec("resnet18", "gem", DIM), tmp_path / "run"), np.zeros_like(images)
    with pytest.raises(DataError, match=r"cosine .*not 0\.99 or more.*not kept"):
        export_model(embedder, "onnx", tmp_path / "x.onnx", images, "", precision="int8", calibration=black)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_openvino_files_give_the_same_features(
    embedder: Embedder, images: NDArray[np.uint8], tmp_path: Path, precision: str
) -> None:
    openvino = pytest.importorskip("openvino")
    check = export_model(embedder, "openvino", tmp_path / "m.xml", images, "noise", precision=precision)
    assert check.mean_cosine > (0.999 if precision == "fp16" else 0.99999)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    model = openvino.Core().read_model(tmp_path / "m.xml")
    assert model.inputs[0].any_name == "images" and model.outputs[0].any_name == "features"
    assert [len(model.inputs), str(model.inputs[0].partial_shape)] == [1, f"[?,3,{HEIGHT},{WIDTH}]"]
    assert json.loads(model.get_rt_info("ccreid").astype(str))["model"] == embedder.fingerprint


def test_what_a_form_cannot_hold_is_refused_by_name(embedder: Embedder, images: NDArray[np.uint8]) -> None:
    for form, precision, hint in (("torchscript", "fp16", "onnx or openvino"), ("safetensors", "int8", "onnx")):
        with pytest.raises(UsageError, match=f"--precision {precision}: {form} files") as caught:
            export_model(embedder, form, Path("x"), images, "", precision=precision)
        assert hint in str(caught.value.hint)
    with pytest.raises(UsageError, match="int8 needs images"):
        calibration_images(embedder, None)


def test_a_file_scores_as_the_network_it_was_made_from(embedder: Embedder, tmp_path: Path) -> None:
    dataset = load_dataset(str(tiny.make_dataset(tmp_path / "data")), tmp_path, SilentReporter())
    images, about = sample_images(embedder, dataset, 3)
    assert images.shape == (3, HEIGHT, WIDTH, 3) and about.startswith("query images of")
    assert len(calibration_images(embedder, dataset)) == min(128, len(dataset.train))
    out = tmp_path / "m.torchscript"
    export_model(embedder, "torchscript", out, images, about)
    scores = score_both(embedder, open_exported(out, "torchscript", False), dataset, tmp_path, SilentReporter())
    assert scores["before"] == pytest.approx(scores["after"], abs=1e-6) and 0 < scores["before"] <= 1


def test_where_boxmot_takes_a_file_for_another_size_is_said() -> None:
    """BoxMOT 25 reads the size off ONNX files only; of others it thinks what their names make it think."""
    torchscript, onnx = export.FORMS["torchscript"], export.FORMS["onnx"]
    assert not torchscript.boxmot_misreads(Path("reid.torchscript"), 256, 128)
    said = torchscript.boxmot_misreads(Path("reid.torchscript"), 128, 64)
    assert "crops of 256x128, not 128x64" in said and "--format onnx" in said
    assert "crops of 256x256, not 256x128" in torchscript.boxmot_misreads(Path("my-veri.torchscript"), 256, 128)
    assert not onnx.boxmot_misreads(Path("my-veri.onnx"), 128, 64)


def test_the_dataset_to_check_on_takes_the_users_names(embedder: Embedder, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a_7.png", "b_7.png", "a_8.png"):
        Image.new("RGB", (8, 16)).save(tmp_path / name)
    found = dataset_at_hand(embedder, None, str(tmp_path), None, r"(?P<camera>[ab])_")
    assert found is not None and sorted(set(found.train.cameras)) == ["a", "b"]


def test_the_tensorrt_command_names_input_and_sizes() -> None:
    command = tensorrt_command(Path("a/reid.onnx"), 256, 128)
    assert command.startswith("trtexec --onnx=a/reid.onnx --saveEngine=a/reid.engine")
    assert "--minShapes=images:1x3x256x128" in command and "--maxShapes=images:64x3x256x128" in command


@pytest.mark.parametrize("uint8_input", [False, True])
def test_torchscript_file_runs_without_ccreid(
    embedder: Embedder, images: NDArray[np.uint8], tmp_path: Path, uint8_input: bool
) -> None:
    out = tmp_path / "reid.torchscript"
    check = export_model(embedder, "torchscript", out, images, "noise", uint8_input=uint8_input)
    assert check.min_cosine > 0.99999
    extra = {"ccreid.json": ""}
    network = torch.jit.load(str(out), _extra_files=extra)
    inputs = torch.from_numpy(images)
    if not uint8_input:
        inputs = normalize(inputs.permute(0, 3, 1, 2)).contiguous()
    np.testing.assert_allclose(network(inputs[:3]).numpy(), embedder.embed(images[:3]), atol=1e-4)
    assert json.loads(extra["ccreid.json"])["preprocess_inside"] is uint8_input


def test_safetensors_file_is_the_same_model(embedder: Embedder, images: NDArray[np.uint8], tmp_path: Path) -> None:
    check = export_model(embedder, "safetensors", tmp_path / "m.safetensors", images, "noise")
    assert check.max_abs_difference == 0
    again = load_model(tmp_path / "m.safetensors", device="cpu")
    assert (again.fingerprint, again.preprocessing) == (embedder.fingerprint, embedder.preprocessing)


def test_a_file_that_differs_is_not_kept(
    embedder: Embedder, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "reid.torchscript"
    out.write_text("what was there")
    form = export.FORMS["torchscript"]

    def load_wrongly(files: tuple[Path, ...]) -> Any:
        compute = form.load(files)
        return lambda inputs: compute(inputs)[:, ::-1]

    monkeypatch.setitem(export.FORMS, "torchscript", replace(form, load=load_wrongly))
    with pytest.raises(DataError, match="differs"):
        export_model(embedder, "torchscript", out, images, "noise")
    assert out.read_text() == "what was there" and list(tmp_path.iterdir()) == [out]


def test_compare_measures_the_worst_image() -> None:
    expected = np.eye(2, dtype=np.float32)
    turned = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    check = compare(turned, expected, "")
    assert check.min_cosine == pytest.approx(0.8) and check.max_abs_difference == pytest.approx(0.6)
    assert np.isnan(compare(turned + np.nan, expected, "").min_cosine)
    with pytest.raises(DataError, match="shape"):
        compare(turned[:, :1], expected, "")


def test_what_cannot_be_exported_is_refused_at_once(
    embedder: Embedder, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError) as caught:
        export_model(embedder, "onx", tmp_path / "x", images, "")
    assert caught.value.hint == 'did you mean "onnx"?'
    with pytest.raises(UsageError, match="weights only"):
        export_model(embedder, "safetensors", tmp_path / "x", images, "", uint8_input=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match="needs the package onnx") as caught:
        export_model(embedder, "onnx", tmp_path / "x", images, "")
    assert "ccreid[onnx]" in str(caught.value.hint) and list(tmp_path.iterdir()) == []


def test_failing_exporters_are_explained(
    embedder: Embedder, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")

    def fail(*arguments: object) -> None:
        raise RuntimeError("operator foo\nis unknown")

    monkeypatch.setattr(export_onnx, "trace_onnx", fail)
    with pytest.raises(DataError, match="operator foo is unknown"):
        export_model(embedder, "onnx", tmp_path / "x.onnx", images, "")


@pytest.mark.parametrize("form", export.SUFFIXES)
def test_a_full_disk_is_said(
    embedder: Embedder,
    images: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_room: None,
    form: str,
) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        older_exporter_only(monkeypatch)
    with pytest.raises(DataError, match="could not write"):
        export_model(embedder, form, tmp_path / "out", images, "noise")
    assert list(tmp_path.iterdir()) == []


def test_images_to_check_on_are_noise_where_the_dataset_is_not(embedder: Embedder, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        (tmp_path / "toy").write_text("no folder")
        pixels, words = sample_images(embedder, dataset_at_hand(embedder, folder), 8)
        assert pixels.shape == (8, HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8 and words == "random noise"


def test_card_says_what_there_is_to_know(embedder: Embedder, tmp_path: Path) -> None:
    out, check = tmp_path / "reid.torchscript", ExportCheck("noise", 5, 1e-6, 1.0)
    out.write_bytes(b"a network")
    card = model_card(embedder, "torchscript", out, check, uint8_input=False)
    as_json, as_text = write_cards(card, out)
    assert json.loads(as_json.read_text()) == json.loads(json.dumps(card))
    assert card["numbers"]["last"]["mAP"] == 0.123 and card["recipe"]["title"] == "The toy recipe"
    assert card["input"]["shape"] == ["N", 3, HEIGHT, WIDTH] and card["output"]["shape"] == ["N", DIM]
    text = as_text.read_text()
    assert "| last | 12.3 | 45.6 | 50.0 | 60.0 | 5.0 | 4 |" in text and "| best |" in text
    assert all(part in text for part in ("The toy recipe", "MIT", "personal data", "Drawn by ccreid", "32 x 16"))
    assert "secret-place" not in text + as_json.read_text()


def test_card_of_weights_that_say_nothing(embedder: Embedder, images: NDArray[np.uint8], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    check = export_model(embedder, "safetensors", out, images, "noise")
    again = load_model(out, device="cpu")
    text = card_text(model_card(again, "safetensors", out, check, uint8_input=False))
    assert "unknown dataset" in text and "No evaluation is recorded" in text and "load_model" in text
