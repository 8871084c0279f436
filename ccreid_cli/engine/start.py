"""Setting up a training run, new or resumed, and carrying it through."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from ccreid_cli.core.checking import validate
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.words import plural
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.adopting import adopt_weights_file, spec_of
from ccreid_cli.engine.checkpoint import config_of
from ccreid_cli.engine.cluster_checks import check_cameras
from ccreid_cli.engine.evaluation_set import EvaluationSet
from ccreid_cli.engine.metric_writers import require_writers
from ccreid_cli.engine.micro_batches import share_chunks
from ccreid_cli.engine.recovery import recover
from ccreid_cli.engine.run_folder import RunFolder, default_name, describe_environment
from ccreid_cli.engine.settings import (
    ResolvedConfig,
    check_names,
    check_packages,
    check_places,
    merge_for_resume,
    with_absolute_places,
)
from ccreid_cli.engine.trainer import Trainer
from ccreid_cli.images.opening import ImageSettings, image_settings, is_sharded, keep_on_device, open_paths
from ccreid_cli.machine.device import (
    DeviceChoice,
    choose_fastest_convolutions,
    derived_seed,
    device_for_resume,
    make_deterministic,
    resolve_device,
)
from ccreid_cli.machine.distributed import Group, process_group
from ccreid_cli.machine.ranks import launched_world
from ccreid_cli.machine.signals import stop_on_signals
from ccreid_cli.method.registry import make_method
from ccreid_cli.models.placing import place, prepare_training, probe_precision
from ccreid_cli.models.reid_net import ReidNet, build_model

DatasetHook = Callable[[ReidDataset], None]


@dataclass(frozen=True)
class _Session:
    """What a run needs before it knows whether it is new."""

    choice: DeviceChoice
    group: Group
    reporter: Reporter


@contextmanager
def _session(device: str, timeout: float, deterministic: bool, reporter: Reporter) -> Iterator[_Session]:
    if deterministic:
        make_deterministic()  # before the first operation on a GPU
    else:
        choose_fastest_convolutions()
    choice = resolve_device(device)
    with process_group(choice.device, timeout) as group:
        reporter = reporter if group.is_main else SilentReporter()
        reporter.message(f"device: {choice.device} ({choice.reason})" + _processes(group))
        yield _Session(choice, group, reporter)


def _processes(group: Group) -> str:
    return f", {group.world} processes" if group.world > 1 else ""


def train(
    resolved: ResolvedConfig,
    *,
    reporter: Reporter | None = None,
    on_dataset: DatasetHook | None = None,
    timeout: float = 600.0,
) -> dict[str, Any]:
    """Train a new run.

    Args:
        resolved: The settings.
        reporter: Where progress goes.
        on_dataset: Called with the dataset once it is read, in rank 0.
        timeout: Seconds that one process waits for the others.

    Returns:
        What `Trainer.fit` returns.

    Raises:
        UsageError: The run exists already; a setting does not fit the data or the number of processes.
        DataError: The dataset is missing or broken; no clusters were found.
        DeviceError: The device cannot be used or has too little memory.
        Interrupted: A signal came; the run is saved.
    """
    _refuse_impossible(resolved.config)
    device, deterministic = resolved.config.device, resolved.config.deterministic
    with _session(device, timeout, deterministic, reporter or SilentReporter()) as session:
        resolved = session.group.on_main(partial(adopt_weights_file, resolved, session.reporter))
        config = replace(with_absolute_places(resolved.config), device=str(session.choice.device))
        name = session.group.broadcast(config.name or default_name(config))
        run = RunFolder(config.logs_dir / name)
        session.group.on_main(lambda: _refuse_used_name(run))
        dataset = _read_dataset(config, session, on_dataset)
        model = _build(config, session)
        config = _settle(replace(config, name=name), model, session)
        environment = _environment(config, dataset, session, resolved)
        with _owned(run, session):
            session.group.on_main(lambda: run.create(config, environment))
            return _carry_through(config, dataset, model, run, session, content=None)


def resume(
    run: RunFolder,
    flags: Mapping[str, Any],
    *,
    reporter: Reporter | None = None,
    on_dataset: DatasetHook | None = None,
    timeout: float = 600.0,
) -> dict[str, Any]:
    """Go on with a run from its newest whole checkpoint.

    Args:
        run: The run.
        flags: What the command line sets; only settings of `may_change_on_resume` may differ from the run's own.
        reporter: Where progress goes.
        on_dataset: Called with the dataset once it is read, in rank 0.
        timeout: Seconds that one process waits for the others.

    Returns:
        What `Trainer.fit` returns.

    Raises:
        UsageError: A flag would alter the mathematics.
        DataError: The folder is no run, another process is training it, or the images changed.
        CheckpointError: No checkpoint is whole.
    """
    stored = run.read_config()
    device = str(flags.get("device") or device_for_resume(stored.device))
    deterministic = bool(flags.get("deterministic", stored.deterministic))
    with (
        _session(device, timeout, deterministic, reporter or SilentReporter()) as session,
        _owned(run, session),
    ):
        content = session.group.on_main(lambda: recover(run, session.reporter))
        if content is not None:
            stored = validate(config_of(content), str(run.path))
        config = with_absolute_places(merge_for_resume(stored, flags))
        # The folder may have been moved since it was written: where it is now counts.
        config = replace(
            config, device=str(session.choice.device), logs_dir=run.path.parent.absolute(), name=run.path.name
        )
        _refuse_impossible(config)
        if content is not None:
            _check_epochs(content["training"]["epoch"], config, session)
        dataset = _read_dataset(config, session, on_dataset)
        if content is not None:
            _check_same_images(content, dataset)
        model = _build(config, session) if content is None else ReidNet(spec_of(config), config.samples_per_bn)
        place(_trainable(model, config), session.choice.device)
        config = _settle(config, model, session)
        session.group.on_main(lambda: run.write_config(config))
        return _carry_through(config, dataset, model, run, session, content)


def _refuse_impossible(config: TrainConfig) -> None:
    """Refuse early, before anything is downloaded or decoded, what would be refused later."""
    check_names(config)
    check_packages(config)
    check_places(config)
    share_chunks(config.batch_size, config.samples_per_bn, launched_world())
    require_writers(config.tensorboard, config.wandb)


def _refuse_used_name(run: RunFolder) -> None:
    """Refuse early, before minutes of decoding, what `RunFolder.create` would refuse."""
    if (run.path / "recipe.toml").exists():
        raise UsageError(
            f"{run.path} already holds a run; it is not overwritten.",
            f"Go on with it: `ccreid resume {shlex.quote(str(run.path))}`; or choose another --name.",
        )


def _read_dataset(config: TrainConfig, session: _Session, on_dataset: DatasetHook | None) -> ReidDataset:
    def read() -> ReidDataset:
        return load_dataset(
            config.dataset, config.data_dir, session.reporter, columns=config.columns, pattern=config.pattern
        )

    dataset = session.group.on_main(read)
    if not len(dataset.train):
        raise DataError(f"{dataset.name} has no training images.", "`ccreid data verify` shows what it holds.")
    if on_dataset and session.group.is_main:
        on_dataset(dataset)
    return dataset


def _build(config: TrainConfig, session: _Session) -> ReidNet:
    """Build the network with its starting weights, the same in every process; rank 0 downloads them."""

    def build() -> ReidNet:
        torch.manual_seed(derived_seed("weights", config.seed))
        return build_model(
            spec_of(config),
            weights=config.weights,
            samples_per_bn=config.samples_per_bn,
            reporter=session.reporter,
        )

    return place(_trainable(session.group.on_main(build), config), session.choice.device)


def _trainable(model: ReidNet, config: TrainConfig) -> ReidNet:
    prepare_training(model, freeze_patch_embed=config.freeze_patch_embed, grad_checkpointing=config.grad_checkpointing)
    return model


def _settle(config: TrainConfig, model: ReidNet, session: _Session) -> TrainConfig:
    """Prepare the device for the run's number format; resolve ``auto`` once, the same in every process."""
    precision = probe_precision(config.precision, model, session.choice.device, config.height, config.width)
    precision = session.group.broadcast(precision)
    if config.precision == "auto":
        session.reporter.message(f"precision: {precision} (the faster one here)")
    return replace(config, precision=precision)


