from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from ccreid_cli.core.errors import CheckpointError, UsageError
from ccreid_cli.models.backbones import FeaturesBackbone
from ccreid_cli.models.key_maps import to_official
from ccreid_cli.models.registry import BACKBONES, BackboneRow
from ccreid_cli.models.reid_net import ModelSpec, ReidNet, build_model
from ccreid_cli.models.weight_files import (
    load_backbone_weights,
    load_reid_weights,
    read_weights,
    resolve_spec,
    spec_from_state,
)

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def released() -> State:
    """ImageNet weights in torchvision's form, classifier included."""
    torch.manual_seed(0)
    return dict(mobilenet_v2().state_dict())


@pytest.fixture(scope="module")
def official() -> State:
    """A trained network under the official code's names."""
    torch.manual_seed(1)
    return to_official(ReidNet(ModelSpec("resnet18")).state_dict())


def _prefixed(state: State) -> State:
    return OrderedDict((f"module.{key}", value) for key, value in state.items())


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "module": _prefixed,
    "state_dict": lambda state: {"state_dict": _prefixed(state), "epoch": 90, "best_prec1": torch.tensor(76.1)},
    "model": lambda state: {"model": state, "optimizer": {}, "args": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "nested twice": lambda state: {"model": {"state_dict": state}},
}


