"""Weight files of other programs: one row per program says how its names look, what they are here, what is left out.

To take the files of one more program, add a row to `PROGRAMS` (a whole re-identification network) or to
`BACKBONE_PROGRAMS` (its backbone alone is of use here, and is found wherever it lies).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ccreid_cli.core.errors import CheckpointError
from ccreid_cli.models.fitting import nearest_arch, some, with_shapes
from ccreid_cli.models.key_maps import OFFICIAL, rename_start, strip_wrappers
from ccreid_cli.models.vit_files import transformer_at, transformer_places

State = dict[str, Tensor]

# Parts that only training needs: their first word. They are left out, and that is said.
_TRAINING = (
    *("classifier", "cls", "id_classifier", "logit", "arc", "circle", "criterion", "loss", "center", "prox", "memory"),
    *("queue", "projector", "projection_head", "predictor", "prototypes", "pixel_mean", "pixel_std"),
)
_HEADS = (*_TRAINING, "fc.", "head.", "heads.")
# Of several networks in one file, the one meant for use: the query encoder, the averaged teacher.
_PREFERRED = ("encoder_q.", "base_encoder.", "online_encoder.", "teacher.", "ema.", "model_ema.")


def _same(state: State) -> State:
    return state


@dataclass(frozen=True)
class Program:
    """A program that writes whole re-identification networks.

    Attributes:
        name: What to call it.
        marks: Starts of keys by which its files are told; all must be there, at one place.
        unlike: Starts of keys that others have besides; none may be there.
        names: Start of a key -> its start in ccreid.
        left_out: Starts of keys, in ccreid's names, of parts that only training needs.
        remark: How its network computes differently, for the user; empty where it does not.
        finish: Brings renamed tensors into the shapes that ccreid has.
        pooling: How its networks pool, where that is known; it leaves no trace in the tensors.
        relu: Whether its heads end in a ReLU.
        resize: How it resizes images, where that is not bicubic: a value of ``--resize``.
    """

    name: str
    marks: tuple[str, ...]
    names: Mapping[str, str]
    left_out: tuple[str, ...] = _TRAINING
    remark: str = ""
    finish: Callable[[State], State] = _same
    pooling: str = ""
    relu: bool = False
    resize: str = ""
    unlike: tuple[str, ...] = ()


def _fastreid_head(state: State) -> State:
    """Name the head by what its layers are: an embedding is a 1×1 convolution without bias before the batch norm."""
    first = state.get("heads.bottleneck.0.weight")
    if first is None or first.ndim != 4:
        return {rename_start(key, {"heads.bottleneck.0.": "neck."}): value for key, value in state.items()}
    state = {rename_start(key, {"heads.bottleneck.1.": "neck."}): value for key, value in state.items()}
    weight = state.pop("heads.bottleneck.0.weight").flatten(1)
    return {**state, "embedding.weight": weight, "embedding.bias": torch.zeros(len(weight), dtype=weight.dtype)}


_RESNET = {f"{part}.": f"backbone.{part}." for part in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")}

PROGRAMS: dict[str, Program] = {
    "ccreid": Program(
        "ccreid",
        ("backbone.", "neck.weight"),
        {name: name for name in ("backbone.", "pooling.", "embedding.", "neck.")},
    ),
    "pplr": Program(
        "PPLR",
        ("base.0.", "bnneck.", "bnneck0."),
        {**{key: name for key, name in OFFICIAL.items() if key.startswith("base.")}, "bnneck.": "neck."},
        (*_TRAINING, "bnneck"),
        pooling="average",
    ),
    "official": Program("the Cluster Contrast code (or SpCL's, MMT's, which it grew from)", ("base.0.",), OFFICIAL),
    "fast-reid": Program(
        "fast-reid",
        ("backbone.", "heads."),
        {"backbone.": "backbone.", "heads.pool_layer.": "pooling.", "heads.bnneck.": "neck."},
        (*_TRAINING, "heads.weight", "heads.classifier", "heads.cls"),
        "fast-reid pools after the first convolution with other borders: features differ a little from that program's.",
        _fastreid_head,
    ),
    "strong-baseline": Program(
        "reid-strong-baseline",
        ("base.conv1.", "bottleneck."),
        {"base.": "backbone.", "bottleneck.": "neck.", "gap.": "pooling.", "global_pool.": "pooling."},
        (*_TRAINING, "backbone.fc."),
        "reid-strong-baseline's plain ResNets have no ReLU after the first batch norm, where ccreid's have one: "
        "features differ from that program's, and scores may be lower until it is trained further.",
        resize="linear",
    ),
    "torchreid": Program(
        "torchreid's OSNet",
        ("conv1.conv.", "conv5.conv.", "fc.0."),
        {
            **{
                f"{part}.": f"backbone.{part}."
                for part in ("conv1", "conv2", "pool2", "conv3", "pool3", "conv4", "conv5")
            },
            "fc.0.": "embedding.",
            "fc.1.": "neck.",
        },
        pooling="average",
        relu=True,
        resize="linear",
    ),
    "torchreid-resnet": Program(
        "torchreid's ResNet with a head (resnet50_fc512)",
        ("layer4.", "fc.0.weight", "fc.0.bias", "fc.1.running_mean"),
        {**_RESNET, "fc.0.": "embedding.", "fc.1.": "neck."},
        pooling="average",
        relu=True,
        resize="linear",
        unlike=("fc.2.", "fc.3."),
    ),
    "layumi": Program(
        "layumi's Person_reID_baseline_pytorch",
        ("model.layer4.", "classifier.add_block.0.weight", "classifier.add_block.1.running_mean"),
        {
            **{f"model.{key}": name for key, name in _RESNET.items()},
            "classifier.add_block.0.": "embedding.",
            "classifier.add_block.1.": "neck.",
        },
        (*_TRAINING, "model.fc."),
        "layumi's networks have a last stride of 2 unless trained with `--stride 1`; ccreid's have 1: features then "
        "differ from that program's.",
        pooling="average",
    ),
}
"""Programs whose whole networks are read, in the order in which they are tried."""

BACKBONE_PROGRAMS: dict[str, tuple[str, ...]] = {
    "layumi's Person_reID_baseline_pytorch": (".add_block.",),
    "MoCo": ("encoder_q.",),
    "MoCo v3": ("base_encoder.", "momentum_encoder."),
    "BYOL": ("online_encoder.",),
    "SimSiam": ("encoder.", "predictor."),
    "SwAV": ("prototypes.",),
    "DINO (or CION's, which grew from it)": ("backbone.", "head.last_layer."),
    "Barlow Twins": ("backbone.", "projector."),
    "fast-reid": ("backbone.", "heads."),
    "OpenMMLab": ("backbone.", "head."),
    "reid-strong-baseline": ("base.conv1.", "classifier."),
}
"""Programs whose files are told by parts of their keys, all of which must occur, and are of use for their backbone."""


@dataclass(frozen=True)
class Recognised:
    """What a state dict was found to be.

    Attributes:
        kind: A name of `PROGRAMS` for a whole network, else ``ibn``, ``torchvision`` or ``transformer`` for a backbone.
        state: Under ccreid's names for a whole network, under its release's for a backbone.
        program: What the file looks like, for messages; empty where the plain form of a release needs no name.
        left_out: Tensors not in `state`, under the names that they have in the file.
        remark: See `Program`.
    """

    kind: str
    state: State
    program: str = ""
    left_out: State = field(default_factory=dict)
    remark: str = ""

    def notes(self, file_name: str) -> tuple[str, ...]:
        """Say what the file was taken for and what was left out of it; nothing for a plain file used whole."""
        lines = []
        if self.program and self.kind not in ("ccreid", "official"):
            what = "the whole network" if self.kind in PROGRAMS else "its backbone"
            lines.append(f"{file_name} looks like a file of {self.program}; {what} is read.")
        if self.left_out and not self._is_release():
            lines.append(f"{file_name}: left out, since it is of no use here: {with_shapes(self.left_out)}.")
        program = PROGRAMS.get(self.kind)
        if program and self.kind != "ccreid" and not program.pooling and "pooling.p" not in self.state:
            lines.append(f"{file_name} does not say how it pools: by average, unless `--pooling-type max` is given.")
        return (*lines, *((self.remark,) if self.remark else ()))

    def _is_release(self) -> bool:
        """Whether all that was left out is the classifier of ImageNet's 1,000 classes, which no one expects to keep."""
        heads = all(key.startswith(("fc.", "classifier.")) for key in self.left_out)
        return not self.program and heads and any(len(value) == 1000 for value in self.left_out.values() if value.ndim)


