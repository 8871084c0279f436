"""Putting a network on its device, in the memory layout and number format that are fastest there."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ccreid_cli.core.errors import UsageError
from ccreid_cli.machine.device import resolve_precision, step_seconds
from ccreid_cli.machine.host_memory import keep_freed_memory
from ccreid_cli.models.reid_net import ReidNet

_LEAVE_OUT = "Leave the option out."


def probe_precision(request: str, model: ReidNet, device: torch.device, height: int, width: int) -> str:
    """Return ``fp32`` or ``bf16``: as asked, or what `resolve_precision` finds fastest for this network."""
    images = torch.randn(16, 3, height, width, device=device).to(memory_format=torch.channels_last)
    return resolve_precision(request, device, lambda precision: step_seconds(model, images, precision))


def prepare_training(model: ReidNet, *, freeze_patch_embed: bool, grad_checkpointing: bool) -> None:
    """Set what a network needs in training only.

    Args:
        model: The network.
        freeze_patch_embed: Leave the layer that makes patches into tokens as it is.
        grad_checkpointing: Compute activations a second time in the backward pass instead of keeping them.

    Raises:
        UsageError: The network has no such layer, or cannot do that.
    """
    arch, patches = model.spec.arch, model.backbone.patch_embedding()
    if freeze_patch_embed:
        if patches is None:
            raise UsageError(f"--freeze-patch-embed: {arch} has no layer that makes patches into tokens.", _LEAVE_OUT)
        if any(isinstance(module, _BatchNorm) for module in patches.modules()):
            what = f"the layer of {arch} that makes patches into tokens has batch norms"
            raise UsageError(f"--freeze-patch-embed: {what}, which training would change all the same.", _LEAVE_OUT)
        patches.requires_grad_(False)
    if grad_checkpointing:
        # A second pass would move the running statistics twice; what makes patches is computed once.
        once = set(patches.modules()) if patches else set()
        if any(isinstance(module, _BatchNorm) for module in model.backbone.modules() if module not in once):
            raise UsageError(f"--grad-checkpointing: {arch} has batch norms.", "It is for transformers. " + _LEAVE_OUT)
        if not model.backbone.checkpoint_gradients():
            raise UsageError(f"--grad-checkpointing: {arch} cannot do that.", _LEAVE_OUT)


def place(model: ReidNet, device: torch.device) -> ReidNet:
    """Move a network to its device, in the channels-last layout that convolutions are fastest in.

    On Apple's GPUs it stays in plain order: see `ReidNet.forward`.
    """
    if device.type == "cpu":
        keep_freed_memory()
    memory_format = torch.contiguous_format if device.type == "mps" else torch.channels_last
    return model.to(device).to(memory_format=memory_format)
