"""The epoch loop: extract -> pseudo-label -> begin the method's epoch -> steps -> evaluate -> save.

Everything random is a pure function of (seed, epoch, step): a run resumed from a save computes what it would have
computed without the interruption.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import Interrupted
from ccreid_cli.core.reporter import Reporter, Task
from ccreid_cli.core.side_tasks import side_task
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.batches import EpochBatches
from ccreid_cli.engine.cluster_checks import check_clusters, takes_camera_statistics
from ccreid_cli.engine.evaluation_set import EvaluationSet
from ccreid_cli.engine.extraction import extract_by_camera, extract_features
from ccreid_cli.engine.losses import EpochLosses, mean_loss
from ccreid_cli.engine.metric_writers import MetricWriter, make_writers
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.engine.saving import Saver
from ccreid_cli.engine.schedule import learning_rate, set_learning_rate
from ccreid_cli.engine.state import TrainState, describe_epoch
from ccreid_cli.engine.step import TrainStep, make_optimizer
from ccreid_cli.engine.stopping import SharedStop
from ccreid_cli.images.edges import edges_of
from ccreid_cli.images.source import ImageSet
from ccreid_cli.machine.distributed import Group
from ccreid_cli.machine.host_memory import return_freed_memory
from ccreid_cli.machine.signals import StopFlag, StopRequested
from ccreid_cli.machine.stopwatch import synchronize
from ccreid_cli.method.interface import Method
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.pseudo_labels.clustering import ClusterSettings, agreement, label_quality
from ccreid_cli.pseudo_labels.constraints import find_constraints
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels


class Trainer:
    """Trains one network on one dataset into one run folder.

    Args:
        config: Settings, every ``auto`` resolved.
        dataset: The images.
        model: The network, on `group.device`.
        method: What the steps learn from.
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
        method: Method,
        store: ImageSet,
        test_set: EvaluationSet | None,
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
        self.method = method
        self.store = store
        self.test_set = test_set
        self.run = run
        self.group = group
        self.reporter = reporter
        self.state = TrainState()
        self.optimizer = make_optimizer(model, config.lr, config.weight_decay, config.optimizer)
        self._camera_ids = torch.from_numpy(dataset.train.camera_ids)
        train = dataset.train
        self._constraints = find_constraints(train.names, train.cameras, train.identities, train.tracks)
        if self._constraints:
            reporter.message(self._constraints.in_words())
        self._known_camera_ids = dataset.train.known_camera_ids()
        self._extract = partial(extract_features, model, store)
        self._label_settings = ClusterSettings.of(config)
        if takes_camera_statistics(model, dataset, config):
            self._extract = partial(extract_by_camera, model, store, self._known_camera_ids)
            self._label_settings = replace(self._label_settings, camera_norm=False)  # it would be done twice
        self._edges = edges_of(store, group) if config.background_norm else None
        self._learning_rate = learning_rate(config)
        self._stop = SharedStop(stop, group, config.print_freq)
        self._saver = Saver(run, config, dataset, model, method, self.optimizer)
        self._writers: MetricWriter | None = None
        self._epochs: Task | None = None
        self._step = TrainStep(
            model,
            self.optimizer,
            store,
            method,
            precision=config.precision,
            group=group,
            batch_size=config.batch_size,
            samples_per_bn=config.samples_per_bn,
            reporter=reporter,
            exact=config.deterministic,
        )

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take over a checkpoint, in every process, and make the run's files agree with it.

        Raises:
            CheckpointError: It does not fit the run's settings.
        """
        self.state = self._saver.restore(content)
        if self.group.is_main:
            self.state.take_over_save_times(self.run.read_metrics())
            self.run.write_metrics(self.state.metrics)

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
            self._writers = make_writers(
                self.run, self.config.tensorboard, self.config.wandb, self.config, self.reporter
            )
        try:
            with self.reporter.task("epochs", self.config.epochs, "epoch", done=self.state.epoch) as task:
                self._epochs = task
                while self.state.epoch < self.config.epochs:
                    self._train_epoch(task)
                    task.advance()
        except StopRequested:
            self._save()
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
        evaluation = self._evaluate_safely() if self._evaluation_is_due() else None
        self._end_epoch(task, evaluation)

    def _begin_epoch(self, task: Task) -> None:
        """Label the training images with the network as it is now, and let the method start from the clusters."""
        state, config = self.state, self.config
        self._stop.check()
        state.line = {"epoch": state.epoch, "seconds": {}}
        with self._timed("extract"):
            features = self._extract(
                device=self.group.device,
                precision=config.precision,
                group=self.group,
                reporter=self.reporter,
                check_stop=self._stop.check_alone,
            )
        found = pseudo_labels(
            features.own,
            self._label_settings,
            total=features.total,
            camera_ids=self._known_camera_ids,
            edges=self._edges,
            constraints=self._constraints,
            group=self.group,
            reporter=self.reporter,
        )
        check_clusters(found, state.epoch, config, self.reporter)
        state.line["seconds"].update(found.seconds)
        state.line.update(num_clusters=found.num_clusters, num_outliers=found.num_outliers)
        if found.cross_camera_share is not None:
            state.line["cross_camera_share"] = round(found.cross_camera_share, 4)
        if found.eps_choice:
            state.line["eps"] = found.eps_choice.eps
        if found.approximation:
            state.line.update(found.approximation.as_json())
        if state.previous_labels is not None:
            with side_task("the clusters were not compared with those of the last epoch", self.reporter):
                state.line["stability"] = agreement(found.labels, state.previous_labels.numpy())
        if self.dataset.has_train_ids:
            # A diagnosis for the log only: nothing below reads identities.
            with side_task("the clusters were not compared with the identities", self.reporter):
                state.line.update(label_quality(found.labels, self.dataset.train.person_ids))
        task.note(clusters=found.num_clusters)
        labels = torch.from_numpy(found.labels)
        with self._timed("memory"):
            self.method.begin_epoch(state.epoch, features, labels, self._camera_ids)
        state.labels = labels

    def _run_steps(self, task: Task) -> None:
        config, state = self.config, self.state
        assert state.labels is not None
        batches = EpochBatches(config, state.labels, self._camera_ids, state.epoch)
        losses = EpochLosses(config.iters, self.group, state.losses)
        self.model.train()
        start, first = time.perf_counter(), state.step
        with self.reporter.task(f"train epoch {state.epoch + 1}", config.iters, "it", done=first) as bar:
            for number in range(first, config.iters):
                set_learning_rate(self.optimizer, self._learning_rate(state.epoch, number))
                losses.note(number, self._step(batches[number], batches.indices_of(number + 1)))
                bar.advance()
                done = number + 1
                if done % config.print_freq == 0 or done == config.iters:
                    loss = round(losses.mean(state.epoch, done), 3)  # the one wait for a GPU in this loop
                    rate = (done - first) * config.batch_size / (time.perf_counter() - start)
                    bar.note(loss=loss, images_per_second=round(rate, 1))
                    task.note(loss=loss)
                self._save_within_epoch(done, losses)
        if first < config.iters:
            images = (config.iters - first) * config.batch_size
            state.line["images_per_second"] = round(images / (time.perf_counter() - start), 1)
        state.step, state.losses = config.iters, losses.total()

    def _save_within_epoch(self, done: int, losses: EpochLosses) -> None:
        """Save when a signal asks for it (then leave) or when ``--save-every`` says so."""
        stopping = self._stop.is_due(done, is_last=done == self.config.iters)
        if not stopping and not (self.config.save_every and done % self.config.save_every == 0):
            return
        self.state.step, self.state.losses = done, losses.total()
        if stopping:
            raise StopRequested
        self._save()

    def _evaluation_is_due(self) -> bool:
        done = self.state.epoch + 1
        return self.test_set is not None and (done % self.config.eval_step == 0 or done == self.config.epochs)

    def _evaluate_safely(self) -> dict[str, Any] | None:
        """Score the network once the epoch's steps are saved; None, aloud, where that fails."""
        if not (self.group.is_main and self._last_step_file().exists()):
            with self._timed("save"):
                self._save()
        if self.group.world > 1:
            return self._evaluate()  # only together: a process that went on alone would leave the others waiting
        with side_task(f"epoch {self.state.epoch + 1} was not scored", self.reporter) as task:
            return self._evaluate()
        self.run.log(f"epoch {self.state.epoch + 1} was not scored: {task.problem}")
        self.state.line["not_scored"] = task.problem
        return None

    def _evaluate(self) -> dict[str, Any]:
        assert self.test_set is not None
        with self._timed("evaluate"):
            evaluation = self.test_set.score(
                self.method.evaluated(),
                self.group.device,
                self.config.precision,
                check_stop=self._stop.check_alone,
            )
            if self.group.device.type == "cpu":
                return_freed_memory()  # what piled up since the last time: a step takes seconds to have it all again
        return evaluation.as_json()

    def _end_epoch(self, task: Task, evaluation: dict[str, Any] | None) -> None:
        state, line = self.state, self.state.line
        assert state.losses is not None
        line["loss"] = mean_loss(state.losses)
        line["lr"] = self.optimizer.param_groups[0]["lr"]
        is_best = False
        if evaluation:
            line.update(evaluation)
            is_best = state.note_evaluation(evaluation)
            task.note(mAP=f"{100 * evaluation['mAP']:.1f}")
        superseded = None if self._saves_at_last_step() else self._last_step_file()
        state.end_epoch()
        start = time.perf_counter()
        self._save(is_best=is_best, instead_of=superseded)
        line["seconds"]["save"] = round(line["seconds"].get("save", 0.0) + time.perf_counter() - start, 3)
        if self._writers:
            self._writers.write(line)
            self._say(describe_epoch(line, self.config.epochs))

    def _saves_at_last_step(self) -> bool:
        """Whether ``--save-every`` asks for the save at the last step of an epoch."""
        return bool(self.config.save_every) and self.config.iters % self.config.save_every == 0

    def _last_step_file(self) -> Path:
        """The save of the epoch under way before it is scored."""
        return self.run.store().path_of(self.state.epoch, self.config.iters)

    def _save(self, *, is_best: bool = False, instead_of: Path | None = None) -> None:
        if self.group.is_main:
            self._saver.save(self.state, is_best, instead_of)

    def _interrupted(self) -> Interrupted:
        state = self.state
        where = f"epoch {state.epoch + 1}, step {state.step}" if state.step else f"the start of epoch {state.epoch + 1}"
        number = self._stop.signal_number()
        if self.group.is_main:
            self.run.log(f"stopped by signal {number}, saved at {where}")
        command = f"ccreid resume {shlex.quote(str(self.run.path))}"
        return Interrupted(f"stopped; saved at {where}.", command, signal_number=number)

    def _finish(self) -> dict[str, Any]:
        seconds = self.state.seconds_by_stage()
        result: dict[str, Any] = {"run": str(self.run.path), "epochs": self.state.epoch, "seconds": seconds}
        if self.state.last:
            result["last"], result["best"] = self.state.last, self.state.best
        if self.state.metrics and "not_scored" in self.state.metrics[-1]:
            result["not_scored"] = self.state.metrics[-1]["not_scored"]
        if self.group.is_main:
            with side_task("the result was not written", self.reporter):
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
