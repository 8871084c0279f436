"""Writing a trained network in the forms that other programs read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccreid_cli.core.errors import CheckpointError, UsageError
from ccreid_cli.core.files import atomic_path
from ccreid_cli.core.suggest import did_you_mean
from ccreid_cli.models.key_maps import rename_start, to_official, to_torchvision
from ccreid_cli.models.programs import PROGRAMS
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.models.spec import ModelSpec
from ccreid_cli.models.weight_files import (
    SPEC_METADATA,
    WeightFile,
    backbone_arch,
    load_backbone_weights,
    load_reid_weights,
    read_weights,
)


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors that share no memory with the model."""
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}


def _save(content: Mapping[str, Any], path: Path) -> None:
    # Through memory: PyTorch's own file writer does not say that the disk is full.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getbuffer())


def _write_official(state: Mapping[str, Tensor], spec: ModelSpec, path: Path, epoch: int) -> None:
    # The official code loads into a DataParallel model, whose keys start with "module.".
    content = {"state_dict": {f"module.{key}": value for key, value in to_official(_plain(state)).items()}}
    _save({**content, "epoch": epoch, "best_mAP": 0.0}, path)


def _write_torchvision(state: Mapping[str, Tensor], spec: ModelSpec, path: Path, epoch: int) -> None:
    _save(_plain(to_torchvision(state)), path)


def _write_torchreid(state: Mapping[str, Tensor], spec: ModelSpec, path: Path, epoch: int) -> None:
    program = PROGRAMS["torchreid"]
    if not spec.arch.startswith("osnet_") or not spec.num_features or spec.pooling_type != "avg":
        raise CheckpointError("torchreid's form is for OSNet with its head (average pooling, --features 512).")
    if not spec.relu:
        raise CheckpointError(
            "this network was trained without the ReLU in which torchreid's networks end.",
            "Train with --neck-relu, or use `ccreid export --format onnx`, which holds the network itself.",
        )
    _save(
        {
            rename_start(key, {ours: theirs for theirs, ours in program.names.items()}): value
            for key, value in _plain(state).items()
        },
        path,
    )


def _write_safetensors(state: Mapping[str, Tensor], spec: ModelSpec, path: Path, epoch: int) -> None:
    write_safetensors(state, spec, path, epoch=str(epoch))


def write_safetensors(state: Mapping[str, Tensor], spec: ModelSpec, path: Path, **about: str) -> None:
    """Write a whole network as safetensors, which `read_weights` reads.

    Args:
        state: A `ReidNet` state dict.
        spec: What the network is made of; kept in the header.
        path: The file to write.
        about: Further entries of the header.
    """
    from safetensors.torch import save

    # Its own file writer makes files that only the owner may read.
    path.write_bytes(save(_plain(state), {"format": "pt", SPEC_METADATA: json.dumps(asdict(spec)), **about}))


EXPORTS: dict[str, Callable[[Mapping[str, Tensor], ModelSpec, Path, int], None]] = {
    "official": _write_official,
    "safetensors": _write_safetensors,
    "torchreid": _write_torchreid,
    "torchvision": _write_torchvision,
}
EXPORT_SUFFIXES = {"official": ".pth.tar", "safetensors": ".safetensors", "torchreid": ".pth", "torchvision": ".pth"}


def export_weights(state: Mapping[str, Tensor], spec: ModelSpec, path: Path, form: str, epoch: int = 0) -> None:
    """Write a network's weights for other programs; the file appears if it loads again, or not at all.

    Args:
        state: A `ReidNet` state dict.
        spec: What the network is made of.
        path: The file to write.
        form: ``official`` (a checkpoint that the official Cluster Contrast code resumes from), ``safetensors`` (all
            tensors, readable by ccreid too), ``torchreid`` (OSNet with its head, as trackers load it) or
            ``torchvision`` (the backbone alone, under its release's names).
        epoch: Epochs trained, recorded where the form has a place for it.

    Raises:
        UsageError: There is no such form.
        CheckpointError: The form cannot hold this network, or what was written does not load again.
        DataError: The file could not be written.
    """
    if form not in EXPORTS:
        raise UsageError(f'there is no form "{form}".', did_you_mean(form, EXPORTS) or f"Forms: {', '.join(EXPORTS)}.")
    with atomic_path(path) as temporary:
        EXPORTS[form](state, spec, temporary, epoch)
        _check_loads(temporary, form, spec, path)


def export_backbone(file: WeightFile, path: Path) -> None:
    """Write the backbone of a file that holds no whole network, under its release's names.

    Args:
        file: What was read, of whatever program.
        path: The file to write.

    Raises:
        CheckpointError: It is no known backbone, or what was written does not load again.
        DataError: The file could not be written.
    """
    spec = ModelSpec(backbone_arch(file))
    load_backbone_weights(ReidNet(spec, initialize_backbone=False), file)
    with atomic_path(path) as temporary:
        _save(_plain(file.state_dict), temporary)
        _check_loads(temporary, "torchvision", spec, path)


def _check_loads(written: Path, form: str, spec: ModelSpec, path: Path) -> None:
    """Read a written file back and build its network."""
    try:
        file = read_weights(written)
        if form == "torchvision":
            load_backbone_weights(ReidNet(spec, initialize_backbone=False), file)
        else:
            load_reid_weights(ReidNet(file.spec, initialize_backbone=False), file.state_dict, str(path))
    except CheckpointError as error:
        what = error.message.replace(str(written), "the new file")
        raise CheckpointError(f"{path} was not written, since it would not load again: {what}", error.hint) from error
