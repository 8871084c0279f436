"""Weights in every form that users hold: what a file is, which network it fits, and loading it without loss.

Nothing is skipped in silence: a key that is unknown, missing or of another shape is an error that names it. What only
training needs, such as a classifier, is left out, and the remarks say so.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccreid_cli.core.components import find_row
from ccreid_cli.core.errors import CheckpointError, UsageError
from ccreid_cli.models.backbones import Backbone, empty_backbone
from ccreid_cli.models.fitting import backbone_difference, load_exactly, misfit, nearest_arch
from ccreid_cli.models.key_maps import from_official, to_torchvision
from ccreid_cli.models.programs import PROGRAMS
from ccreid_cli.models.recognising import recognise
from ccreid_cli.models.registry import BACKBONES, usual_pooling
from ccreid_cli.models.safe_load import find_state_dict, load_untrusted
from ccreid_cli.models.spec import ModelSpec

SPEC_METADATA = "ccreid_spec"
_BACKBONE = "backbone."


@dataclass(frozen=True)
class WeightFile:
    """A weight file that has been read.

    Args:
        path: Where it lies.
        state_dict: Its tensors; under ccreid's names if it is a re-identification network, else under its release's.
        kind: For a whole network a name of `models.programs.PROGRAMS`, ``ccreid`` and ``official`` (Cluster Contrast
            code) among them; for a backbone ``ibn`` (IBN-Net's names), ``torchvision`` or ``transformer``.
        meta: What else it holds (epoch, best_mAP, settings), without the tensors of the model.
        notes: Remarks for the user.
        recorded_spec: The architecture as written in the file; only ccreid's own have it.
        program: Which program the file looks like; empty for the plain form of a release.
    """

    path: Path
    state_dict: dict[str, Tensor]
    kind: str
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    recorded_spec: ModelSpec | None = None
    program: str = ""

    @property
    def is_reid(self) -> bool:
        """Whether this is a whole re-identification network, not only a backbone."""
        return self.kind in PROGRAMS

    @property
    def title(self) -> str:
        """The path, and the program that a foreign file looks like: how errors name the file."""
        foreign = self.program and self.kind not in ("ccreid", "official")
        return f"{self.path} (it looks like a file of {self.program})" if foreign else str(self.path)

    @property
    def spec(self) -> ModelSpec:
        """The network that the file fits: as recorded, else as read off the tensors.

        Raises:
            CheckpointError: The tensors are only a backbone, fit no network, or another one than the recorded.
        """
        if not self.is_reid:
            arch = backbone_arch(self)
            raise CheckpointError(
                f"{self.title} holds no whole re-identification network, only a backbone ({arch}).",
                f"Train from it: `ccreid train -d DATASET --weights {self.path}`; or score it untrained: "
                f"`ccreid eval -d DATASET --weights {self.path}`.",
            )
        recorded = self.recorded_spec
        if recorded is not None and find_row(BACKBONES, "architecture", recorded.arch).sized:
            return recorded  # no tensor tells timm's networks apart; loading compares each with what is recorded
        found = spec_from_state(self.state_dict, source=self.title)
        if recorded is None:
            return replace(found, relu=PROGRAMS[self.kind].relu)
        shape = (recorded.arch, recorded.pooling_type == "gem", recorded.num_features)
        if shape != (found.arch, found.pooling_type == "gem", found.num_features):
            raise CheckpointError(f"{self.path} says that it is {recorded}, but its tensors are {found}.")
        return recorded


def recorded_entry(meta: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    """Return what a checkpoint of ccreid says of itself under a key; empty when it says nothing.

    Args:
        meta: What it holds beside the tensors; in safetensors files each entry is text.
        key: ``config`` (settings of its run) or ``preprocess`` (``height``, ``width``, ``resize``).
        source: What to call the file in an error.

    Raises:
        CheckpointError: The entry is damaged.
    """
    value = meta.get(key)
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise CheckpointError(f"{source}: its entry `{key}` is damaged: {error}.") from error
    return dict(value) if isinstance(value, Mapping) else {}


def _recorded_spec(meta: Mapping[str, Any], path: Path) -> ModelSpec | None:
    """Read the architecture that ccreid wrote into its own files."""
    try:
        spec = json.loads(meta[SPEC_METADATA]) if SPEC_METADATA in meta else meta.get("spec")
        return ModelSpec(**spec) if isinstance(spec, Mapping) else None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes its network in a way that this ccreid does not know.") from error


def read_weights(path: Path) -> WeightFile:
    """Read a weight file of any form, without running anything that it holds.

    Taken are torchvision and IBN-Net releases, official Cluster Contrast checkpoints and ccreid's own, and what
    `models.programs` knows of others, plain or with ``module.`` before each key, nested under ``state_dict`` or
    ``model``, as PyTorch files of any age or safetensors.

    Args:
        path: The file; its content decides, not its name.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or holds no state dict.
    """
    content, metadata, notes = load_untrusted(path)
    nested, meta = find_state_dict(content, path)
    meta.update(metadata)
    found = recognise(nested, meta, str(path))
    recorded = _recorded_spec(meta, path) if found.kind == "ccreid" else None
    notes = (*notes, *found.notes(path.name))
    return WeightFile(path, found.state, found.kind, meta, notes, recorded, found.program)


def backbone_arch(file: WeightFile, expected: str | None = None) -> str:
    """Return which known backbone a file of a backbone is.

    Args:
        file: The file.
        expected: What it should be, if it fits that too.

    Raises:
        CheckpointError: It is none; the message names the keys that differ from the nearest.
    """
    if expected and not backbone_difference(file.state_dict, expected):
        return expected
    arch, difference = nearest_arch(file.state_dict, file.program)
    if difference:
        raise _unknown_network(file.title, arch, str(difference))
    return arch


def _unknown_network(source: str, nearest: str, difference: str) -> CheckpointError:
    return CheckpointError(
        f"{source} fits no known network; it is nearest to {nearest}, but has {difference}.",
        f"ccreid has the backbones {', '.join(BACKBONES)}. For another one extract features with its own program; "
        "`ccreid score` and `ccreid cluster` take them from a file.",
    )


def spec_from_state(state: Mapping[str, Tensor], source: str = "the state dict") -> ModelSpec:
    """Read off the tensors which network they are.

    Average and max pooling leave no trace: for both the pooling is given as ``avg``. Nor does dropout.

    Args:
        state: A whole re-identification state dict, under ccreid's or the official names.
        source: What to call it in an error.

    Raises:
        CheckpointError: It fits no network that ccreid knows; the message names the keys that differ from the nearest.
    """
    ours = from_official(state)
    backbone = to_torchvision(ours, source)
    arch, difference = nearest_arch(backbone)
    if difference:
        raise _unknown_network(source, arch, str(difference))
    if find_row(BACKBONES, "architecture", arch).sized:
        height, width = empty_backbone(arch).size_of(backbone)
        return ModelSpec(arch, "class", height=height, width=width)
    embedding = ours.get("embedding.weight")
    num_features = len(embedding) if embedding is not None and embedding.ndim == 2 else 0
    return ModelSpec(arch, "gem" if "pooling.p" in ours else "avg", num_features)


def resolve_spec(
    file: WeightFile,
    *,
    arch: str | None = None,
    pooling_type: str | None = None,
    num_features: int | None = None,
    dropout: float | None = None,
) -> ModelSpec:
    """Decide on the network for a re-identification checkpoint: the file rules, and the user may only agree.

    Args:
        file: A checkpoint with `is_reid`.
        arch: What the user asked for; None where nothing was asked.
        pooling_type: The same. It decides between ``avg`` and ``max`` where the file cannot tell.
        num_features: The same.
        dropout: The same; free to change, since no tensor depends on it.

    Raises:
        UsageError: The user asked for another network than the file holds.
        CheckpointError: The file holds no known network.
    """
    found = file.spec
    if file.recorded_spec is None and found.pooling_type == "avg" and pooling_type == "max":
        found = replace(found, pooling_type="max")
    asked = {
        "--arch": (arch, found.arch),
        "--pooling-type": (pooling_type, found.pooling_type),
        "--features": (num_features, found.num_features),
    }
    wrong = [f"{name} {want} (the file: {has})" for name, (want, has) in asked.items() if want not in (None, has)]
    if wrong:
        raise UsageError(f"{file.path} holds another network: {', '.join(wrong)}.", "Leave these options out.")
    return found if dropout is None else replace(found, dropout=dropout)


def adopted_spec(file: WeightFile, spec: ModelSpec, typed: Collection[str]) -> ModelSpec:
    """Return the network to build for starting weights: what the file says, except where the user typed a value.

    The ReLU at the end of another program's head is left out unless it was asked for: it is for using the network.

    Args:
        file: The starting weights.
        spec: What is wanted so far, defaults included.
        typed: Which fields of `spec` the user set by hand; only these can contradict the file.

    Raises:
        UsageError: A typed value contradicts a whole network.
        CheckpointError: The file fits no known network, or is another backbone than the typed one.
    """
    if file.is_reid:
        asked = {name: getattr(spec, name) for name in ("arch", "pooling_type", "num_features") if name in typed}
        found = resolve_spec(file, **asked, dropout=spec.dropout)
        if file.kind in PROGRAMS and PROGRAMS[file.kind].relu:  # features train better without it: see BENCHMARKS.md
            found = replace(found, relu=spec.relu and "relu" in typed)
        size = (spec.height or found.height, spec.width or found.width)
        return _for_training(found, spec.drop_path, *size)
    if "arch" in typed:
        difference = backbone_difference(file.state_dict, spec.arch)
        if difference:
            raise misfit(file.title, difference, _advice(file.state_dict))
    else:
        arch = backbone_arch(file, spec.arch)
        if arch != spec.arch and "pooling_type" not in typed:
            spec = replace(spec, pooling_type=usual_pooling(arch, spec.pooling_type))
        spec = replace(spec, arch=arch)
    size = (spec.height, spec.width) if spec.height else empty_backbone(spec.arch).size_of(file.state_dict)
    return _for_training(spec, spec.drop_path, *size)


def _for_training(spec: ModelSpec, drop_path: float, height: int, width: int) -> ModelSpec:
    """Set the values that only networks of timm have."""
    if not find_row(BACKBONES, "architecture", spec.arch).sized:
        return spec
    return replace(spec, drop_path=drop_path, height=height, width=width)


def _advice(backbone: Mapping[str, Tensor]) -> str | None:
    arch, difference = nearest_arch(backbone)
    return None if difference else f"The file fits `--arch {arch}`."


def load_backbone_weights(model: nn.Module, file: WeightFile | Path) -> None:
    """Load released ImageNet weights, or the backbone of another program's file, into the backbone of a `ReidNet`.

    Args:
        model: A network with a ``backbone``.
        file: A torchvision or IBN-Net state dict of the same architecture.

    Raises:
        CheckpointError: The file cannot be read, or its keys or shapes are not those of the backbone.
    """
    if isinstance(file, Path):
        file = read_weights(file)
    if file.is_reid:
        raise CheckpointError(
            f"{file.path} is a whole re-identification network.", "Load it with `--weights` or `--resume`."
        )
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    load_exactly(backbone, backbone.fitted(file.state_dict), file.title, _advice)
    load_projection(model, file.state_dict)


def load_projection(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Start the embedding from CLIP's projection, where there is one and it has the embedding's size."""
    embedding = getattr(model, "embedding", None)
    weight = state.get("head.weight", state.get("visual.proj", torch.empty(0, 0)).T)
    if isinstance(embedding, nn.Linear) and embedding.weight.shape == weight.shape and weight.isfinite().all():
        with torch.no_grad():
            embedding.weight.copy_(weight)
            embedding.bias.zero_()


def load_reid_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a whole re-identification network.

    Args:
        model: A `ReidNet`.
        state: Its state dict, under ccreid's or the official names.
        source: What to call it in an error.

    Raises:
        CheckpointError: Keys are unknown, missing or of another shape, or values are NaN or infinite. Nothing
            is loaded then.
    """
    state = from_official(state)
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    own = {key: value for key, value in state.items() if key.startswith(_BACKBONE)}
    fitted = backbone.resized({key.removeprefix(_BACKBONE): value for key, value in own.items()})
    load_exactly(model, {**state, **{_BACKBONE + key: value for key, value in fitted.items()}}, source)
