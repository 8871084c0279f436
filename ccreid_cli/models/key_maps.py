"""Names of the same tensors in ccreid, in the official Cluster Contrast code and in torchvision or IBN-Net."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ccreid_cli.core.errors import CheckpointError

# The official code numbers the parts of a ResNet; 2 and 3 are the ReLU and the max pooling, which hold no tensors.
_OFFICIAL = {
    "base.0.": "backbone.conv1.",
    "base.1.": "backbone.bn1.",
    "base.4.": "backbone.layer1.",
    "base.5.": "backbone.layer2.",
    "base.6.": "backbone.layer3.",
    "base.7.": "backbone.layer4.",
    "gap.": "pooling.",
    "feat.": "embedding.",
    "feat_bn.": "neck.",
}
_WRAPPERS = ("module.", "_orig_mod.")


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what DataParallel (``module.``) and torch.compile (``_orig_mod.``) put before every key."""
    stripped = dict(state)
    while stripped:
        prefix = next((p for p in _WRAPPERS if all(key.startswith(p) for key in stripped)), None)
        if prefix is None:
            break
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
    return stripped


def _renamed(key: str, names: Mapping[str, str]) -> str:
    prefix = next((old for old in names if key.startswith(old)), "")
    return names[prefix] + key.removeprefix(prefix) if prefix else key


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of an official state dict (with or without ``module.``) to ccreid's.

    Keys that the official code does not have keep their names, so that a strict load names them.

    Raises:
        CheckpointError: Two keys would get the same name.
    """
    plain = strip_wrappers(state)
    renamed = {_renamed(key, _OFFICIAL): value for key, value in plain.items()}
    if len(renamed) != len(plain):
        raise CheckpointError("the state dict mixes the official code's key names with ccreid's.")
    return renamed


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a ccreid state dict to the official code's, without ``module.``.

    Raises:
        CheckpointError: The network is not a ResNet: the official code has no other.
    """
    names = {ours: official for official, ours in _OFFICIAL.items()}
    foreign = [key for key in state if not key.startswith(tuple(names))]
    if foreign:
        raise CheckpointError(
            f"the official code has no place for {len(foreign)} tensors ({foreign[0]}, ...): it knows only ResNets.",
            "Convert with `--to safetensors` or `--to torchvision` instead.",
        )
    return {_renamed(key, names): value for key, value in state.items()}


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone of a ccreid state dict under the names of its release (torchvision or IBN-Net).

    Pooling, embedding and neck have no place there and are left out, and there is no classifier.

    Raises:
        CheckpointError: There is no backbone in `state`.
    """
    prefix = "backbone."
    kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not kept:
        raise CheckpointError("the state dict holds no backbone.")
    return kept
