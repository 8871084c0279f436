"""What a checkpoint of a run holds, written and taken over again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import CheckpointError, DataError
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.engine.state import TrainState
from ccreid_cli.method.interface import Method
from ccreid_cli.models.reid_net import ReidNet


class Saver:
    """Writes checkpoints of everything that decides the future of a run, and restores them.

    Args:
        run: Where they go.
        config: The run's settings.
        dataset: The training images, named in every checkpoint.
        model: The network that is trained.
        method: What it learns from.
        optimizer: Over the network's parameters.
    """

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        dataset: ReidDataset,
        model: ReidNet,
        method: Method,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._run, self._config, self._dataset = run, config, dataset
        self._model, self._method, self._optimizer = model, method, optimizer

    def save(self, state: TrainState, is_best: bool, instead_of: Path | None = None) -> None:
        """Write a checkpoint.

        Args:
            state: Where the run is.
            is_best: Whether this is the best evaluation so far.
            instead_of: The checkpoint that is no longer needed then, if any.

        Raises:
            DataError: It could not be written; the earlier ones are untouched.
        """
        store = self._run.store(self._config.keep)
        try:
            content = self._content(state)
            store.save(content, epoch=state.epoch, step=state.step, is_best=is_best, instead_of=instead_of)
        except DataError as error:
            self._run.log(f"not saved: {error.message}")
            resume = f"`ccreid resume {shlex.quote(str(self._run.path))}` goes on from the save before."
            raise DataError(error.message, f"{error.hint} {resume}") from error

    def _content(self, state: TrainState) -> dict[str, Any]:
        config, evaluated = self._config, self._method.evaluated()
        training = {"optimizer": self._optimizer.state_dict(), "method": self._method.state_dict(), **state.pack()}
        if evaluated is not self._model:
            training["model"] = self._model.state_dict()
        return {
            "model": evaluated.state_dict(),
            "spec": dict(vars(evaluated.spec)),
            "preprocess": {"height": config.height, "width": config.width, "resize": config.resize},
            "config": config.to_json(),
            "dataset": {"name": self._dataset.name, "fingerprint": self._dataset.fingerprint()},
            "training": training,
        }

    def restore(self, content: Mapping[str, Any]) -> TrainState:
        """Take over a checkpoint, and return where the run was.

        Raises:
            CheckpointError: It does not fit the run's settings.
        """
        training = content["training"]
        try:
            self._method.evaluated().load_state_dict(content["model"])
            if "model" in training:  # it is not the one that is evaluated
                self._model.load_state_dict(training["model"])
            self._optimizer.load_state_dict(training["optimizer"])
            self._method.load_state_dict(training["method"])
            return TrainState.unpack(training)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the run's own settings: {' '.join(str(error).split())}"
            ) from error
