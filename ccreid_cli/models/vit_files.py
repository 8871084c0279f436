"""Files of transformers: DINO, DINOv2, MAE, CLIP, TransReID and LUPerson, which name their tensors much as timm does.

The tensors keep the names of the file; `timm_networks.TimmBackbone.fitted` brings them under timm's present ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ccreid_cli.core.components import require
from ccreid_cli.models.key_maps import rename_start
from ccreid_cli.models.timm_catalog import STEM, STEM_STRIDE, STEM_TENSORS

_SIZES = {
    (192, 12): "tiny",
    (256, 10): "xsmall",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
    (1536, 40): "giant",
}
"""Width and depth -> how timm calls it."""
_PARTS = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.", "norm_pre.", "register_tokens", "reg_token")
"""Starts of the names of what computes features."""
_CLIP_PARTS = ("class_embedding", "positional_embedding", "conv1.", "transformer.", "ln_pre.", "ln_post.", "proj")


@dataclass(frozen=True)
class TransformerProgram:
    """A program that writes transformers.

    Attributes:
        name: What to call it.
        marks: Parts of keys by which its files are told; all must occur.
        tag: The tag of its weights in timm: it says how images are normalised.
    """

    name: str
    marks: tuple[str, ...]
    tag: str = ""


TRANSFORMER_PROGRAMS = (
    TransformerProgram("CLIP", ("visual.class_embedding",), "openai"),
    TransformerProgram("MAE", ("decoder_pos_embed",), "mae"),
    TransformerProgram("DINOv2", ("mask_token", ".ls1.gamma"), "lvd142m"),
    TransformerProgram("DINO", ("head.last_layer.",), "dino"),
    TransformerProgram("TransReID", ("base.patch_embed.",)),
)
"""Programs whose files are told by parts of their keys, in the order in which they are tried."""


@dataclass(frozen=True)
class Transformer:
    """A transformer that was found in a file.

    Attributes:
        state: Its tensors, without what stands before all of their names.
        inside: The names that they have in the file.
        program: What the file looks like; empty for the plain form.
    """

    state: dict[str, Tensor]
    inside: frozenset[str]
    program: str


def transformer_places(plain: Mapping[str, Tensor]) -> list[str]:
    """Return what stands before the names of each transformer in a file."""
    ends = {"patch_embed.proj.weight": "blocks.0.norm1.weight", "class_embedding": "ln_pre.weight"}
    places = (key.removesuffix(end) for end in ends for key in plain if f".{key}".endswith(f".{end}"))
    return sorted({place for place in places if any(place + other in plain for other in ends.values())})


def transformer_at(plain: Mapping[str, Tensor], place: str) -> Transformer:
    """Take the transformer at a place of a file."""
    is_clip = f"{place}class_embedding" in plain
    parts = _CLIP_PARTS if is_clip else _PARTS
    if f"{place}norm_pre.weight" in plain:
        parts = (*parts, "head.")  # timm's form of CLIP: the head is the projection
    inside = {key: key.removeprefix(place) for key in plain if key.removeprefix(place).startswith(parts)}
    inside = {key: name for key, name in inside.items() if key.startswith(place)}
    before = "visual." if is_clip else ""  # by which timm tells CLIP
    state = {before + name: plain[key] for key, name in inside.items()}
    marks_found = (
        program.name
        for program in TRANSFORMER_PROGRAMS
        if all(any(mark in f".{key}" for key in plain) for mark in program.marks)
    )
    return Transformer(state, frozenset(inside), next(marks_found, ""))


def transformer_arch(state: Mapping[str, Tensor], program: str = "") -> str | None:
    """Return the name of a transformer, read off its tensors; None where they are none of timm's usual sizes.

    Args:
        state: Its tensors, as `Transformer` has them.
        program: A name in `TRANSFORMER_PROGRAMS`, or empty.

    Raises:
        UsageError: timm is not installed.
    """
    first = state.get("patch_embed.proj.weight", state.get("visual.conv1.weight"))
    if first is None or first.ndim != 4:
        return None
    blocks = {key.split("blocks.")[1].split(".")[0] for key in state if "blocks." in key}
    size = _SIZES.get((len(first), len(blocks)))
    stem = STEM if f"{STEM_TENSORS}0.weight" in state else ""
    patch = first.shape[2] * (STEM_STRIDE if stem else 1)
    name = _name_in_timm(f"vit_{size}_patch{patch}", state, program) if size else None
    return name and name + stem


def _is_upright(state: Mapping[str, Tensor]) -> bool:
    """Whether position embeddings with a class token are of a grid that is no square."""
    num_patches = state["pos_embed"].shape[1] - 1 if "pos_embed" in state else 0
    return math.isqrt(num_patches) ** 2 != num_patches


def _name_in_timm(start: str, state: Mapping[str, Tensor], program: str) -> str | None:
    names = [f"{start}_224"]
    if "visual.class_embedding" in state or "norm_pre.weight" in state:
        names = [f"{start}_clip_quickgelu_224", f"{start}_clip_224"]
    elif "blocks.0.ls1.gamma" in state:
        names = [f"{start}_reg4_dinov2" if {"register_tokens", "reg_token"} & set(state) else f"{start}_dinov2"]
    models = require("timm.models", "timm")
    name = next((name for name in names if models.is_model(name)), None)
    if name is None:
        return None
    # People's upright images (LUPerson) are normalised as timm's plain networks are, whoever wrote the file.
    known = () if _is_upright(state) else TRANSFORMER_PROGRAMS
    tag = next((row.tag for row in known if row.name == program), "")
    return f"timm:{name}.{tag}" if f"{name}.{tag}" in models.get_arch_pretrained_cfgs(name) else f"timm:{name}"


_TRANSREID_SIZES = ((256, 128), (384, 128), (256, 256), (224, 224))
"""Heights and widths of the images that TransReID's released settings train on."""


def transreid_lacks(state: Mapping[str, Tensor]) -> str:
    """Name what a network of TransReID has that timm's have not; empty where there is nothing.

    Args:
        state: Its tensors, under ccreid's names.
    """
    blocks = {key.split(".")[2] for key in state if key.startswith("backbone.blocks.")}
    if len(blocks) == 8 and "backbone.blocks.0.attn.qkv.bias" not in state:
        return "with a ViT-S of its own (8 blocks 768 wide, without biases of queries, keys and values)"
    positions = state.get("backbone.pos_embed")
    step = _step(positions.shape[1] - 1) if positions is not None and positions.ndim == 3 else 16
    return "" if step == 16 else f"whose patches of 16 pixels overlap (one every {step} pixels)"


def _step(num_patches: int) -> int:
    """Return the pixels from one patch of 16 to the next where an image has so many; 16 where nothing says less."""
    for step in range(16, 7, -1):
        if any(((h - 16) // step + 1) * ((w - 16) // step + 1) == num_patches for h, w in _TRANSREID_SIZES):
            return step
    return 16


def transreid_features(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what computes the global feature: with local ones (JPM) the last block and norm are those of branch b1."""
    branch = {key: value for key, value in state.items() if key.startswith("b1.")}
    if not branch:
        return dict(state)
    last = max(int(key.split(".")[2]) for key in state if key.startswith("backbone.blocks."))
    names = {"b1.0.": f"backbone.blocks.{last}.", "b1.1.": "backbone.norm."}
    return {
        **{key: value for key, value in state.items() if key not in branch},
        **{rename_start(key, names): value for key, value in branch.items()},
    }
