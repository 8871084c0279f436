"""Files of other programs, made under their true key names: what each is taken for, and that it loads."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from torch import Tensor

from ccreid_cli.core.errors import CheckpointError, UsageError
from ccreid_cli.models.file_forms import export_backbone
from ccreid_cli.models.key_maps import to_official
from ccreid_cli.models.recognising import recognise
from ccreid_cli.models.reid_net import ModelSpec, ReidNet, build_model
from ccreid_cli.models.weight_files import adopted_spec, load_reid_weights, read_weights, resolve_spec

State = dict[str, Tensor]


def _at(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def _linear(name: str, out: int, width: int = 512) -> State:
    return {f"{name}.weight": torch.ones(out, width), f"{name}.bias": torch.ones(out)}


def _neck(name: str, width: int = 512) -> State:
    neck = torch.nn.BatchNorm1d(width)
    torch.nn.init.uniform_(neck.running_mean)
    return _at(f"{name}.", dict(neck.state_dict()))


@pytest.fixture(scope="module")
def net() -> ReidNet:
    torch.manual_seed(0)
    net = ReidNet(ModelSpec("resnet18", "gem", 0))
    for number, tensor in enumerate([*net.parameters(), *net.buffers()]):  # one number each: files take no room
        tensor.data = torch.tensor(number, dtype=tensor.dtype).expand(tensor.shape)
    net.pooling.p.data = torch.tensor([2.5])
    return net


@pytest.fixture(scope="module")
def backbone(net: ReidNet) -> State:
    return dict(net.backbone.state_dict())


BACKBONES_OF: dict[str, tuple[str, Callable[[State], Any]]] = {
    "layumi without batch norm": (
        "layumi",
        lambda b: {
            **_at("model.", b),
            **_linear("classifier.add_block.0", 512),
            **_linear("classifier.classifier.0", 9),
        },
    ),
    "layumi PCB": (
        "layumi",
        lambda b: {**_at("model.", b), **_linear("classifier0.add_block.0", 256), **_neck("classifier0.add_block.1")},
    ),
    "Lightning": (
        "Lightning",
        lambda b: {
            "state_dict": {**_at("model.", b), **_linear("head", 9), "criterion.centers": torch.ones(9, 512)},
            "pytorch-lightning_version": "2.4.0",
            "hyper_parameters": {"lr": 0.1},
        },
    ),
    "Lightning with a compiled part": (
        "Lightning",
        lambda b: {
            "state_dict": {**_at("net._orig_mod.", b), **_linear("head._orig_mod", 9)},
            "pytorch-lightning_version": "2.4.0",
        },
    ),
    "SWA": ("SWA", lambda b: {"n_averaged": torch.tensor(3), **_at("module.", b)}),
    "SWA of DDP": ("SWA", lambda b: {"n_averaged": torch.tensor(3), **_at("module.module.", b)}),
    "DDP of SWA": ("SWA", lambda b: _at("module.", {"n_averaged": torch.tensor(3), **_at("module.", b)})),
    "MoCo": (
        "MoCo",
        lambda b: {
            "arch": "resnet18",
            "epoch": 200,
            "state_dict": _at(
                "module.",
                {
                    **_at("encoder_q.", {**b, **_linear("fc.0", 512), **_linear("fc.2", 128)}),
                    **_at("encoder_k.", {**b, **_linear("fc.0", 512), **_linear("fc.2", 128)}),
                    "queue": torch.ones(128, 64),
                    "queue_ptr": torch.zeros(1, dtype=torch.long),
                },
            ),
        },
    ),
    "MoCo v3": (
        "MoCo v3",
        lambda b: {
            "state_dict": {
                **_at("module.base_encoder.", b),
                **_at("module.momentum_encoder.", b),
                **_linear("module.predictor.0", 9),
            }
        },
    ),
    "DINO": (
        "DINO",
        lambda b: {
            "student": _at("module.backbone.", b),
            "teacher": {**_at("backbone.", b), **_linear("head.mlp.0", 9), "head.last_layer.weight_v": torch.ones(4)},
            "epoch": 3,
        },
    ),
    "CION": (
        "CION",
        lambda b: {
            "student": _at("module.", {**_at("backbone.", b), **_linear("head.mlp.0", 9)}),
            "teacher": _at(
                "module.",
                {**_at("backbone.", b), **_linear("head.mlp.0", 9), "head.last_layer.weight_g": torch.ones(9, 1)},
            ),
            "epoch": 100,
            "args": Namespace(arch="resnet50_ibn", global_crops_scale=(0.8, 1.0)),
            "Loss": {"center": torch.zeros(1, 9)},
        },
    ),
    "SimSiam": (
        "SimSiam",
        lambda b: {
            "state_dict": _at(
                "module.",
                {
                    **_at("encoder.", {**b, **_linear("fc.0", 512), **_neck("fc.1"), **_linear("fc.3", 512)}),
                    **_linear("predictor.0", 9),
                },
            )
        },
    ),
    "OpenMMLab": ("OpenMMLab", lambda b: {"meta": {}, "state_dict": {**_at("backbone.", b), **_linear("head.fc", 9)}}),
    "compiled": ("", lambda b: _at("_orig_mod.", {**b, **_linear("fc", 1000)})),
    "DDP of compiled": ("", lambda b: _at("module._orig_mod.", b)),
    "compiled DDP": ("", lambda b: _at("_orig_mod.module.", b)),
    "compiled inside": ("encoder", lambda b: {**_at("encoder._orig_mod.", b), **_linear("decoder", 3)}),
    "someone's": ("net.body", lambda b: {**_at("net.body.", b), **_linear("net.top", 3)}),
    "mean teacher": ("teacher", lambda b: {**_at("student.", b), **_at("teacher.", b)}),
    "strong-baseline without neck": (
        "reid-strong-baseline",
        lambda b: {**_at("base.", b), "classifier.weight": torch.ones(751, 512)},
    ),
    "official, cut at the pooling": (
        "Cluster Contrast",
        lambda b: {"state_dict": to_official(_at("backbone.", b)), "epoch": 3},
    ),
    "torchreid": ("", lambda b: {"state_dict": {**b, **_linear("classifier", 751)}, "rank1": 0.9}),
}


@pytest.mark.parametrize("name", BACKBONES_OF)
def test_the_backbone_of_a_foreign_file_starts_a_training(name: str, backbone: State, tmp_path: Path) -> None:
    looks_like, make = BACKBONES_OF[name]
    path = tmp_path / "foreign.pth"
    torch.save(make(backbone), path)
    file = read_weights(path)
    assert not file.is_reid and looks_like in file.program
    assert not looks_like or looks_like in " ".join(file.notes)
    # `-a` was not typed: the default gives way.
    model = build_model(ModelSpec("resnet50", "avg", 7), weights=str(path), typed=())
    assert model.spec == ModelSpec("resnet18", "avg", 7)
    assert all(torch.equal(value, backbone[key]) for key, value in model.backbone.state_dict().items())
    with pytest.raises(CheckpointError, match=r"foreign\.pth.*only a backbone \(resnet18\)") as caught:
        resolve_spec(file)
    assert f"ccreid train -d DATASET --weights {path}" in str(caught.value.hint)


def test_the_backbone_of_a_foreign_file_is_written_for_torchvision(backbone: State, tmp_path: Path) -> None:
    torch.save(BACKBONES_OF["MoCo"][1](backbone), tmp_path / "foreign.pth")
    export_backbone(read_weights(tmp_path / "foreign.pth"), tmp_path / "backbone.pth")
    again = read_weights(tmp_path / "backbone.pth")
    assert (again.kind, again.notes) == ("torchvision", ()) and again.state_dict.keys() == backbone.keys()


def _fastreid(net: ReidNet, *, embedding: bool = False, gem: bool = True) -> State:
    head = {"heads.weight": torch.ones(751, 512)}
    if gem:
        head["heads.pool_layer.p"] = net.pooling.p.detach()
    number = 0
    if embedding:
        head["heads.bottleneck.0.weight"] = torch.randn(32, 512, 1, 1)
        number = 1
    head |= _neck(f"heads.bottleneck.{number}", 32 if embedding else 512)
    pixels = {"pixel_mean": torch.ones(1, 3, 1, 1), "pixel_std": torch.ones(1, 3, 1, 1)}
    return {**_at("backbone.", dict(net.backbone.state_dict())), **head, **pixels}


NETWORKS: dict[str, tuple[ModelSpec, list[str], Callable[[ReidNet], Any]]] = {
    "fast-reid": (
        ModelSpec("resnet18", "gem"),
        ["fast-reid", "heads.weight [751, 512]"],
        lambda net: {"model": _fastreid(net), "optimizer": {}, "iteration": 9},
    ),
    "fast-reid with an embedding": (
        ModelSpec("resnet18", "avg", 32),
        ["fast-reid", "--pooling-type max"],
        lambda net: {"model": _at("module.", _fastreid(net, embedding=True, gem=False))},
    ),
    "strong-baseline": (
        ModelSpec("resnet18", "avg"),
        ["reid-strong-baseline", "classifier.weight [751, 512]", "no ReLU"],
        lambda net: {
            **_at("base.", dict(net.backbone.state_dict())),
            **_neck("bottleneck"),
            "classifier.weight": torch.ones(751, 512),
        },
    ),
    "SpCL": (
        ModelSpec("resnet18", "avg"),
        ["--pooling-type max"],
        lambda net: {
            "state_dict": _at(
                "module.", to_official({k: v for k, v in net.state_dict().items() if not k.startswith("pooling.")})
            ),
            "epoch": 50,
            "best_mAP": 0.7,
        },
    ),
    "PPLR": (
        ModelSpec("resnet18", "avg"),
        ["PPLR", "bnneck0.weight [512]", "classifier.weight [751, 512]"],
        lambda net: {
            "state_dict": {
                **{k: v for k, v in to_official(net.state_dict()).items() if k.startswith("base.")},
                **_neck("bnneck"),
                "classifier.weight": torch.ones(751, 512),
                **{key: value for part in range(3) for key, value in _neck(f"bnneck{part}").items()},
                **{f"classifier{part}.weight": torch.ones(751, 512) for part in range(3)},
            },
            "epoch": 50,
        },
    ),
    "torchreid's ResNet with a head": (
        ModelSpec("resnet18", "avg", 32, relu=True),
        ["torchreid", "classifier.weight [751, 32]"],
        lambda net: {
            "state_dict": _at(
                "module.",
                {
                    **dict(net.backbone.state_dict()),
                    **_linear("fc.0", 32),
                    **_neck("fc.1", 32),
                    **_linear("classifier", 751, 32),
                },
            ),
            "epoch": 60,
            "rank1": 0.9,
        },
    ),
    "layumi": (
        ModelSpec("resnet18", "avg", 32),
        ["layumi", "classifier.classifier.0.weight [751, 32]", "model.fc.bias [1000]", "stride of 2"],
        lambda net: {
            **_at("model.", {**dict(net.backbone.state_dict()), **_linear("fc", 1000)}),
            **_linear("classifier.add_block.0", 32),
            **_neck("classifier.add_block.1", 32),
            **_linear("classifier.classifier.0", 751, 32),
        },
    ),
    "official with a leftover classifier": (
        ModelSpec("resnet18", "gem"),
        ["classifier.weight [751, 512]", "classifier.bias [751]"],
        lambda net: {"state_dict": _at("module.", {**to_official(net.state_dict()), **_linear("classifier", 751)})},
    ),
    "official in Lightning": (
        ModelSpec("resnet18", "gem"),
        ["criterion.centers [9, 512]"],
        lambda net: {
            "state_dict": {**_at("model.", to_official(net.state_dict())), "criterion.centers": torch.ones(9, 512)},
            "pytorch-lightning_version": "2.4.0",
        },
    ),
    "ccreid, averaged and compiled": (
        ModelSpec("resnet18", "gem"),
        [],
        lambda net: {"n_averaged": torch.tensor(2), **_at("module._orig_mod.", dict(net.state_dict()))},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_network_of_a_foreign_file_is_loaded(name: str, net: ReidNet, tmp_path: Path) -> None:
    spec, said, make = NETWORKS[name]
    path = tmp_path / "foreign.pth"
    content = make(net)
    torch.save(content, path)
    file = read_weights(path)
    assert file.is_reid and resolve_spec(file) == spec
    notes = " ".join(file.notes)
    assert all(words in notes for words in said), notes
    spec = replace(spec, relu=False)  # which training leaves out
    assert adopted_spec(file, ModelSpec("resnet50", "gem", 9), ()) == spec
    model = build_model(ModelSpec("resnet50", "gem", 9), weights=str(path), typed=())
    assert model.spec == spec
    backbone = net.backbone.state_dict()
    assert all(torch.equal(value, backbone[key]) for key, value in model.backbone.state_dict().items())
    tensors = [value for value in _tensors(content) if value.shape == model.neck.running_mean.shape]
    assert any(torch.equal(model.neck.running_mean, value) for value in tensors)
    if spec.pooling_type == "gem":
        assert model.pooling.p.item() == 2.5
    with pytest.raises(UsageError, match=r"--features 9 \(the file: "):
        build_model(ModelSpec("resnet18", num_features=9), weights=str(path), typed=("num_features",))


def _tensors(content: Any) -> list[Tensor]:
    if isinstance(content, Tensor):
        return [content]
    return [tensor for part in content.values() for tensor in _tensors(part)] if isinstance(content, dict) else []


def test_an_embedding_of_fast_reid_computes_the_same(net: ReidNet, tmp_path: Path) -> None:
    state = _fastreid(net, embedding=True, gem=False)
    torch.save({"model": state}, tmp_path / "f.pth")
    file = read_weights(tmp_path / "f.pth")
    model = ReidNet(file.spec).eval()
    load_reid_weights(model, file.state_dict, "f.pth")
    maps = torch.randn(2, 512, 1, 1)
    convolved = torch.nn.functional.conv2d(maps, state["heads.bottleneck.0.weight"]).flatten(1)
    assert model.embedding is not None
    torch.testing.assert_close(model.embedding(maps.flatten(1)), convolved)


def test_a_foreign_network_that_ccreid_lacks_is_named(net: ReidNet, tmp_path: Path) -> None:
    path = tmp_path / "sbs.pth"
    torch.save({"model": {**_fastreid(net), "backbone.NL_2.0.g.weight": torch.ones(4, 8, 1, 1)}}, path)
    with pytest.raises(CheckpointError, match=r"sbs\.pth.*fast-reid.*nearest to resnet18.*NL_2\.0\.g") as caught:
        _ = read_weights(path).spec
    assert "ccreid score" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="NL_2"):
        build_model(ModelSpec("resnet18"), weights=str(path))


@pytest.mark.parametrize("content", [{"a.weight": torch.ones(3)}, {"patch_embed.proj.weight": torch.ones(8, 3, 4, 4)}])
def test_an_unknown_network_names_the_file_and_is_not_advised_as_weights(content: State, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth fits no known network") as caught:
        resolve_spec(read_weights(tmp_path / "odd.pth"))
    assert "--weights" not in str(caught.value.hint)
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        build_model(ModelSpec("resnet18"), weights=str(tmp_path / "odd.pth"))


def test_two_networks_of_equal_right_are_not_chosen_between(backbone: State) -> None:
    with pytest.raises(CheckpointError, match=r"c\.pth holds several networks, under one\., two\."):
        recognise({**_at("one.", backbone), **_at("two.", backbone)}, {}, "c.pth")


def test_a_release_is_read_in_silence(backbone: State) -> None:
    assert recognise({**backbone, **_linear("fc", 1000)}, {}, "r.pth").notes("r.pth") == ()
    assert "fc.weight [751, 512]" in recognise({**backbone, **_linear("fc", 751)}, {}, "r.pth").notes("r.pth")[0]


@pytest.mark.parametrize(
    ("make", "looks_like"),
    [
        (
            lambda state: {
                "state_dict": _at("model.", state),
                "pytorch-lightning_version": "2.4.0",
                "hyper_parameters": {"root": PurePosixPath("data")},
            },
            "PyTorch Lightning",
        ),
        (lambda state: torch.nn.BatchNorm1d(4), "a whole model"),
    ],
    ids=["Lightning", "a whole model"],
)
def test_the_way_out_of_a_refused_pickle_works(
    make: Callable[[State], Any], looks_like: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(make({"weight": torch.ones(4)}), tmp_path / "its own.ckpt")
    with pytest.raises(CheckpointError, match=rf"Nothing was run\. It looks like .*{looks_like}") as caught:
        read_weights(tmp_path / "its own.ckpt")
    command = shlex.split(str(caught.value.hint).partition("installed: ")[2])
    assert command[:2] == ["python", "-c"] and len(command) == 3
    exec(command[2], {})
    found = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert any(key.endswith("weight") for key in found)