def recognise(state: Mapping[str, Tensor], meta: Mapping[str, Any], source: str) -> Recognised:
    """Find out which program wrote a state dict, and bring it under the names that it has here.

    Args:
        state: The tensors of a file.
        meta: What else the file holds.
        source: What to call the file in an error.

    Raises:
        CheckpointError: There are several networks, and nothing tells which is meant.
    """
    plain, averaged = _unwrapped(state)
    for kind, program in PROGRAMS.items():
        roots = _roots(plain, program.marks)
        if roots and not any(_has(plain, (mark,)) for mark in program.unlike):
            found = _read(kind, program, plain, _one_of(roots, source), source)
            if found is not None:
                return found
    places = transformer_places(plain)
    if places:
        found_there = transformer_at(plain, _one_of(places, source))
        left_out = {key: value for key, value in plain.items() if key not in found_there.inside}
        return Recognised("transformer", found_there.state, found_there.program, left_out)
    name = "PyTorch Lightning" if "pytorch-lightning_version" in meta else averaged
    name = next((name for name, marks in BACKBONE_PROGRAMS.items() if _has(plain, marks)), name)
    return _bare_backbone(plain, name, source)


def _unwrapped(state: Mapping[str, Tensor]) -> tuple[State, str]:
    """Remove what wraps every key, and the counter of averaged weights; also name the program that averaged them."""
    plain, name = strip_wrappers(state), ""
    while "n_averaged" in plain:
        plain, name = strip_wrappers({k: v for k, v in plain.items() if k != "n_averaged"}), "PyTorch's SWA"
    return plain, name


