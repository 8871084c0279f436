"""Networks of timm as backbones: ``-a timm:NAME``, whatever has ``forward_features``. timm is imported on use only.

Tensors keep timm's names. What only timm's classifier needs is left away. Images come normalised as everywhere in
ccreid, and are brought to the mean and deviation that the network was made for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import CheckpointError, UsageError
from ccreid_cli.models.backbones import Backbone, InstanceBatchNorm, Tokens
from ccreid_cli.models.batch_norm import ChunkedBatchNorm2d
from ccreid_cli.models.timm_catalog import STEM, STEM_STRIDE, STEM_TENSORS, about_network, create

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What images are normalised by before they come here: see `images.augment`."""
_POSITIONS = "pos_embed"
_STEM_CHANNELS = 64
_STEM_INSIDE = "patch_embed.proj.conv."
"""How the names of its tensors begin inside the network; state dicts have those of the release."""


class _BatchNormAct(ChunkedBatchNorm2d):
    """timm's batch norm with its activation, normalised in chunks."""

    def __init__(self, plain: Any) -> None:
        super().__init__(plain.num_features, eps=plain.eps, momentum=plain.momentum, affine=plain.affine)
        for name, value in (*plain.named_parameters(recurse=False), *plain.named_buffers(recurse=False)):
            setattr(self, name, value)
        self.drop, self.act = plain.drop, plain.act

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W), then activate."""
        result: Tensor = self.act(self.drop(super().forward(input)))
        return result


def _replace_batch_norms(module: nn.Module) -> None:
    """Give batch norms with an activation of their own a form that `batch_norm.chunk_batch_norms` knows."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and hasattr(child, "act"):
            setattr(module, name, _BatchNormAct(child))
        else:
            _replace_batch_norms(child)


