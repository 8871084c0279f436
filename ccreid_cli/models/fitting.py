"""Which known backbone a set of tensors is, how it differs from the nearest one, and loading what fits exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ccreid_cli.core.components import find_row
from ccreid_cli.core.errors import CheckpointError
from ccreid_cli.models.backbones import backbone_shapes, empty_backbone
from ccreid_cli.models.registry import BACKBONES
from ccreid_cli.models.vit_files import transformer_arch

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Difference:
    """How the tensors found differ from those expected.

    Attributes:
        missing: Expected, and not there.
        unknown: There, and not expected.
        reshaped: Of another shape than expected, in words.
    """

    missing: list[str]
    unknown: list[str]
    reshaped: list[str]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unknown) + len(self.reshaped)

    def __str__(self) -> str:
        parts = {"missing": self.missing, "unknown": self.unknown, "of another shape": self.reshaped}
        return "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in parts.items() if keys)


def some(names: Sequence[str], limit: int = 5) -> str:
    """Name the first few of `names`, and say how many there are besides."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def with_shapes(tensors: Mapping[str, Tensor]) -> str:
    """Name the first few tensors, each with its shape."""
    return some([f"{key} {list(value.shape)}" for key, value in tensors.items()])


def compare(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> Difference:
    """Compare tensors with the shapes that a module expects."""
    # Files from before PyTorch 0.4.1 have no step counters at all, which evaluation and training do without.
    old = not any(key.endswith(_COUNTER) for key in found)
    return Difference(
        missing=[key for key in expected if key not in found and not (old and key.endswith(_COUNTER))],
        unknown=[key for key in found if key not in expected],
        reshaped=[
            f"{key} is {list(found[key].shape)}, not {list(shape)}"
            for key, shape in expected.items()
            if key in found and tuple(found[key].shape) != shape
        ],
    )


def backbone_difference(backbone: Mapping[str, Tensor], arch: str) -> Difference:
    """Compare the tensors of a file with a backbone, at whatever input size.

    Raises:
        UsageError: There is no such architecture.
    """
    if find_row(BACKBONES, "architecture", arch).sized:
        backbone = empty_backbone(arch).fitted(backbone)
    return compare(backbone, backbone_shapes(arch))


def nearest_arch(backbone: Mapping[str, Tensor], program: str = "") -> tuple[str, Difference]:
    """Return the architecture whose tensors are most like `backbone`, and what differs.

    Args:
        backbone: The tensors.
        program: Which program the file looks like, if any.
    """
    transformer = transformer_arch(backbone, program)
    if transformer:
        return transformer, backbone_difference(backbone, transformer)
    differences = {}
    for arch in (name for name, row in BACKBONES.items() if row.member is None):
        differences[arch] = compare(backbone, backbone_shapes(arch))
        if not len(differences[arch]):
            return arch, differences[arch]
    nearest = min(differences, key=lambda arch: len(differences[arch]))
    return nearest, differences[nearest]


def misfit(source: str, difference: Difference, advice: str | None) -> CheckpointError:
    """Return the error for tensors that are not those of the network."""
    return CheckpointError(f"{source} does not fit the model: {difference}.", advice)


def load_exactly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    advise: Callable[[Mapping[str, Tensor]], str | None] | None = None,
) -> None:
    """Copy `state` into `module`; every key and shape must fit, and every value be finite.

    Args:
        module: Where to.
        state: The tensors.
        source: What to call them in an error.
        advise: Returns advice for tensors that do not fit, if there is any.

    Raises:
        CheckpointError: They do not fit.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    difference = compare(state, expected)
    if difference:
        raise misfit(source, difference, advise(state) if advise else None)
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{source} holds values that are not numbers (NaN or infinity) in {some(broken)}.")
    counters = {key: torch.tensor(0) for key in expected if key not in state}
    module.load_state_dict({**counters, **state}, strict=True)
