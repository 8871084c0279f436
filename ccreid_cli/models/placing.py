"""Putting a network on its device, in the memory layout and number format that are fastest there."""

from __future__ import annotations

import torch

from ccreid_cli.machine.device import resolve_precision, step_seconds
from ccreid_cli.machine.host_memory import keep_freed_memory
from ccreid_cli.models.reid_net import ReidNet


def probe_precision(request: str, model: ReidNet, device: torch.device, height: int, width: int) -> str:
    """Return ``fp32`` or ``bf16``: as asked, or what `resolve_precision` finds fastest for this network."""
    images = torch.randn(16, 3, height, width, device=device).to(memory_format=torch.channels_last)
    return resolve_precision(request, device, lambda precision: step_seconds(model, images, precision))


def place(model: ReidNet, device: torch.device) -> ReidNet:
    """Move a network to its device, in the channels-last layout that convolutions are fastest in.

    On Apple's GPUs it stays in plain order: see `ReidNet.forward`.
    """
    if device.type == "cpu":
        keep_freed_memory()
    memory_format = torch.contiguous_format if device.type == "mps" else torch.channels_last
    return model.to(device).to(memory_format=memory_format)