def _environment(
    config: TrainConfig, dataset: ReidDataset, session: _Session, resolved: ResolvedConfig
) -> dict[str, Any]:
    recipe = resolved.recipe
    return {
        **describe_environment(),
        "device": str(session.choice.device),
        "device_reason": session.choice.reason,
        "processor": platform.processor() or platform.machine(),
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "processes": session.group.world,
        "dataset": {"name": dataset.name, "root": str(dataset.root), "fingerprint": dataset.fingerprint()},
        "recipe": {"name": recipe.name, **asdict(recipe.about)} if recipe else None,
        "sources": resolved.sources,
    }


@contextmanager
def _owned(run: RunFolder, session: _Session) -> Iterator[None]:
    """Hold the run's lock, in rank 0."""
    if not session.group.is_main:
        yield
        return
    lock = run.lock()
    lock.acquire(wait=False)
    try:
        yield
    finally:
        lock.release()


def _check_epochs(done: int, config: TrainConfig, session: _Session) -> None:
    if done > config.epochs:
        raise UsageError(
            f"--epochs {config.epochs} is less than the {plural(done, 'epoch')} that the run has.",
            "Give more to go on, or none to see its result.",
        )
    if done == config.epochs:
        session.reporter.message(
            f"{plural(done, 'epoch is', 'epochs are')} done, which is all; a larger --epochs goes on."
        )


