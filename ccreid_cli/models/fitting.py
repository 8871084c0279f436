"""Which known backbone a set of tensors is, and how it differs from the nearest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ccreid_cli.core.components import find_row
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