@pytest.mark.parametrize(("form", "name"), [*((form, "weights.pth") for form in FORMS), ("module", "weights.pth.tar")])
def test_every_form_of_imagenet_weights_loads(form: str, name: str, released: State, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save(FORMS[form](released), path)
    assert read_weights(path).kind == "torchvision"
    model = build_model(ModelSpec("mobilenet_v2"), weights=str(path))
    loaded = model.backbone.state_dict()
    assert all(torch.equal(loaded[key], released[key]) for key in loaded)
    assert torch.equal(model.neck.weight, torch.ones(1280)) and model.pooling.p.item() == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_safetensors_loads_and_is_kept_in_float32(dtype: torch.dtype, released: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({key: value.to(dtype) if value.is_floating_point() else value for key, value in released.items()}, path)
    loaded = build_model(ModelSpec("mobilenet_v2"), weights=str(path)).backbone.state_dict()
    assert loaded["features.0.0.weight"].dtype == torch.float32
    torch.testing.assert_close(loaded["features.0.0.weight"], released["features.0.0.weight"].to(dtype).float())


def test_files_older_than_the_step_counters_load(released: State, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    old = {key: value for key, value in released.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, path, _use_new_zipfile_serialization=False)
    loaded = build_model(ModelSpec("mobilenet_v2"), weights=str(path)).backbone.state_dict()
    assert loaded["features.0.1.num_batches_tracked"] == 0
    assert torch.equal(loaded["features.0.1.running_var"], released["features.0.1.running_var"])


def test_ibn_release_loads_by_strict_match(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {
        **BACKBONES["resnet_ibn50a"].load()().state_dict(),
        "fc.weight": torch.zeros(10, 2048),
        "fc.bias": torch.zeros(10),
    }
    path = tmp_path / "resnet50_ibn_a.pth"
    torch.save(state, path)
    assert read_weights(path).kind == "ibn"
    loaded = build_model(ModelSpec("resnet_ibn50a"), weights=str(path)).backbone.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)
    with pytest.raises(CheckpointError, match=r"missing: .*layer1\.0\.bn1\.weight") as caught:
        build_model(ModelSpec("resnet50"), weights=str(path))
    assert caught.value.hint == "The file fits `--arch resnet_ibn50a`."


def test_misfits_are_all_listed(released: State, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    odd = dict(released)
    del odd["features.1.conv.1.weight"]
    odd["features.0.0.weight"] = torch.zeros(7, 3, 3, 3)
    odd.update({f"extra.{i}": torch.zeros(1) for i in range(8)})
    torch.save(odd, path)
    with pytest.raises(CheckpointError) as caught:
        build_model(ModelSpec("mobilenet_v2"), weights=str(path))
    message = caught.value.message
    assert "1 missing: features.1.conv.1.weight" in message
    assert "8 unknown: extra.0, extra.1, extra.2, extra.3, extra.4 and 3 more" in message
    assert "features.0.0.weight is [7, 3, 3, 3], not [32, 3, 3, 3]" in message and str(path) in message


def test_one_missing_step_counter_is_listed_where_others_are_there(released: State, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save({k: v for k, v in released.items() if k != "features.0.1.num_batches_tracked"}, path)
    with pytest.raises(CheckpointError, match=r"1 missing: features\.0\.1\.num_batches_tracked"):
        build_model(ModelSpec("mobilenet_v2"), weights=str(path))


def test_values_that_are_not_numbers_are_refused(released: State, tmp_path: Path) -> None:
    path = tmp_path / "nan.pth"
    torch.save({**released, "features.0.1.bias": torch.full((32,), float("nan"))}, path)
    with pytest.raises(CheckpointError, match=r"NaN or infinity.*features\.0\.1\.bias"):
        build_model(ModelSpec("mobilenet_v2"), weights=str(path))


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(2)],
        torch.zeros(2),
        {},
        {"state_dict": {}},
        {"a": 3},
        {"state_dict": {"a": "text"}},
        {"a": torch.zeros(2, 2).to_sparse()},
        {1: torch.zeros(1)},
        {"a": torch.zeros(1, dtype=torch.complex64)},
        {"a": torch.empty(2, device="meta")},
    ],
    ids=str,
)
def test_what_is_no_state_dict_is_explained(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="no (plain )?state dict"):
        read_weights(path)


def _official_file(state: State, path: Path) -> Path:
    torch.save({"state_dict": _prefixed(state), "epoch": 50, "best_mAP": np.float64(0.826)}, path)
    return path


def test_official_checkpoint_is_recognised_and_loads_whole(official: State, tmp_path: Path) -> None:
    file = read_weights(_official_file(official, tmp_path / "model_best.pth.tar"))
    assert (file.kind, file.is_reid, file.spec) == ("official", True, ModelSpec("resnet18"))
    assert file.meta == {"epoch": 50, "best_mAP": 0.826}
    model = build_model(ModelSpec("resnet18"), weights=str(file.path))
    loaded = to_official(model.state_dict())
    assert loaded.keys() == official.keys() and all(torch.equal(loaded[key], official[key]) for key in loaded)


def test_remarks_reach_the_user(official: State, tmp_path: Path) -> None:
    from ccreid_cli.core.reporter import SilentReporter

    said: list[str] = []
    reporter = SilentReporter()
    reporter.message = said.append  # type: ignore[method-assign]  # a recorder in place of the silence
    build_model(ModelSpec("resnet18"), weights=str(_official_file(official, tmp_path / "a.pth.tar")), reporter=reporter)
    assert any("not a tar archive" in line for line in said)


def test_features_of_an_official_checkpoint_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(2)
    source = ReidNet(ModelSpec("resnet18", num_features=32)).eval()
    path = _official_file(to_official(source.state_dict()), tmp_path / "c.pth.tar")
    file = read_weights(path)
    assert file.spec == ModelSpec("resnet18", num_features=32)
    model = ReidNet(file.spec, initialize_backbone=False).eval()
    load_reid_weights(model, file.state_dict, source=str(path))
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(model(images), source(images))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"arch": "resnet50"}, "--arch resnet50 (the file: resnet18)"),
        ({"pooling_type": "avg"}, "--pooling-type avg (the file: gem)"),
        ({"num_features": 128}, "--features 128 (the file: 0)"),
    ],
)
def test_contradicting_flags_are_refused(change: dict[str, Any], part: str, official: State, tmp_path: Path) -> None:
    path = _official_file(official, tmp_path / "c.pth")
    with pytest.raises(UsageError) as caught:
        resolve_spec(read_weights(path), **change)
    assert part in caught.value.message
    with pytest.raises(UsageError):
        build_model(ModelSpec(**{**asdict(ModelSpec("resnet18")), **change}), weights=str(path))