def _check_same_images(content: Mapping[str, Any], dataset: ReidDataset) -> None:
    if content["dataset"]["fingerprint"] != dataset.fingerprint():
        raise DataError(
            f"the images of {dataset.name} in {dataset.root} are not those the run was started with.",
            "Point --data-dir at the same images, or start a new run with --init-from.",
        )


def _open_test_set(dataset: ReidDataset, images: ImageSettings, session: _Session) -> EvaluationSet | None:
    """Decode query and gallery; None, aloud, where they could not be scored."""
    if dataset.why_not_scored:
        say = session.reporter.warning if dataset.has_evaluation else session.reporter.message
        say(f"{dataset.why_not_scored}: training without evaluation.")
        return None
    test_set = EvaluationSet(dataset, images, session.group, session.reporter)
    test_set.open()
    return test_set


def _carry_through(
    config: TrainConfig,
    dataset: ReidDataset,
    model: ReidNet,
    run: RunFolder,
    session: _Session,
    content: dict[str, Any] | None,
) -> dict[str, Any]:
    """Open the images, then train to the end; from here on a signal means: save, then stop."""
    check_cameras(model, dataset, config, session.reporter)
    sharded = session.group.broadcast(is_sharded(config.shard_images))
    images = image_settings(
        config.height, config.width, config.workers, config.data_dir, resize=config.resize, sharded=sharded
    )
    store = open_paths(dataset.train.paths, images, session.group, session.reporter)
    keep_on_device(store, session.choice.device)
    test_set = _open_test_set(dataset, images, session)
    with stop_on_signals() as stop:
        trainer = Trainer(
            config,
            dataset,
            model,
            make_method(model, config),
            store,
            test_set,
            run=run,
            group=session.group,
            stop=stop,
            reporter=session.reporter,
        )
        if content is not None:
            trainer.restore(content)
        if session.group.is_main:
            run.remove_result()
            run.log(f"training on {session.choice.device}{_processes(session.group)}")
        return trainer.fit()
