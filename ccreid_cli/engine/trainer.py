"""The epoch loop: extract -> pseudo-label -> memory -> steps -> evaluate -> save.

Everything random is a pure function of (seed, epoch, step): a run resumed from a save computes what it would have
computed without the interruption.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import CheckpointError, DataError, Interrupted
from ccreid_cli.core.reporter import Reporter, Task
from ccreid_cli.core.words import plural
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.batches import EpochBatches
from ccreid_cli.engine.extraction import extract_features
from ccreid_cli.engine.labelling import label_features
from ccreid_cli.engine.metric_writers import MetricWriter, make_writers
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.engine.state import TrainState, describe_epoch
from ccreid_cli.engine.step import TrainStep, make_optimizer
from ccreid_cli.engine.test_set import TestSet
from ccreid_cli.images.source import ImageSet
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.host_memory import return_freed_memory
from ccreid_cli.machine.signals import StopFlag, StopRequested
from ccreid_cli.machine.stopwatch import synchronize
from ccreid_cli.method.memory import ClusterMemory
from ccreid_cli.method.sampling import batches_are_short
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.pseudo_labels.clustering import label_quality

LR_DECAY = 0.1
STOP_CHECK_STEPS = 10
"""Several processes agree on stopping at most every so many steps: it makes them wait for one another."""


class Trainer:
    """Trains one network on one dataset into one run folder.

    Args:
        config: Settings, every ``auto`` resolved.
        dataset: The images.
        model: The network, on `group.device`.
        store: The decoded training images.
        test_set: Query and gallery, or None when the dataset has no identities to score with.
        run: Where everything is written, by rank 0.
        group: The processes of the run.
        stop: Set when the run should save and leave.
        reporter: Where progress goes.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: ReidDataset,
        model: ReidNet,
        store: ImageSet,
        test_set: TestSet | None,
        *,
        run: RunFolder,
        group: Group,
        stop: StopFlag,
        reporter: Reporter,
    ) -> None:
        if "auto" in (config.device, config.precision):
            raise AssertionError("device and precision must be resolved before training")
        self.config = config
        self.dataset = dataset
        self.model = model
        self.store = store
        self.test_set = test_set
        self.run = run
        self.group = group
        self.stop = stop
        self.reporter = reporter
        self.state = TrainState()
        self._writers: MetricWriter | None = None
        self._epochs: Task | None = None
        self.optimizer = make_optimizer(model, config.lr, config.weight_decay)
        self.step = TrainStep(
            model,
            self.optimizer,
            store,
            precision=config.precision,
            group=group,
            batch_size=config.batch_size,
            samples_per_bn=config.samples_per_bn,
            reporter=reporter,
            exact=config.deterministic,
        )

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch.

        Returns:
            ``run`` (the folder), and the final evaluations ``last`` and ``best`` when the dataset can be scored.

        Raises:
            Interrupted: A signal came; the run is saved.
            DataError: No clusters were found, or the loss is not a number.
            DeviceError: The work does not fit into memory.
        """
        if self.group.is_main:
            self._writers = make_writers(self.run, self.config.tensorboard, self.config.wandb, self.config)
        try:
            with self.reporter.task("epochs", self.config.epochs, "epoch") as task:
                self._epochs = task
                task.advance(self.state.epoch)
                while self.state.epoch < self.config.epochs:
                    self._train_epoch(task)
                    task.advance()
        except StopRequested:
            self.save(is_best=False)
            raise self._interrupted() from None
        finally:
            if self._writers:
                self._writers.close()
        return self._finish()

    def _train_epoch(self, task: Task) -> None:
        """Do one epoch, or the rest of one that was saved half-way."""
        if self.state.labels is None:
            self._begin_epoch(task)
        with self._timed("train"):
            self._run_steps(task)
        evaluation = self._evaluate_if_due()
        self._end_epoch(task, evaluation)

    def _begin_epoch(self, task: Task) -> None:
        """Label the training images with the network as it is now, and start the memory from the clusters."""
        self._stop_if_asked()
        self.state.line = {"epoch": self.state.epoch, "seconds": {}}
        with self._timed("extract"):
            features = extract_features(
                self.model,
                self.store,
                device=self.group.device,
                precision=self.config.precision,
                group=self.group,
                description="extract",
                reporter=self.reporter,
                check_stop=self._check_alone,
            )
        found = label_features(features, self.config, self.group, self.reporter)
        self._check_clusters(found.num_clusters, found.num_outliers)
        self.state.line["seconds"].update(found.seconds)
        counts = {"num_clusters": found.num_clusters, "num_outliers": found.num_outliers}
        self.state.line.update(counts)
        if self.dataset.has_train_ids:
            # A diagnosis for the log only: nothing below reads identities.
            self.state.line.update(label_quality(found.labels, self.dataset.train.person_ids))
        task.note(clusters=found.num_clusters)
        with self._timed("memory"):
            self.state.labels = torch.from_numpy(found.labels)
            if features.device.type == "mps":  # has no double precision, in which the means are computed
                features = features.cpu()
            self.state.centroids = ClusterMemory.from_features(features, self.state.labels).centroids.cpu()
        if batches_are_short(found.labels, self.config.batch_size, self.config.num_instances):
            self.reporter.warning(
                f"{found.num_clusters} clusters do not fill a batch of {self.config.batch_size} at "
                f"{plural(self.config.num_instances, 'image')} each: clusters repeat within a batch."
            )

    def _run_steps(self, task: Task) -> None:
        config, state, device = self.config, self.state, self.group.device
        assert state.labels is not None and state.centroids is not None
        memory = ClusterMemory(
            state.centroids.to(device), temperature=config.temp, momentum=config.momentum, use_hard=config.use_hard
        )
        batches = EpochBatches(config, state.labels, self.dataset.train.camera_ids, state.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * LR_DECAY ** (state.epoch // config.step_size)
        self.model.train()
        losses = self._losses_so_far()
        start, first = time.perf_counter(), state.step
        with self.reporter.task(f"train epoch {state.epoch + 1}", config.iters, "it") as bar:
            bar.advance(first)
            for number in range(first, config.iters):
                losses[number] = self.step(batches[number], memory)
                bar.advance()
                if (number + 1) % config.print_freq == 0 or number + 1 == config.iters:
                    self._show_loss(losses, number + 1, bar, task)  # the one wait for a GPU in this loop
                    rate = (number + 1 - first) * config.batch_size / (time.perf_counter() - start)
                    bar.note(images_per_second=round(rate, 1))
                self._save_within_epoch(number + 1, losses, memory)
        if first < config.iters:
            images = (config.iters - first) * config.batch_size
            state.line["images_per_second"] = round(images / (time.perf_counter() - start), 1)
        self._note_progress(config.iters, losses, memory)

    def _losses_so_far(self) -> torch.Tensor:
        """Return this process's parts of the losses of the epoch, (iters,); rank 0 has what was saved."""
        saved = self.state.losses
        if saved is None or not self.group.is_main:
            return torch.zeros(self.config.iters, device=self.group.device)
        return saved.to(self.group.device, copy=True)

    def _show_loss(self, losses: torch.Tensor, steps: int, bar: Task, task: Task) -> None:
        mean = _mean(self.group.sum_(losses.clone())[:steps])
        if not np.isfinite(mean):
            raise DataError(
                f"the loss is not a number any more (epoch {self.state.epoch + 1}, step {steps}).",
                "Try a lower --lr, or --precision fp32. What was saved before stays.",
            )
        bar.note(loss=round(mean, 3))
        task.note(loss=round(mean, 3))

    def _check_clusters(self, num_clusters: int, num_outliers: int) -> None:
        if num_clusters >= 2:
            return
        found = "no cluster" if num_clusters == 0 else "a single cluster"
        advice = "larger" if num_outliers > len(self.store) // 2 else "smaller"
        if self.config.cluster == "infomap":
            advice = {"larger": "smaller", "smaller": "larger"}[advice]  # there eps is a similarity
        raise DataError(
            f"epoch {self.state.epoch + 1}: {found} among {plural(len(self.store), 'image')} "
            f"({plural(num_outliers, 'outlier')}) at --eps {self.config.eps:g}; there is nothing to tell apart.",
            f"Try a {advice} --eps; better starting weights (--weights imagenet) help too.",
        )

    def _evaluate_if_due(self) -> dict[str, Any] | None:
        done = self.state.epoch + 1
        if self.test_set is None or (done % self.config.eval_step and done != self.config.epochs):
            return None
        with self._timed("evaluate"):
            evaluation = self.test_set.score(
                self.model, self.group.device, self.config.precision, check_stop=self._check_alone
            )
            if self.group.device.type == "cpu":
                return_freed_memory()  # what piled up since the last time: a step takes seconds to have it all again
        return evaluation.as_json()

    def _end_epoch(self, task: Task, evaluation: dict[str, Any] | None) -> None:
        state, line = self.state, self.state.line
        assert state.losses is not None
        line["loss"] = _mean(state.losses)
        line["lr"] = self.optimizer.param_groups[0]["lr"]
        is_best = False
        if evaluation:
            line.update(evaluation)
            state.last = {"epoch": state.epoch, **evaluation}
            is_best = evaluation["mAP"] > state.best.get("mAP", -1.0)
            if is_best:
                state.best = dict(state.last)
            task.note(mAP=f"{100 * evaluation['mAP']:.1f}")
        state.end_epoch()
        start = time.perf_counter()
        self.save(is_best)
        line["seconds"]["save"] = round(time.perf_counter() - start, 3)
        if self._writers:
            self._writers.write(line)
            self._say(describe_epoch(line, self.config.epochs))

    def _save_within_epoch(self, done: int, losses: torch.Tensor, memory: ClusterMemory) -> None:
        """Save when a signal asks for it (then leave) or when ``--save-every`` says so."""
        stopping = self._must_stop(done)
        if not stopping and not (self.config.save_every and done % self.config.save_every == 0):
            return
        self._note_progress(done, losses, memory)
        if stopping:
            raise StopRequested
        self.save(is_best=False)

    def _note_progress(self, done: int, losses: torch.Tensor, memory: ClusterMemory) -> None:
        self.state.step, self.state.losses = done, self.group.sum_(losses.clone()).cpu()
        self.state.centroids = memory.centroids.cpu().clone()

    def _must_stop(self, done: int) -> bool:
        """Whether any process was asked to stop; several compare notes now and then, and save the same step."""
        every = min(self.config.print_freq, STOP_CHECK_STEPS)
        if self.group.world > 1 and done % every and done != self.config.iters:
            return False
        return bool(self.group.maximum(int(bool(self.stop))))

    def _stop_if_asked(self) -> None:
        if self.group.maximum(int(bool(self.stop))):
            raise StopRequested

    def _check_alone(self) -> None:
        # Of several processes none may leave a shared stage alone: they stop together at the next step.
        if self.group.world == 1:
            self.stop.check()

    def save(self, is_best: bool) -> None:
        """Write a checkpoint of everything that decides the future; rank 0 only."""
        if not self.group.is_main:
            return
        content = {
            "model": self.model.state_dict(),
            "spec": dict(vars(self.model.spec)),
            "preprocess": {"height": self.config.height, "width": self.config.width},
            "config": self.config.model_dump_json(),
            "dataset": {"name": self.dataset.name, "fingerprint": self.dataset.fingerprint()},
            "training": {"optimizer": self.optimizer.state_dict(), **self.state.pack()},
        }
        store = self.run.store(self.config.keep)
        try:
            store.save(content, epoch=self.state.epoch, step=self.state.step, is_best=is_best)
        except DataError as error:
            self.run.log(f"not saved: {error.message}")
            resume = f"`ccreid resume {shlex.quote(str(self.run.path))}` goes on from the save before."
            raise DataError(error.message, f"{error.hint} {resume}") from error

    def restore(self, content: dict[str, Any]) -> None:
        """Take over a checkpoint that `save` wrote, in every process, and make the run's files agree with it.

        Raises:
            CheckpointError: It does not fit the run's settings.
        """
        training = content["training"]
        try:
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(training["optimizer"])
            self.state = TrainState.unpack(training)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint does not fit the run's own settings: {error}") from error
        if self.group.is_main:
            self.state.take_over_save_times(self.run.read_metrics())
            self.run.write_metrics(self.state.metrics)

    def _interrupted(self) -> Interrupted:
        state = self.state
        where = f"epoch {state.epoch + 1}, step {state.step}" if state.step else f"the start of epoch {state.epoch + 1}"
        number = self.group.maximum(self.stop.signal_number)
        if self.group.is_main:
            self.run.log(f"stopped by signal {number}, saved at {where}")
        command = f"ccreid resume {shlex.quote(str(self.run.path))}"
        return Interrupted(f"stopped; saved at {where}.", command, signal_number=number)

    def _finish(self) -> dict[str, Any]:
        seconds = self.state.seconds_by_stage()
        result: dict[str, Any] = {"run": str(self.run.path), "epochs": self.state.epoch, "seconds": seconds}
        if self.state.last:
            result["last"], result["best"] = self.state.last, self.state.best
        if self.group.is_main:
            self.run.write_result(result)
            self._say("finished")
        return result

    def _say(self, text: str) -> None:
        self.reporter.message(text)
        self.run.log(text)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        if self._epochs:
            self._epochs.note(stage=stage)
        try:
            yield
            synchronize(self.group.device)
        finally:
            seconds = self.state.line.setdefault("seconds", {})
            seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - start, 3)


def _mean(losses: torch.Tensor) -> float:
    return float(losses.cpu().double().mean())
