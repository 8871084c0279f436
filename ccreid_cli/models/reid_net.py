"""The re-identification network: backbone -> pooling -> (embedding) -> batch-norm neck -> unit vector."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccreid_cli.core.components import find_row
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.models.backbones import Tokens, build_backbone
from ccreid_cli.models.batch_norm import ChunkedBatchNorm1d, chunk_batch_norms
from ccreid_cli.models.pooling import TokenPooling, at_least_float32
from ccreid_cli.models.registry import BACKBONES, POOLINGS
from ccreid_cli.models.spec import ModelSpec
from ccreid_cli.models.weight_files import (
    adopted_spec,
    load_backbone_weights,
    load_reid_weights,
    read_weights,
)
from ccreid_cli.models.weights import ensure_weights

__all__ = ["ModelSpec", "ReidNet", "build_model"]

_WITH = "Give --features N too, or leave it out."


def _check(spec: ModelSpec) -> None:
    """Raise a UsageError for a value no network can be built from; the backbone checks its own name."""
    find_row(POOLINGS, "pooling", spec.pooling_type)
    if spec.num_features < 0:
        raise UsageError(f"--features must be 0 (no embedding) or more, not {spec.num_features}.")
    if not 0.0 <= spec.dropout < 1.0:
        raise UsageError(f"--dropout must be at least 0 and less than 1, not {spec.dropout}.")
    if spec.with_pooled and not spec.num_features:
        raise UsageError("--with-pooled keeps the pooled feature beside an embedding, and there is none.", _WITH)


class ReidNet(nn.Module):
    """The network that Cluster Contrast trains (paper, section 3; its bias-free neck follows Luo et al., CVPRW 2019).

    Args:
        spec: What to build.
        samples_per_bn: The most samples that share batch-norm statistics in training.
        initialize_backbone: False leaves the backbone's tensors unset, for callers that load all of them next.

    Raises:
        UsageError: `spec` names something that does not exist or is out of range.
    """

    def __init__(self, spec: ModelSpec, samples_per_bn: int = 64, *, initialize_backbone: bool = True) -> None:
        super().__init__()
        _check(spec)
        self.spec = spec
        self.backbone = build_backbone(
            spec.arch,
            initialize=initialize_backbone,
            height=spec.height,
            width=spec.width,
            drop_path=spec.drop_path,
        )
        self.pooling = POOLINGS[spec.pooling_type].load()()
        pooled_dim = self._pooled_dim()
        self.embedding_dim = spec.num_features + pooled_dim if spec.with_pooled else spec.num_features or pooled_dim
        self.embedding = self._build_embedding(pooled_dim) if spec.num_features else None
        self.neck = ChunkedBatchNorm1d(self.embedding_dim, samples_per_bn=samples_per_bn)
        self.neck.bias.requires_grad_(False)
        chunk_batch_norms(self.backbone, samples_per_bn)

    def _pooled_dim(self) -> int:
        if not isinstance(self.pooling, TokenPooling):
            return self.backbone.num_channels
        if not self.backbone.has_class_token:
            raise UsageError(
                f"--pooling-type {self.spec.pooling_type}: {self.spec.arch} has no class token.",
                "Use --pooling-type gem, avg or max.",
            )
        return self.backbone.num_channels * self.pooling.parts

    def _build_embedding(self, pooled_dim: int) -> nn.Linear:
        embedding = nn.Linear(pooled_dim, self.spec.num_features)
        nn.init.kaiming_normal_(embedding.weight, mode="fan_out")
        nn.init.zeros_(embedding.bias)
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """Turn images into features.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            (B, embedding_dim) rows of length one, float32 under autocast too; in training dropout follows, if any.
        """
        if images.device.type == "mps":
            images = images.contiguous()  # Apple's batch norm has wrong gradients in channels_last (pytorch #175189)
        seen: Tensor | Tokens = self.backbone(images)
        if isinstance(seen, Tokens) and not isinstance(self.pooling, TokenPooling):
            seen = seen.maps
        with torch.autocast(images.device.type, enabled=False):
            features = at_least_float32(self.pooling(seen))
            if self.embedding is not None:
                embedded = self.embedding(features)
                features = torch.cat([features, embedded], dim=1) if self.spec.with_pooled else embedded
            features = self.neck(features)
            features = F.normalize(F.relu(features) if self.spec.relu else features)
            return F.dropout(features, self.spec.dropout, training=self.training)


def build_model(
    spec: ModelSpec,
    *,
    weights: str = "imagenet",
    samples_per_bn: int = 64,
    reporter: Reporter | None = None,
    typed: Collection[str] = ("arch", "pooling_type", "num_features", "relu"),
) -> ReidNet:
    """Build a network with its starting weights.

    Args:
        spec: What to build.
        weights: ``imagenet`` (the released weights, downloaded once), ``none`` (drawn from torch's global generator),
            or a file: ImageNet weights for the backbone, or a whole re-identification checkpoint.
        samples_per_bn: The most samples that share batch-norm statistics in training.
        reporter: Where messages and download progress go.
        typed: Fields of `spec` that a weight file must not contradict; the file decides on the others.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        UsageError: `spec` is not possible, or contradicts a re-identification checkpoint.
        CheckpointError: The file is missing, damaged, unsafe or does not fit.
        NetworkError: The released weights could not be downloaded.
    """
    reporter = reporter or SilentReporter()
    if weights == "none":
        return ReidNet(spec, samples_per_bn)
    _check(spec)
    if weights == "imagenet" and find_row(BACKBONES, "architecture", spec.arch).sized:
        from ccreid_cli.models.timm_weights import load_timm_weights

        model = ReidNet(spec, samples_per_bn)
        load_timm_weights(model, reporter)
        return model
    path = ensure_weights(spec.arch, reporter) if weights == "imagenet" else Path(weights).expanduser()
    file = read_weights(path)
    for note in file.notes:
        reporter.message(note)
    adopted = adopted_spec(file, spec, ("arch", *typed) if weights == "imagenet" else typed)
    if adopted != spec:
        reporter.message(f"{path.name} is {adopted.in_words()}: so is the network.")
    model = ReidNet(adopted, samples_per_bn, initialize_backbone=False)
    if file.is_reid:
        load_reid_weights(model, file.state_dict, source=file.title)
    else:
        load_backbone_weights(model, file)
    return model
