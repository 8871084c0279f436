"""Weight files of other programs: one row per program says how its names look, what they are here, what is left out.

To take the files of one more program, add a row to `PROGRAMS` (a whole re-identification network) or to
`BACKBONE_PROGRAMS` (its backbone alone is of use here, and is found wherever it lies). `models.recognising` reads rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ccreid_cli.models.key_maps import OFFICIAL, rename_start
from ccreid_cli.models.vit_files import transreid_features, transreid_lacks

State = dict[str, Tensor]

# Parts that only training needs: their first word. They are left out, and that is said.
TRAINING = (
    *("classifier", "cls", "id_classifier", "logit", "arc", "circle", "criterion", "loss", "center", "prox", "memory"),
    *("queue", "projector", "projection_head", "predictor", "prototypes", "pixel_mean", "pixel_std"),
)


def _same(state: State) -> State:
    return state


def _nothing(state: State) -> str:
    return ""


@dataclass(frozen=True)
class Program:
    """A program that writes whole re-identification networks.

    Attributes:
        name: What to call it.
        marks: Starts of keys by which its files are told; all must be there, at one place.
        unlike: Starts of keys that others have besides; none may be there.
        names: Start of a key -> its start in ccreid.
        left_out: Starts of keys, in ccreid's names, of parts that only training needs.
        remarks: Start of a key, in ccreid's names -> how a network that has it computes differently, for the user.
        lacks: Names what a network has, under ccreid's names, that none here has; empty where there is nothing.
        finish: Brings renamed tensors into the shapes that ccreid has.
        pooling: How its networks pool, where that is known; it leaves no trace in the tensors.
        relu: Whether its heads end in a ReLU.
        resize: How it resizes images, where that is not bicubic: a value of ``--resize``.
    """

    name: str
    marks: tuple[str, ...]
    names: Mapping[str, str]
    left_out: tuple[str, ...] = TRAINING
    remarks: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[State], State] = _same
    lacks: Callable[[State], str] = _nothing
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
        (*TRAINING, "bnneck"),
        pooling="average",
    ),
    "official": Program("the Cluster Contrast code (or SpCL's, MMT's, which it grew from)", ("base.0.",), OFFICIAL),
    "fast-reid": Program(
        "fast-reid",
        ("backbone.", "heads."),
        {"backbone.": "backbone.", "heads.pool_layer.": "pooling.", "heads.bnneck.": "neck."},
        (*TRAINING, "heads.weight", "heads.classifier", "heads.cls"),
        {
            "": "fast-reid pools after the first convolution with other borders: features differ a little from that "
            "program's."
        },
        _fastreid_head,
    ),
    "strong-baseline": Program(
        "reid-strong-baseline",
        ("base.conv1.", "bottleneck."),
        {"base.": "backbone.", "bottleneck.": "neck.", "gap.": "pooling.", "global_pool.": "pooling."},
        (*TRAINING, "backbone.fc."),
        {
            "": "reid-strong-baseline's plain ResNets have no ReLU after the first batch norm, where ccreid's have "
            "one: features differ from that program's, and scores may be lower until it is trained further."
        },
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
        (*TRAINING, "model.fc."),
        {
            "": "layumi's networks have a last stride of 2 unless trained with `--stride 1`; ccreid's have 1: features "
            "then differ from that program's."
        },
        pooling="average",
    ),
    "transreid": Program(
        "TransReID",
        ("base.patch_embed.", "bottleneck.running_mean"),
        {"base.": "backbone.", "bottleneck.": "neck."},
        (*TRAINING, "backbone.fc.", "backbone.sie_embed", "b2.", "bottleneck_"),
        {
            "": "TransReID's feature is here the class token after the neck; its own tests mostly take the one before.",
            "backbone.sie_embed": "What TransReID adds to tokens by camera or view (SIE) has no place in ccreid, which "
            "computes features from images alone: they differ from that program's until it is trained further.",
            "b2.": "Of TransReID's feature the global part is read; the four parts by groups of patches (JPM: b2, "
            "bottleneck_1 to bottleneck_4) have no place in ccreid.",
        },
        transreid_features,
        transreid_lacks,
        pooling="class token",
        resize="linear",
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
