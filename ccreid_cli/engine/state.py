"""Where a run is, beside model, method and optimizer, as plain values that a checkpoint can hold."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch

from ccreid_cli.core.words import plural

STAGES = ("extract", "neighbors", "jaccard", "clustering", "memory", "train", "evaluate", "save")
"""The stages of an epoch, in order."""


@dataclass
class TrainState:
    """Where a run is.

    Everything random is a pure function of (seed, epoch, step), so no generator is among it.

    Attributes:
        epoch: Epochs done.
        step: Steps done within the epoch under way; 0 between epochs.
        labels: (N,) pseudo-labels of the epoch under way; None between epochs.
        previous_labels: (N,) pseudo-labels of the last epoch done; None before there is one, or where an
            older checkpoint does not hold them.
        losses: (iters,) float32 losses of the steps done in the epoch under way; None between epochs.
        line: The metrics line of the epoch under way.
        best: The best evaluation so far, with its epoch; empty before the first.
        last: The newest evaluation.
        metrics: The metrics lines of the epochs done.
    """

    epoch: int = 0
    step: int = 0
    labels: torch.Tensor | None = None
    previous_labels: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    line: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def pack(self) -> dict[str, Any]:
        """Return the state as plain values and tensors."""
        texts = {name: json.dumps(getattr(self, name)) for name in ("line", "best", "last", "metrics")}
        tensors = {"labels": self.labels, "previous_labels": self.previous_labels, "losses": self.losses}
        return {"epoch": self.epoch, "step": self.step, **texts, **tensors}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> TrainState:
        """Return what `pack` was given."""
        texts = {name: json.loads(packed[name]) for name in ("line", "best", "last", "metrics")}
        rest = {name: packed[name] for name in ("epoch", "step", "labels", "losses")}
        return cls(**rest, **texts, previous_labels=packed.get("previous_labels"))

    def note_evaluation(self, evaluation: dict[str, Any]) -> bool:
        """Keep the scores of the epoch under way, and tell whether they are the best so far."""
        self.last = {"epoch": self.epoch, **evaluation}
        is_best: bool = evaluation["mAP"] > self.best.get("mAP", -1.0)
        if is_best:
            self.best = dict(self.last)
        return is_best

    def end_epoch(self) -> None:
        """Count the epoch under way as done."""
        self.metrics.append(self.line)
        self.previous_labels = self.labels
        self.epoch, self.step, self.line = self.epoch + 1, 0, {}
        self.labels = self.losses = None

    def seconds_by_stage(self) -> dict[str, float]:
        """Return how long each stage took in all epochs done, in the order of an epoch."""
        lines = [line.get("seconds", {}) for line in self.metrics]
        totals = {stage: sum(line.get(stage, 0.0) for line in lines) for stage in STAGES}
        return {stage: round(seconds, 3) for stage, seconds in totals.items() if seconds}

    def take_over_save_times(self, lines: list[dict[str, Any]]) -> None:
        """Fill in, from the metrics on disk, what a checkpoint cannot know: how long it took to write it."""
        known = {line.get("epoch"): line.get("seconds", {}).get("save") for line in lines}
        for line in self.metrics:
            if known.get(line["epoch"]) is not None:
                line["seconds"]["save"] = known[line["epoch"]]


def describe_epoch(line: dict[str, Any], epochs: int) -> str:
    """Return an epoch's metrics as one readable line."""
    parts = [
        f"epoch {line['epoch'] + 1}/{epochs}",
        f"loss {line['loss']:.3f}",
        plural(line["num_clusters"], "cluster"),
        plural(line["num_outliers"], "outlier"),
    ]
    if "cross_camera_share" in line:
        parts.append(f"{100 * line['cross_camera_share']:.0f} % in clusters of several cameras")
    if "eps" in line:
        parts.append(f"eps {line['eps']:g}")
    if "stability" in line:
        parts.append(f"stability {line['stability']:.3f}")
    if "ari" in line:
        parts.append(f"ARI {line['ari']:.3f}")
    if "mAP" in line:
        parts.append(f"mAP {100 * line['mAP']:.1f} %  rank-1 {100 * line['rank1']:.1f} %")
    if "not_scored" in line:
        parts.append("not scored")
    parts.append(f"{sum(line['seconds'].values()):.1f} s")
    return "  ".join(parts)