def test_flags_that_agree_or_leave_no_trace_are_taken(tmp_path: Path) -> None:
    state = to_official(ReidNet(ModelSpec("resnet18", "max"), initialize_backbone=False).state_dict())
    file = read_weights(_official_file(state, tmp_path / "c.pth"))
    assert resolve_spec(file) == ModelSpec("resnet18", "avg")
    assert resolve_spec(file, arch="resnet18", pooling_type="max") == ModelSpec("resnet18", "max")
    assert resolve_spec(file, dropout=0.5).dropout == 0.5
    with pytest.raises(UsageError, match="gem"):
        resolve_spec(file, pooling_type="gem")


def test_reid_misfits_are_listed(official: State, tmp_path: Path) -> None:
    odd = {**official, "extra.weight": torch.zeros(751, 512)}
    del odd["feat_bn.running_var"]
    file = read_weights(_official_file(odd, tmp_path / "c.pth"))
    model = ReidNet(ModelSpec("resnet18"))
    before = model.neck.running_mean.clone()
    with pytest.raises(CheckpointError) as caught:
        load_reid_weights(model, {**file.state_dict, "neck.running_mean": torch.ones(512)}, source="c.pth")
    assert "1 missing: neck.running_var; 1 unknown: extra.weight" in caught.value.message
    assert torch.equal(model.neck.running_mean, before)


def test_backbone_weights_are_no_checkpoint(released: State, tmp_path: Path) -> None:
    torch.save(released, tmp_path / "imagenet.pth")
    with pytest.raises(CheckpointError, match="only a backbone") as caught:
        resolve_spec(read_weights(tmp_path / "imagenet.pth"))
    assert caught.value.hint is not None and "--weights" in caught.value.hint


def test_unknown_network_is_compared_with_the_nearest(official: State) -> None:
    odd = {key: value for key, value in official.items() if key != "base.7.1.conv2.weight"}
    with pytest.raises(CheckpointError, match=r"nearest to resnet18, but has 1 missing: layer4\.1\.conv2\.weight"):
        spec_from_state(odd, source="c.pth")


def _ccreid_file(model: ReidNet, path: Path, **changes: Any) -> Path:
    content = {"format": "ccreid-checkpoint", "model": model.state_dict(), "spec": asdict(model.spec), "epoch": 3}
    torch.save({**content, **changes}, path)
    return path


def test_own_checkpoint_knows_its_whole_spec(tmp_path: Path) -> None:
    spec = ModelSpec("resnet18", "max", 16, 0.3)
    file = read_weights(_ccreid_file(ReidNet(spec), tmp_path / "last.pt"))
    assert (file.kind, file.spec, file.meta["epoch"]) == ("ccreid", spec, 3)
    with pytest.raises(UsageError, match="--pooling-type avg"):
        resolve_spec(file, pooling_type="avg")


def test_own_checkpoint_with_another_spec_than_its_tensors_is_refused(tmp_path: Path) -> None:
    model = ReidNet(ModelSpec("resnet18"))
    wrong = {**asdict(model.spec), "arch": "resnet34"}
    with pytest.raises(CheckpointError, match="resnet34"):
        _ = read_weights(_ccreid_file(model, tmp_path / "a.pt", spec=wrong)).spec
    with pytest.raises(CheckpointError, match="does not know"):
        read_weights(_ccreid_file(model, tmp_path / "b.pt", spec={"network": "resnet18"}))


def test_backbone_loader_leaves_whole_networks_to_the_other(official: State, tmp_path: Path) -> None:
    path = _official_file(official, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="whole re-identification network"):
        load_backbone_weights(ReidNet(ModelSpec("resnet18")), path)


def test_missing_weight_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        build_model(ModelSpec("resnet18"), weights=str(tmp_path / "none.pth"))


def test_a_new_backbone_takes_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_line() -> FeaturesBackbone:
        return FeaturesBackbone(nn.Sequential(nn.Conv2d(3, 6, 3, 4), nn.BatchNorm2d(6), nn.ReLU()), 6)

    monkeypatch.setitem(BACKBONES, "one_line", BackboneRow("one convolution", lambda: one_line))
    model = build_model(ModelSpec("one_line", num_features=5), weights="none")
    assert model(torch.randn(4, 3, 16, 16)).shape == (4, 5)
    assert read_weights(_ccreid_file(model, tmp_path / "one_line.pt")).spec == model.spec
