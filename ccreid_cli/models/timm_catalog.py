"""What timm's networks are, found out by building them without tensors. timm is imported on use only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.machine.without_tensors import without_tensors

STEM = "+ics"
"""What follows the name of a network with convolutions before its patches: see `timm_networks.StemmedPatches`."""
STEM_TENSORS = "patch_embed.conv."
"""How the names of the tensors of these convolutions begin in files."""
STEM_STRIDE = 2
"""They make the image smaller by this factor."""


@dataclass(frozen=True)
class About:
    """What is known of a network of timm without its weights.

    Attributes:
        num_channels: Channels of its maps, or length of its tokens.
        layout: ``maps`` (B, C, H, W), ``maps-last`` (B, H, W, C) or ``tokens`` (B, N, C).
        num_prefix: Tokens before those of the patches.
        has_class_token: Whether the first of them is a class token.
        pools: How timm pools it: ``token``, ``avg`` and so on.
        size: Height and width that it is made for.
        fixed: Whether it takes images of no other size.
        unused: Parts that only the classifier needs.
        options: What it is created with.
    """

    num_channels: int
    layout: str
    num_prefix: int
    has_class_token: bool
    pools: str
    size: tuple[int, int]
    fixed: bool
    unused: tuple[str, ...]
    options: dict[str, Any] = field(hash=False)


def usual_pooling(name: str) -> str | None:
    """Return the pooling that suits a network; None for one that gives feature maps.

    Raises:
        UsageError: timm is not installed, or has no such network.
    """
    about = about_network(name)
    if about.layout != "tokens":
        return None
    return "class" if about.has_class_token and about.pools == "token" else "avg"


@cache
def about_network(name: str, height: int = 0, width: int = 0) -> About:
    """Find out what a network of timm gives, by building it without tensors.

    Args:
        name: Its name in timm, with or without the tag of its weights and `STEM`.
        height: Input height; 0 for its own size.
        width: Input width.

    Raises:
        UsageError: timm is not installed, has no such network, or the network cannot take such images.
    """
    with torch.random.fork_rng(devices=[]), without_tensors():
        options, net = _create_any(name, height, width)
        net.eval()
        size = (height, width) if height else tuple(net.pretrained_cfg["input_size"][-2:])
        called: set[str] = set()
        for part, module in net.named_modules():
            module.register_forward_hook(_note(called, part))
        try:
            found = net.forward_features(torch.zeros(1, 3, *size))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0][:120]
            raise UsageError(
                f"timm:{name} cannot take images of {size[0]}x{size[1]} ({reason}).", "Try --height 224 --width 224."
            ) from error
    if not isinstance(found, Tensor) or found.ndim not in (3, 4):
        raise UsageError(f"timm:{name} gives neither feature maps nor tokens.")
    is_last = found.ndim == 4 and found.shape[1] != net.num_features
    prefix = getattr(net, "num_prefix_tokens", 0)
    return About(
        num_channels=found.shape[-1] if is_last or found.ndim == 3 else found.shape[1],
        layout="tokens" if found.ndim == 3 else "maps-last" if is_last else "maps",
        num_prefix=prefix,
        has_class_token=prefix > 0 and getattr(net, "cls_token", None) is not None,
        pools=str(getattr(net, "global_pool", "")),
        size=size,
        fixed=bool(net.pretrained_cfg.get("fixed_input_size")) and "dynamic_img_size" not in options,
        unused=tuple(part for part, module in net.named_children() if _is_unused(part, module, called)),
        options=options,
    )


def _note(called: set[str], part: str) -> Callable[..., None]:
    return lambda *_: called.add(part)


def _is_unused(part: str, module: nn.Module, called: set[str]) -> bool:
    has_tensors = any(True for _ in module.state_dict())
    return has_tensors and not any(name == part or name.startswith(f"{part}.") for name in called)


def _create_any(name: str, height: int, width: int) -> tuple[dict[str, Any], Any]:
    """Create a network in the first of the ways to set its input size that it knows."""
    sized: dict[str, Any] = {"img_size": (height, width)} if height else {}
    free: dict[str, Any] = {"dynamic_img_size": True}
    for options in ({**sized, **free, "dynamic_img_pad": True}, {**sized, **free}, sized, {}):
        try:
            return options, create(name, options)
        except TypeError as error:
            if "unexpected keyword" not in str(error) or not options:
                raise
    raise AssertionError("unreachable")


def create(name: str, options: Mapping[str, Any]) -> Any:
    """Create a network of timm, without the `STEM` that its name may have.

    Raises:
        UsageError: timm is not installed, or has no such network.
    """
    name = name.removesuffix(STEM)
    timm = require("timm", "timm")
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise UsageError(f'timm has no network "{name}".', did_you_mean(name, known) or "`timm.list_models()` has all.")
    try:
        return timm.create_model(name, **options)
    except RuntimeError as error:
        if "tag" not in str(error):
            raise
        raise UsageError(
            f"timm:{name}: {error}", f"Leave the part after the dot out: timm:{name.partition('.')[0]}."
        ) from error
