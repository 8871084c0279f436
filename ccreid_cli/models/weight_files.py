"""Weights in every form that users hold: what a file is, which network it fits, and loading it without loss.

Nothing is skipped in silence: a key that is unknown, missing or of another shape is an error that names it. The only
tensors ever left out are the ImageNet classifier of a released backbone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccreid_cli.core.errors import CheckpointError, UsageError
from ccreid_cli.models.backbones import backbone_shapes
from ccreid_cli.models.key_maps import from_official, strip_wrappers, to_torchvision
from ccreid_cli.models.registry import BACKBONES
from ccreid_cli.models.safe_load import load_untrusted
from ccreid_cli.models.spec import ModelSpec

SPEC_METADATA = "ccreid_spec"
_NESTED_UNDER = ("state_dict", "model", "model_state_dict")
_HEADS = ("fc.", "classifier.")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class WeightFile:
    """A weight file that has been read.

    Args:
        path: Where it lies.
        state_dict: Its tensors; under ccreid's names if it is a re-identification network, else under its release's.
        kind: ``ccreid``, ``official`` (Cluster Contrast code), ``ibn`` (IBN-Net release) or ``torchvision``.
        meta: What else it holds (epoch, best_mAP, settings), without the tensors of the model.
        notes: Remarks for the user.
        recorded_spec: The architecture as written in the file; only ccreid's own have it.
    """

    path: Path
    state_dict: dict[str, Tensor]
    kind: str
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    recorded_spec: ModelSpec | None = None

    @property
    def is_reid(self) -> bool:
        """Whether this is a whole re-identification network, not only a backbone."""
        return self.kind in ("ccreid", "official")

    @property
    def spec(self) -> ModelSpec:
        """The network that the file fits: as recorded, else as read off the tensors.

        Raises:
            CheckpointError: The tensors are only a backbone, fit no network, or another one than the recorded.
        """
        if not self.is_reid:
            raise CheckpointError(
                f"{self.path} holds no re-identification network, at most a backbone.",
                "Give it as `--weights`, not as `--resume`.",
            )
        found = spec_from_state(self.state_dict, source=str(self.path))
        recorded = self.recorded_spec
        if recorded is None:
            return found
        shape = (recorded.arch, recorded.pooling_type == "gem", recorded.num_features)
        if shape != (found.arch, found.pooling_type == "gem", found.num_features):
            raise CheckpointError(f"{self.path} says that it is {recorded}, but its tensors are {found}.")
        return recorded


def _unwrap(content: Any, path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Find the state dict in what a file holds; return it and what lies around it."""
    meta: dict[str, Any] = {}
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        name = next((name for name in _NESTED_UNDER if isinstance(content.get(name), Mapping)), None)
        if name is None:
            break
        meta.update({key: value for key, value in content.items() if key != name})
        content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict.", "Save `model.state_dict()`, not the model or one tensor.")
    bad = [str(key) for key, value in content.items() if not isinstance(key, str) or not _is_plain(value)]
    if bad:
        raise CheckpointError(f"{path} holds no plain state dict: {_some(bad)} are not dense tensors.")
    return content, meta


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _kind_of(state: Mapping[str, Tensor]) -> str:
    if any(key.startswith("base.") for key in state):
        return "official"
    if any(key.startswith(("backbone.", "neck.")) for key in state):
        return "ccreid"
    return "ibn" if any(".IN." in key for key in state) else "torchvision"


def _recorded_spec(meta: Mapping[str, Any], path: Path) -> ModelSpec | None:
    """Read the architecture that ccreid wrote into its own files."""
    try:
        spec = json.loads(meta[SPEC_METADATA]) if SPEC_METADATA in meta else meta.get("spec")
        return ModelSpec(**spec) if isinstance(spec, Mapping) else None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes its network in a way that this ccreid does not know.") from error


def read_weights(path: Path) -> WeightFile:
    """Read a weight file of any form, without running anything that it holds.

    Taken are torchvision and IBN-Net releases, official Cluster Contrast checkpoints and ccreid's own, plain or with
    ``module.`` before each key, nested under ``state_dict`` or ``model``, as PyTorch files of any age or safetensors.

    Args:
        path: The file; its content decides, not its name.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or holds no state dict.
    """
    content, metadata, notes = load_untrusted(path)
    nested, meta = _unwrap(content, path)
    meta.update(metadata)
    state = strip_wrappers(nested)
    kind = _kind_of(state)
    if kind == "official":
        state = from_official(state)
    recorded = _recorded_spec(meta, path) if kind == "ccreid" else None
    return WeightFile(path, state, kind, meta, notes, recorded)


@dataclass(frozen=True)
class _Difference:
    """How the tensors found differ from those expected."""

    missing: list[str]
    unknown: list[str]
    reshaped: list[str]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unknown) + len(self.reshaped)

    def __str__(self) -> str:
        parts = {"missing": self.missing, "unknown": self.unknown, "of another shape": self.reshaped}
        return "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in parts.items() if keys)


def _some(keys: list[str], limit: int = 5) -> str:
    """Name the first few of `keys`, and say how many there are besides."""
    rest = len(keys) - limit
    return ", ".join(keys[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> _Difference:
    # Files from before PyTorch 0.4.1 have no step counters at all, which evaluation and training do without.
    old = not any(key.endswith(_COUNTER) for key in found)
    return _Difference(
        missing=[key for key in expected if key not in found and not (old and key.endswith(_COUNTER))],
        unknown=[key for key in found if key not in expected],
        reshaped=[
            f"{key} is {list(found[key].shape)}, not {list(shape)}"
            for key, shape in expected.items()
            if key in found and tuple(found[key].shape) != shape
        ],
    )


def _nearest_arch(backbone: Mapping[str, Tensor]) -> tuple[str, _Difference]:
    """Return the architecture whose tensors are most like `backbone`, and what differs."""
    differences = {}
    for arch in BACKBONES:
        differences[arch] = _compare(backbone, backbone_shapes(arch))
        if not len(differences[arch]):
            return arch, differences[arch]
    nearest = min(differences, key=lambda arch: len(differences[arch]))
    return nearest, differences[nearest]


def _without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(_HEADS)}


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
    arch, difference = _nearest_arch(to_torchvision(ours))
    if difference:
        raise CheckpointError(f"{source} fits no known network; it is nearest to {arch}, but has {difference}.")
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


def _advice(backbone: Mapping[str, Tensor]) -> str | None:
    arch, difference = _nearest_arch(backbone)
    return None if difference else f"The file fits `--arch {arch}`."


def _load(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    advise: Callable[[Mapping[str, Tensor]], str | None] | None = None,
) -> None:
    """Copy `state` into `module`; every key and shape must fit, and every value be finite."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    difference = _compare(state, expected)
    if difference:
        raise CheckpointError(f"{source} does not fit the model: {difference}.", advise(state) if advise else None)
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{source} holds values that are not numbers (NaN or infinity) in {_some(broken)}.")
    counters = {key: torch.tensor(0) for key in expected if key not in state}
    module.load_state_dict({**counters, **state}, strict=True)


def load_backbone_weights(model: nn.Module, file: WeightFile | Path) -> None:
    """Load released ImageNet weights into the backbone of a `ReidNet`; only their classifier is left out.

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
    _load(model.get_submodule("backbone"), _without_head(file.state_dict), str(file.path), _advice)


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
    _load(model, from_official(state), source)
