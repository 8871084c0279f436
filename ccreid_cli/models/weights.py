"""The released ImageNet weights: found, fetched, checked. `models.registry` has their addresses. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from ccreid_cli.core.components import find_row
from ccreid_cli.core.errors import CheckpointError, NetworkError, UsageError
from ccreid_cli.core.files import sha256_of
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.models.registry import BACKBONES, BackboneRow


def weights_row(arch: str) -> BackboneRow:
    """Return the row of a backbone that released weights exist for.

    Raises:
        UsageError: There is no such architecture, or nobody released weights for it.
    """
    row = find_row(BACKBONES, "architecture", arch)
    if row.sized:
        raise UsageError(
            f"the weights of {arch} are timm's, which fetches them when the network is first used.",
            f"Train or score with `-a {arch} --weights imagenet`.",
        )
    if not row.url:
        released = ", ".join(name for name, other in BACKBONES.items() if other.url)
        raise UsageError(f'there are no released weights for "{arch}".', f"There are weights for: {released}.")
    return row


def find_weights(arch: str) -> Path | None:
    """Return the weight file of an architecture if it is on this machine, else None; its content is not checked.

    Raises:
        UsageError: Nobody released weights for `arch`.
    """
    path = weights_row(arch).path
    return path if path.is_file() else None


def _verify(arch: str, source: BackboneRow) -> None:
    """Check a file that is there against the hash in its name."""
    digest = sha256_of(source.path)
    if not digest.startswith(source.sha256_prefix):
        raise CheckpointError(
            f"{source.path} is damaged: its SHA-256 starts with {digest[: len(source.sha256_prefix)]}, "
            f"not {source.sha256_prefix}.",
            f"Delete it, then run `ccreid weights fetch {arch}`.",
        )


def _by_hand(source: BackboneRow) -> str:
    return (
        f"Without a network: get {source.url} on another machine and put it into {source.path.parent}, "
        "or give your own file with `--weights FILE`, or start from nothing with `--weights none`."
    )


def ensure_weights(arch: str, reporter: Reporter) -> Path:
    """Return the released weight file of an architecture, checked; it is downloaded when it is not there.

    Args:
        arch: A name of `BACKBONES`.
        reporter: Where messages and download progress go.

    Raises:
        UsageError: Nobody released weights for `arch`.
        CheckpointError: The file is there, but is not the published one.
        NetworkError: The download failed; the hint says how to get the file by hand.
    """
    source = weights_row(arch)
    if source.path.is_file():
        _verify(arch, source)
        return source.path
    from ccreid_cli.transfer.download import download

    reporter.message(f"Downloading the ImageNet weights of {arch} ({source.licence}).")
    try:
        return download([source.url], source.path, sha256_prefix=source.sha256_prefix, reporter=reporter)
    except NetworkError as error:
        raise NetworkError(f"no ImageNet weights for {arch}: {error.message}", _by_hand(source)) from error
