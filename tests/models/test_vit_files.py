"""Files of transformers, made under the true key names of their programs: what each is taken for, and that it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ccreid_cli.core.errors import CheckpointError, UsageError
from ccreid_cli.models.backbones import backbone_shapes
from ccreid_cli.models.file_forms import export_backbone
from ccreid_cli.models.fitting import backbone_difference
from ccreid_cli.models.reid_net import ModelSpec, ReidNet, build_model
from ccreid_cli.models.weight_files import backbone_arch, load_reid_weights, read_weights, resolve_spec

timm = pytest.importorskip("timm")
State = dict[str, Tensor]


def _at(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def _shaped(shapes: dict[str, Any]) -> State:
    """Return tensors that take no room: one number each, seen in the shape that is asked for."""
    return {key: torch.tensor(0.5).expand(shape) for key, shape in shapes.items()}


def _vit(arch: str = "vit_small_patch16_224", positions: int = 197, **more: tuple[int, ...]) -> State:
    shapes = dict(backbone_shapes(f"timm:{arch}"))
    width = shapes["cls_token"][-1]
    return _shaped({**shapes, "pos_embed": (1, positions, width), **more})


def _head(width: int = 384) -> State:
    return _shaped({"head.mlp.0.weight": (9, width), "head.last_layer.weight_g": (4, 1)})


def _clip(width: int, depth: int, patch: int, out: int) -> State:
    """Return the tensors of OpenAI's image encoder, beside a few of the text encoder."""
    block = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    visual: dict[str, Any] = {
        "class_embedding": (width,),
        "positional_embedding": (1 + (224 // patch) ** 2, width),
        "proj": (width, out),
        "conv1.weight": (width, 3, patch, patch),
        **{f"{name}.{kind}": (width,) for name in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
        **{f"transformer.resblocks.{n}.{name}": shape for n in range(depth) for name, shape in block.items()},
    }
    text = {"positional_embedding": (77, 512), "text_projection": (512, 512), "token_embedding.weight": (9, 512)}
    text |= {f"transformer.resblocks.0.{name}": shape for name, shape in block.items()}
    return {**_at("visual.", _shaped(visual)), **_shaped({**text, "logit_scale": (), "ln_final.weight": (512,)})}


def _with_stem(state: State) -> State:
    """Give a ViT the convolution stem of TransReID-SSL (ICS), under its names."""
    width = state["cls_token"].shape[-1]
    shapes: dict[str, Any] = {"patch_embed.proj.weight": (width, 64, 8, 8)}
    for layer, norms in {0: (".IN", ".BN"), 3: (".IN", ".BN"), 6: ("",)}.items():
        shapes[f"patch_embed.conv.{layer}.weight"] = (64, 64, 3, 3) if layer else (64, 3, 7, 7)
        for norm in norms:
            at, size = f"patch_embed.conv.{layer + 1}{norm}.", (64 // len(norms),)
            shapes |= {f"{at}weight": size, f"{at}bias": size}
            if norm != ".IN":
                shapes |= {f"{at}running_mean": size, f"{at}running_var": size, f"{at}num_batches_tracked": ()}
    return {**state, **_shaped(shapes)}


SMALL = "timm:vit_small_patch16_224"
FILES: dict[str, tuple[str, str, Any]] = {
    "TransReID-SSL's LUPerson, as DINO saves it": (
        SMALL,
        "DINO",
        lambda: {"teacher": {**_at("module.backbone.", _vit(positions=129)), **_at("module.", _head())}, "epoch": 1},
    ),
    "LUPerson, the backbone alone": (SMALL, "", lambda: _vit(positions=129)),
    "LUPerson with the convolution stem": (
        f"{SMALL}+ics",
        "DINO",
        lambda: {"teacher": {**_at("backbone.", _with_stem(_vit(positions=129))), **_head()}},
    ),
    "TransReID": (
        SMALL,
        "TransReID",
        lambda: {
            **_at("base.", _vit(positions=129)),
            **_shaped({"bottleneck.weight": (384,), "classifier.weight": (751, 384), "b1.0.norm1.weight": (384,)}),
        },
    ),
    "DINO": (
        f"{SMALL}.dino",
        "DINO",
        lambda: {
            "student": {**_at("module.backbone.", _vit()), **_at("module.", _head())},
            "teacher": {**_at("backbone.", _vit()), **_head()},
        },
    ),
    "timm's form": (SMALL, "", lambda: {**_vit(), **_shaped({"head.weight": (1000, 384), "head.bias": (1000,)})}),
    "MAE": (
        "timm:vit_base_patch16_224.mae",
        "MAE",
        lambda: {
            "model": {
                **_vit("vit_base_patch16_224"),
                **_shaped(
                    {"mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512), "decoder_embed.bias": (512,)}
                ),
            }
        },
    ),
    "DINOv2": (
        "timm:vit_small_patch14_dinov2.lvd142m",
        "DINOv2",
        lambda: {**_vit("vit_small_patch14_dinov2", 1370), **_shaped({"mask_token": (1, 384)})},
    ),
    "CLIP in DataParallel": (
        "timm:vit_base_patch16_clip_quickgelu_224.openai",
        "CLIP",
        lambda: {"state_dict": _at("module.", _clip(768, 12, 16, 512))},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_which_transformer_it_is(name: str, tmp_path: Path) -> None:
    arch, program, make = FILES[name]
    path = tmp_path / "vit.pth"
    torch.save(make(), path)
    file = read_weights(path)
    assert (file.kind, file.program, backbone_arch(file)) == ("transformer", program, arch)
    assert not program or program in " ".join(file.notes)
    # The name that a recipe gives is kept where the tensors fit it too.
    plain = arch.partition(".")[0]
    assert backbone_arch(file, plain) == plain


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    path = tmp_path / "transreid.pth"
    torch.save(FILES["TransReID"][2](), path)
    said = " ".join(read_weights(path).notes)
    assert "classifier.weight [751, 384]" in said and "bottleneck.weight [384]" in said


@pytest.fixture(scope="module")
def tiny_vit() -> State:
    torch.manual_seed(0)
    return dict(timm.create_model("test_vit", img_size=(64, 32), num_classes=0).state_dict())


def test_position_embeddings_follow_the_input_size(tiny_vit: State, tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"teacher": _at("backbone.", tiny_vit)}, path)
    spec = ModelSpec("timm:test_vit", "class", height=64, width=32)
    same = build_model(spec, weights=str(path)).backbone.state_dict()
    assert all(torch.equal(value, tiny_vit[key]) for key, value in same.items())
    other = build_model(ModelSpec("timm:test_vit", "class", height=48, width=48), weights=str(path))
    assert other.backbone.state_dict()["pos_embed"].shape == (1, 10, 64)
    # Where no size is asked for, the file's own is kept.
    kept = build_model(ModelSpec("timm:test_vit", "class"), weights=str(path))
    assert (kept.spec.height, kept.spec.width) == (64, 32)
    assert torch.equal(kept.backbone.state_dict()["pos_embed"], tiny_vit["pos_embed"])


def test_clips_tensors_go_where_timm_has_them(tmp_path: Path) -> None:
    """The smallest CLIP of timm, under OpenAI's names: the projection starts the embedding."""
    state = {key: torch.randn(value.shape) for key, value in _clip(256, 10, 16, 24).items()}
    path = tmp_path / "clip.pt"
    torch.save(state, path)
    spec = ModelSpec("timm:vit_xsmall_patch16_clip_224", "class", 24, with_pooled=True, height=224, width=224)
    model = build_model(spec, weights=str(path))
    found = model.backbone.state_dict()
    assert torch.equal(found["blocks.9.mlp.fc2.weight"], state["visual.transformer.resblocks.9.mlp.c_proj.weight"])
    assert torch.equal(found["blocks.0.attn.qkv.bias"], state["visual.transformer.resblocks.0.attn.in_proj_bias"])
    assert torch.equal(found["norm_pre.bias"], state["visual.ln_pre.bias"])
    assert torch.equal(found["cls_token"].flatten(), state["visual.class_embedding"])
    assert torch.equal(found["pos_embed"][0], state["visual.positional_embedding"])
    assert model.embedding is not None and torch.equal(model.embedding.weight, state["visual.proj"].T)
    export_backbone(read_weights(path), tmp_path / "again.pth")


def test_the_convolution_stem_computes_what_its_tensors_say(tiny_vit: State, tmp_path: Path) -> None:
    shapes = {key: value.shape for key, value in _with_stem(tiny_vit).items()}
    state = {key: tiny_vit.get(key, torch.empty(0)) for key in shapes}
    for key in (key for key, shape in shapes.items() if state[key].shape != shape):
        state[key] = torch.rand(shapes[key]) + 0.1 if shapes[key] else torch.tensor(0)
    path = tmp_path / "ics.pth"
    torch.save({"teacher": _at("backbone.", state)}, path)
    spec = ModelSpec("timm:test_vit+ics", "class", height=64, width=32)
    model = build_model(spec, weights=str(path)).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        found = model.backbone.get_submodule("net.patch_embed.proj")(images)
    assert torch.allclose(found, _patches_by_hand(images, state), rtol=1e-4, atol=1e-3)
    assert set(model.backbone.state_dict()) == set(state)  # it keeps the names of the release


def _patches_by_hand(images: Tensor, state: State) -> Tensor:
    """Return the vectors of the patches, (B, width, rows, columns), in double precision."""
    maps, part = images.double(), {key: value.double() for key, value in state.items()}

    def normalised(maps: Tensor, name: str, dims: tuple[int, ...]) -> Tensor:
        mean, variance = maps.mean(dims, keepdim=True), maps.var(dims, keepdim=True, correction=0)
        if f"{name}.running_mean" in part:
            mean, variance = (part[f"{name}.running_{kind}"][:, None, None] for kind in ("mean", "var"))
        scale, shift = (part[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return (maps - mean) / (variance + 1e-5).sqrt() * scale + shift

    for layer, stride in ((0, 2), (3, 1), (6, 1)):
        kernel = part[f"patch_embed.conv.{layer}.weight"]
        maps = torch.nn.functional.conv2d(maps, kernel, stride=stride, padding=kernel.shape[2] // 2)
        name = f"patch_embed.conv.{layer + 1}"
        if layer == 6:
            maps = normalised(maps, name, (2, 3))
        else:
            halves = normalised(maps[:, :32], f"{name}.IN", (2, 3)), normalised(maps[:, 32:], f"{name}.BN", (2, 3))
            maps = torch.cat(halves, dim=1)
        maps = maps.clamp_min(0)
    kernel, bias = part["patch_embed.proj.weight"], part["patch_embed.proj.bias"]
    return torch.nn.functional.conv2d(maps, kernel, bias, stride=8).float()


def test_the_stem_is_for_patches_and_has_no_weights_in_timm() -> None:
    with pytest.raises(UsageError, match=r"timm:test_resnet\+ics: \+ics is for transformers"):
        ReidNet(ModelSpec("timm:test_resnet+ics"))
    with pytest.raises(UsageError, match=r"timm has no released weights for test_vit\+ics"):
        build_model(ModelSpec("timm:test_vit+ics", "class", height=64, width=32), weights="imagenet")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({**_vit(positions=129), **_shaped({"patch_embed.stem.weight": (64, 3, 7, 7)})}, path)
    with pytest.raises(CheckpointError, match=r"nearest to timm:vit_small_patch16_224.*patch_embed\.stem") as caught:
        backbone_arch(read_weights(path))
    assert "ccreid has the backbones" in str(caught.value.hint)
    assert len(backbone_difference(read_weights(path).state_dict, SMALL)) == 1


def _neck(name: str, width: int = 384) -> State:
    parts = ("weight", "bias", "running_mean", "running_var")
    return _shaped({**dict.fromkeys([f"{name}.{part}" for part in parts], (width,)), f"{name}.num_batches_tracked": ()})


def _transreid(positions: int = 129, *, parts: bool = False, cameras: int = 0) -> State:
    """Return the tensors of TransReID's DeiT-S: plain, with the parts of JPM, with an embedding per camera (SIE)."""
    backbone = {**_vit(positions=positions), **_shaped({"fc.weight": (1000, 384), "fc.bias": (1000,)})}
    last = {key.removeprefix("blocks.11."): value for key, value in backbone.items() if key.startswith("blocks.11.")}
    norm = {f"1.{kind}": backbone[f"norm.{kind}"] for kind in ("weight", "bias")}
    if cameras:
        backbone["sie_embed"] = torch.zeros(cameras, 1, 384)
    state = {**_at("base.", backbone), **_neck("bottleneck"), **_shaped({"classifier.weight": (751, 384)})}
    for branch in ("b1.", "b2.") if parts else ():
        state |= _at(branch, {**_at("0.", last), **norm})
    for part in range(1, 5) if parts else ():
        state |= {**_neck(f"bottleneck_{part}"), **_shaped({f"classifier_{part}.weight": (751, 384)})}
    return state


@pytest.mark.parametrize(
    ("state", "size", "said"),
    [
        (_transreid(), (256, 128), []),
        (_at("module.", _transreid(193)), (384, 128), []),
        (
            _transreid(257, cameras=20),
            (256, 256),
            ["by camera or view (SIE) has no place", "base.sie_embed [20, 1, 384]"],
        ),
        (_transreid(parts=True), (256, 128), ["the four parts by groups of patches (JPM"]),
    ],
    ids=["plain", "DataParallel", "cameras", "parts"],
)
def test_transreids_whole_network_is_read(state: State, size: tuple[int, int], said: list[str], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "transformer_120.pth")
    file = read_weights(tmp_path / "transformer_120.pth")
    assert resolve_spec(file) == ModelSpec(SMALL, "class", height=size[0], width=size[1])
    notes = " ".join(file.notes)
    assert "TransReID; the whole network is read" in notes and "classifier.weight [751, 384]" in notes
    assert all(words in notes for words in said) and sum(part in notes for part in ("SIE", "JPM")) == bool(said)


def test_transreid_with_the_convolution_stem_is_read(tmp_path: Path) -> None:
    state = _transreid()
    body = {key.removeprefix("base."): value for key, value in state.items() if key.startswith("base.")}
    torch.save({**state, **_at("base.", _with_stem(body))}, tmp_path / "transformer_120.pth")
    file = read_weights(tmp_path / "transformer_120.pth")
    assert resolve_spec(file) == ModelSpec(f"{SMALL}+ics", "class", height=256, width=128)
    load_reid_weights(ReidNet(file.spec, initialize_backbone=False), file.state_dict, file.title)


def test_the_last_block_of_the_global_branch_is_taken(tmp_path: Path) -> None:
    """With parts TransReID never uses the backbone's own last block and norm."""
    state = _transreid(parts=True)
    state["b1.0.mlp.fc2.bias"] = torch.full((384,), 2.0)
    state["b1.1.weight"] = torch.full((384,), 3.0)
    state["bottleneck.running_mean"] = torch.full((384,), 4.0)
    torch.save(state, tmp_path / "jpm.pth")
    file = read_weights(tmp_path / "jpm.pth")
    model = ReidNet(file.spec, initialize_backbone=False)
    load_reid_weights(model, file.state_dict, file.title)
    found = model.state_dict()
    assert found["backbone.blocks.11.mlp.fc2.bias"].unique().tolist() == [2.0]
    assert found["backbone.blocks.10.mlp.fc2.bias"].unique().tolist() == [0.5]
    assert found["backbone.norm.weight"].unique().tolist() == [3.0]
    assert found["neck.running_mean"].unique().tolist() == [4.0]
    assert found["backbone.pos_embed"].shape == (1, 129, 384)


def _own_small() -> State:
    shapes = {"norm1.weight": (768,), "attn.qkv.weight": (2304, 768), "mlp.fc1.weight": (2304, 768)}
    blocks = {f"base.blocks.{number}.{name}": shape for number in range(8) for name, shape in shapes.items()}
    return {**_shaped({"base.patch_embed.proj.weight": (768, 3, 16, 16), **blocks}), **_neck("bottleneck", 768)}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (_transreid(211), r"whose patches of 16 pixels overlap \(one every 12 pixels\)"),
        (_transreid(311, parts=True), "overlap"),
        (_transreid(442), "overlap"),
        (_own_small(), "ViT-S of its own"),
    ],
)
def test_what_timm_cannot_hold_of_transreid_is_named(state: State, said: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=rf"t\.pth looks like a file of TransReID, .*{said}") as caught:
        read_weights(tmp_path / "t.pth")
    assert "ccreid score" in str(caught.value.hint)
