"""Names of the same tensors in ccreid, in the official Cluster Contrast code and in torchvision or IBN-Net."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ccreid_cli.core.errors import CheckpointError

# The official code numbers the parts of a ResNet; 2 and 3 are the ReLU and the max pooling, which hold no tensors.
OFFICIAL = {
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
# These are put before the keys of any part that is wrapped, and are no part's own name.
_WRAPPERS_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what DataParallel (``module.``) and torch.compile (``_orig_mod.``) put before every key.

    What torch.compile, FSDP and checkpointing of activations put into a key goes wherever it stands.
    """
    stripped = dict(state)
    for wrapper in _WRAPPERS_WITHIN:
        within = {key.replace(wrapper, ""): value for key, value in stripped.items()}
        stripped = within if len(within) == len(stripped) else stripped
    while stripped:
        prefix = next((p for p in _WRAPPERS if all(key.startswith(p) for key in stripped)), None)
        if prefix is None:
            break
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
    return stripped


def rename_start(key: str, names: Mapping[str, str]) -> str:
    """Return `key` with its start replaced by what `names` has for it, or as it is."""
    prefix = next((old for old in names if key.startswith(old)), "")
    return names[prefix] + key.removeprefix(prefix) if prefix else key


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of an official state dict (with or without ``module.``) to ccreid's.

    Keys that the official code does not have keep their names, so that a strict load names them.

    Raises:
        CheckpointError: Two keys would get the same name.
    """
    plain = strip_wrappers(state)
    renamed = {rename_start(key, OFFICIAL): value for key, value in plain.items()}
    if len(renamed) != len(plain):
        raise CheckpointError("the state dict mixes the official code's key names with ccreid's.")
    return renamed


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a ccreid state dict to the official code's, without ``module.``.

    Raises:
        CheckpointError: The network is not a ResNet: the official code has no other.
    """
    names = {ours: official for official, ours in OFFICIAL.items()}
    foreign = [key for key in state if not key.startswith(tuple(names))]
    if foreign:
        raise CheckpointError(
            f"the official code has no place for {len(foreign)} tensors ({foreign[0]}, ...): it knows only ResNets.",
            "Convert with `--to safetensors` or `--to torchvision` instead.",
        )
    return {rename_start(key, names): value for key, value in state.items()}


def to_torchvision(state: Mapping[str, Tensor], source: str = "the state dict") -> dict[str, Tensor]:
    """Return the backbone of a ccreid state dict under the names of its release (torchvision or IBN-Net).

    Pooling, embedding and neck have no place there and are left out, and there is no classifier.

    Args:
        state: The tensors.
        source: What to call them in an error.

    Raises:
        CheckpointError: There is no backbone in `state`.
    """
    prefix = "backbone."
    kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not kept:
        raise CheckpointError(f"{source} holds no backbone.")
    return kept