def _has(state: State, marks: tuple[str, ...]) -> bool:
    return all(any(f".{mark.removeprefix('.')}" in f".{key}" for key in state) for mark in marks)


def _roots(state: State, marks: tuple[str, ...]) -> list[str]:
    """Return the places (starts of keys, mostly only the empty one) under which all `marks` occur."""
    places = []
    for mark in marks:
        found = (f".{key}".find(f".{mark}") for key in state)
        places.append({key[:at] for key, at in zip(state, found, strict=True) if at >= 0})
    return sorted(set.intersection(*places))


def _one_of(roots: list[str], source: str) -> str:
    preferred = [root for root in roots if any(f".{name}" in f".{root}" for name in _PREFERRED)]
    chosen = roots if len(roots) == 1 else preferred
    if len(chosen) != 1:
        raise CheckpointError(
            f"{source} holds several networks, under {some(roots)}, and nothing tells which is meant.",
            "Save the tensors of one of them in a file of its own.",
        )
    return chosen[0]


def _read(kind: str, program: Program, plain: State, root: str, source: str) -> Recognised | None:
    """Bring a program's state dict under ccreid's names; None where there is no backbone under `root`."""
    names = {key: rename_start(key.removeprefix(root), program.names) for key in plain if key.startswith(root)}
    if len(set(names.values())) != len(names):
        raise CheckpointError(f"{source} mixes the key names of {program.name} with ccreid's.")
    kept = {key: name for key, name in names.items() if not name.startswith(program.left_out)}
    state = program.finish({name: plain[key] for key, name in kept.items()})
    if any(key.startswith("neck.") for key in state):
        left_out = {key: value for key, value in plain.items() if key not in kept}
        return Recognised(kind, state, program.name, left_out, program.remark)
    bare = {key: name.removeprefix("backbone.") for key, name in kept.items() if name.startswith("backbone.")}
    left_out = {key: value for key, value in plain.items() if key not in bare}
    return _backbone({name: plain[key] for key, name in bare.items()}, program.name, left_out) if bare else None


def _backbone(state: State, program: str, left_out: State) -> Recognised:
    return Recognised("ibn" if any(".IN." in key for key in state) else "torchvision", state, program, left_out)


def _bare_backbone(plain: State, program: str, source: str) -> Recognised:
    """Find the backbone in tensors that are no whole network, wherever it lies."""
    candidates = {root: _under(plain, root) for root in _backbone_places(plain)} or {"": _under(plain, "")}
    fits = {root: nearest_arch(state)[1] for root, state in candidates.items()} if len(candidates) > 1 else {}
    whole = [root for root, difference in fits.items() if not difference.missing and not difference.reshaped]
    # Where none fits, the one with the most tensors of known names is what an error should speak of.
    known = {root: len(candidates[root]) - len(difference.unknown) for root, difference in fits.items()}
    root = _one_of(whole, source) if whole else max(candidates, key=lambda root: known.get(root, 0))
    inside = {f"{root}{key}" for key in candidates[root]}
    if root and not program:
        program = f'a program that keeps its backbone under "{root.removesuffix(".")}"'
    return _backbone(candidates[root], program, {key: value for key, value in plain.items() if key not in inside})


def _backbone_places(plain: State) -> list[str]:
    """Return the starts of keys under which a backbone may begin: every part of the path to a convolution of RGB."""
    stems = [key for key, value in plain.items() if value.ndim == 4 and value.shape[1] == 3 and value.shape[2] > 1]
    paths = [key.split(".")[:-1] for key in stems]
    return sorted({"".join(f"{part}." for part in path[:depth]) for path in paths for depth in range(len(path) + 1)})


def _under(plain: State, root: str) -> State:
    """Return the tensors under `root` by their names there, without heads."""
    state = {key.removeprefix(root): value for key, value in plain.items() if key.startswith(root)}
    return {key: value for key, value in state.items() if not key.startswith(_HEADS)}
