"""The released ImageNet weights: where they come from and where they are kept. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccreid_cli.core.errors import CheckpointError, NetworkError, UsageError
from ccreid_cli.core.files import sha256_of
from ccreid_cli.core.paths import torch_hub_checkpoints
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.suggest import did_you_mean

_TORCHVISION = "https://download.pytorch.org/models/"
_IBN_NET = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/"
_BSD = "torchvision, BSD-3-Clause; trained on ImageNet, whose terms apply"
_APACHE = "Ross Wightman's timm, Apache-2.0, through torchvision; trained on ImageNet, whose terms apply"
_MIT = "IBN-Net, MIT; trained on ImageNet, whose terms apply"


@dataclass(frozen=True)
class WeightSource:
    """One released weight file.

    Args:
        arch: The backbone that it fits.
        url: Where it is published.
        num_bytes: Its size, to about one percent, in bytes.
        licence: Who made it, and under which terms.
    """

    arch: str
    url: str
    num_bytes: int
    licence: str

    @property
    def file_name(self) -> str:
        """The published file name."""
        return self.url.rpartition("/")[2]

    @property
    def sha256_prefix(self) -> str:
        """The start of the file's SHA-256, which both publishers put into the name: ``resnet50-0676ba61.pth``."""
        return Path(self.file_name).stem.rpartition("-")[2]

    @property
    def path(self) -> Path:
        """Where the file is kept: torch.hub's own folder, so that nothing is downloaded twice."""
        return torch_hub_checkpoints() / self.file_name


def _catalogue(sources: Sequence[tuple[str, str, float, str]]) -> dict[str, WeightSource]:
    return {arch: WeightSource(arch, url, round(mib * 2**20), licence) for arch, url, mib, licence in sources}


WEIGHTS: dict[str, WeightSource] = _catalogue(
    [
        ("resnet18", _TORCHVISION + "resnet18-f37072fd.pth", 44.7, _BSD),
        ("resnet34", _TORCHVISION + "resnet34-b627a593.pth", 83.3, _BSD),
        ("resnet50", _TORCHVISION + "resnet50-0676ba61.pth", 97.8, _BSD),
        ("resnet101", _TORCHVISION + "resnet101-63fe2227.pth", 170.5, _BSD),
        ("resnet152", _TORCHVISION + "resnet152-394f9c45.pth", 230.4, _BSD),
        ("resnet_ibn50a", _IBN_NET + "resnet50_ibn_a-d9d0bb7b.pth", 97.8, _MIT),
        ("resnet_ibn101a", _IBN_NET + "resnet101_ibn_a-59ea0ac6.pth", 170.5, _MIT),
        ("mobilenet_v2", _TORCHVISION + "mobilenet_v2-b0353104.pth", 13.6, _BSD),
        ("efficientnet_b0", _TORCHVISION + "efficientnet_b0_rwightman-7f5810bc.pth", 20.5, _APACHE),
        ("convnext_tiny", _TORCHVISION + "convnext_tiny-983f1562.pth", 109.1, _BSD),
    ]
)


def _source(arch: str) -> WeightSource:
    if arch in WEIGHTS:
        return WEIGHTS[arch]
    hint = did_you_mean(arch, WEIGHTS) or f"There are weights for: {', '.join(WEIGHTS)}."
    raise UsageError(f'there are no released weights for "{arch}".', hint)


def find_weights(arch: str) -> Path | None:
    """Return the weight file of an architecture if it is on this machine, else None; its content is not checked.

    Raises:
        UsageError: Nobody released weights for `arch`.
    """
    path = _source(arch).path
    return path if path.is_file() else None


def _verify(source: WeightSource) -> None:
    """Check a file that is there against the hash in its name."""
    digest = sha256_of(source.path)
    if not digest.startswith(source.sha256_prefix):
        raise CheckpointError(
            f"{source.path} is damaged: its SHA-256 starts with {digest[: len(source.sha256_prefix)]}, "
            f"not {source.sha256_prefix}.",
            f"Delete it, then run `ccreid weights fetch {source.arch}`.",
        )


def _by_hand(source: WeightSource) -> str:
    return (
        f"Without a network: get {source.url} on another machine and put it into {source.path.parent}, "
        "or give your own file with `--weights FILE`, or start from nothing with `--weights none`."
    )


def ensure_weights(arch: str, reporter: Reporter) -> Path:
    """Return the released weight file of an architecture, checked; it is downloaded when it is not there.

    Args:
        arch: A name of `WEIGHTS`.
        reporter: Where messages and download progress go.

    Raises:
        UsageError: Nobody released weights for `arch`.
        CheckpointError: The file is there, but is not the published one.
        NetworkError: The download failed; the hint says how to get the file by hand.
    """
    source = _source(arch)
    if source.path.is_file():
        _verify(source)
        return source.path
    from ccreid_cli.transfer.download import download

    reporter.message(f"Downloading the ImageNet weights of {arch} ({source.licence}).")
    try:
        return download([source.url], source.path, sha256_prefix=source.sha256_prefix, reporter=reporter)
    except NetworkError as error:
        raise NetworkError(f"no ImageNet weights for {arch}: {error.message}", _by_hand(source)) from error