class StemmedPatches(nn.Conv2d):
    """Makes patches into tokens after three convolutions with instance and batch norm: an IBN-based stem (ICS).

    Source: Luo et al., "Self-Supervised Pre-Training for Transformer-Based Person Re-Identification", arXiv 2111.12084.

    Args:
        plain: The one convolution that does so without them.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        height, width = (size // STEM_STRIDE for size in plain.kernel_size)
        super().__init__(_STEM_CHANNELS, plain.out_channels, (height, width), stride=(height, width))
        layers: list[nn.Module] = []
        for norm in (InstanceBatchNorm, InstanceBatchNorm, nn.BatchNorm2d):
            first = not layers
            inputs, size, stride = (plain.in_channels, 7, STEM_STRIDE) if first else (_STEM_CHANNELS, 3, 1)
            conv = nn.Conv2d(inputs, _STEM_CHANNELS, size, stride=stride, padding=size // 2, bias=False)
            layers += [conv, norm(_STEM_CHANNELS), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)

    def forward(self, input: Tensor) -> Tensor:
        """Turn (B, 3, H, W) images into one vector per patch, (B, width, rows, columns)."""
        return super().forward(self.conv(input))


class TimmBackbone(Backbone):
    """A network of timm without its classifier.

    Args:
        name: Its name in timm; with `STEM` at its end it has `StemmedPatches`.
        height: Input height that position embeddings are made for; 0 for the network's own. Others are taken too.
        width: Input width, likewise.
        drop_path: Largest rate of stochastic depth.

    Raises:
        UsageError: timm is not installed or has no such network, or the network cannot take such images.
    """

    fusible = False
    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, height: int = 0, width: int = 0, drop_path: float = 0.0) -> None:
        about = about_network(name, height, width)
        super().__init__(about.num_channels)
        self.name, self.about, self.has_stem = name, about, name.endswith(STEM)
        self.has_class_token = self.about.has_class_token
        self.net: Any = self._created(drop_path)
        for part in self.about.unused:
            setattr(self.net, part, nn.Identity())
        _replace_batch_norms(self.net)
        mean, std = (torch.tensor(self.net.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("scale", torch.tensor(_STD).view(1, 3, 1, 1) / std, persistent=False)
        self.register_buffer("shift", (torch.tensor(_MEAN).view(1, 3, 1, 1) - mean) / std, persistent=False)
        hooks: Any = self
        hooks.register_state_dict_post_hook(_take_net_away)
        hooks.register_load_state_dict_pre_hook(_put_net_before)

    def _created(self, drop_path: float) -> Any:
        try:
            net = create(self.name, {**self.about.options, **({"drop_path_rate": drop_path} if drop_path else {})})
        except TypeError as error:
            raise UsageError(f"timm:{self.name} takes no --drop-path ({error}).", "Leave it out.") from error
        if self.has_stem:
            patches = getattr(getattr(net, "patch_embed", None), "proj", None)
            if not isinstance(patches, nn.Conv2d) or any(size % STEM_STRIDE for size in patches.kernel_size):
                raise UsageError(f"timm:{self.name}: {STEM} is for transformers with patches of an even size.")
            net.patch_embed.proj = StemmedPatches(patches)
        return net

    def forward(self, images: Tensor) -> Tensor | Tokens:
        """Turn (B, 3, H, W) normalised images into (B, num_channels, H', W') feature maps, or into tokens.

        Raises:
            UsageError: The network takes no images of this size.
        """
        size = (images.shape[-2], images.shape[-1])
        if self.about.fixed and size != self.about.size:
            height, width = self.about.size
            raise UsageError(
                f"timm:{self.name} takes images of {height}x{width} only, not {size[0]}x{size[1]}.",
                f"Use --height {height} --width {width}, also where it is trained.",
            )
        found: Tensor = self.net.forward_features(images * self.scale + self.shift)
        if self.about.layout == "maps":
            return found
        if self.about.layout == "maps-last":
            return found.permute(0, 3, 1, 2)
        maps = found[:, self.about.num_prefix :].transpose(1, 2).unsqueeze(-1)
        return Tokens(found[:, 0], maps) if self.has_class_token else maps

    def fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file under timm's present names, without heads, for this network's input size."""
        state = self.resized(self.without_heads(state))
        convert = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        try:
            return self.without_heads(convert(dict(state), self.net)) if convert else dict(state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            return dict(state)  # what does not fit is named when it is compared

    def without_heads(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out what only the classifier needs."""
        heads = tuple(f"{part}." for part in self.about.unused)
        return {key: value for key, value in state.items() if not key.startswith(heads)}

    def resized(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors with position embeddings for this network's input size."""
        own, grid = getattr(self.net, _POSITIONS, None), self._grid(state)
        if grid is None or not isinstance(own, Tensor) or own.ndim != 3:
            return dict(state)
        resample = require("timm.layers", "timm").resample_abs_pos_embed
        new = self.net.patch_embed.grid_size
        options = {"new_size": list(new), "old_size": list(grid), "num_prefix_tokens": self._num_prefix_positions}
        return {**state, _POSITIONS: resample(state[_POSITIONS], **options)}

    def size_of(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return the input height and width that the position embeddings of a file are for; zeros without any."""
        grid, patch = self._grid(state), getattr(self.patch_embedding(), "patch_size", None)
        return (grid[0] * patch[0], grid[1] * patch[1]) if grid and patch else (0, 0)

    @property
    def _num_prefix_positions(self) -> int:
        return 0 if getattr(self.net, "no_embed_class", False) else self.about.num_prefix

    def _grid(self, state: Mapping[str, Tensor]) -> tuple[int, int] | None:
        positions = state.get(_POSITIONS)
        if positions is None or positions.ndim != 3 or "register_tokens" in state:  # timm reads these by itself
            return None
        return grid_of(positions.shape[1] - self._num_prefix_positions)

    def patch_embedding(self) -> nn.Module | None:
        """Return the layer that makes patches into tokens, if there is one."""
        found = getattr(self.net, "patch_embed", None)
        return found if isinstance(found, nn.Module) else None

    def checkpoint_gradients(self) -> bool:
        """Compute activations a second time in the backward pass instead of keeping them; False where it cannot."""
        try:
            self.net.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            return False
        return True


def grid_of(num_patches: int) -> tuple[int, int]:
    """Return the rows and columns of so many patches: a square, or as people's images have it, two or three high.

    Raises:
        CheckpointError: They make no such grid.
    """
    for ratio in (1, 2, 3):
        columns = math.isqrt(num_patches // ratio)
        if ratio * columns**2 == num_patches:
            return ratio * columns, columns
    raise CheckpointError(f"position embeddings of {num_patches} patches are of no known grid (1:1, 2:1 or 3:1).")


def _take_net_away(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    _rename(state, f"{prefix}net.", prefix)
    if module.has_stem:
        _rename(state, prefix + _STEM_INSIDE, prefix + STEM_TENSORS)


def _put_net_before(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if module.has_stem:
        _rename(state, prefix + STEM_TENSORS, prefix + _STEM_INSIDE)
    _rename(state, prefix, f"{prefix}net.")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    """Replace the start of keys in place, in the same order."""
    renamed = {new + key.removeprefix(old) if key.startswith(old) else key: state[key] for key in list(state)}
    state.clear()
    state.update(renamed)
