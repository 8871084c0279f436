"""Where an interrupted run goes on: the newest whole checkpoint, with the rest of the folder made to agree with it."""

from __future__ import annotations

import json
from typing import Any

from ccreid_cli.core.errors import CheckpointError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import plural
from ccreid_cli.engine.checkpoint import CheckpointStore, Saved, is_whole, read_checkpoint
from ccreid_cli.engine.run_folder import RunFolder


def recover(run: RunFolder, reporter: Reporter) -> dict[str, Any] | None:
    """Read the checkpoint to go on from, in the process that holds the run's lock.

    Damaged checkpoints are passed over and renamed, temporary files of a killed save are removed, and ``best.pt`` is
    the model that the checkpoint calls the best.

    Args:
        run: The run; where a checkpoint of it was named, that one is taken and newer ones are given up.
        reporter: Told what is damaged and where the run goes on.

    Returns:
        The checkpoint's content; None when the run was stopped before its first save.

    Raises:
        CheckpointError: No checkpoint is whole, or all are gone though epochs were done.
    """
    store = run.store()
    run.clean()
    if store.is_empty():
        _refuse_lost_epochs(run)
        reporter.message(f"{run.path} has no checkpoint yet: starting from its first epoch.")
        return None
    saved = Saved(read_checkpoint(run.named), run.named) if run.named else store.load_newest()
    for problem in saved.problems:
        reporter.warning(f"{problem} Falling back to {saved.path.name}.")
    store.go_back_to(saved)
    _agree_on_best(store, saved, reporter)
    epoch, step = saved.place
    where = f"epoch {epoch + 1}, step {step}" if step else f"epoch {epoch + 1}"
    reporter.message(f"resuming {run.path} at {where}")
    run.log(f"resumed at {where} from {saved.path.name}")
    return saved.content


def _refuse_lost_epochs(run: RunFolder) -> None:
    done = len(run.read_metrics())
    if done:
        raise CheckpointError(
            f"{run.checkpoints} is empty, though {plural(done, 'epoch')} of this run had been done.",
            "Put the checkpoints back, or start a new run under another --name.",
        )


def _agree_on_best(store: CheckpointStore, saved: Saved, reporter: Reporter) -> None:
    """Make ``best.pt`` and the checkpoint's own record of the best evaluation tell the same."""
    training = saved.content["training"]
    best = json.loads(training["best"])
    there = _best_in(store, saved)
    if there == best:
        return
    if best and saved.place == (best["epoch"] + 1, 0):
        store.point(store.best, saved.path)
        return
    if best:
        file = store.path_of(best["epoch"] + 1)
        if is_whole(file):
            store.point(store.best, file)
            return
    if there:
        # It comes from an epoch that will be done again; until then it is the best that there is.
        training["best"] = json.dumps(there)
        return
    reporter.warning(f"{store.best} is missing or damaged: the best from here on will take its place.")
    training["best"] = "{}"


def _best_in(store: CheckpointStore, saved: Saved) -> dict[str, Any]:
    """Return the evaluation of the model in ``best.pt``; empty when there is none or it is damaged."""
    if not store.best.exists():
        return {}
    try:
        same = store.best.samefile(saved.path)
        content = saved.content if same else read_checkpoint(store.best)
    except CheckpointError:
        return {}
    evaluation: dict[str, Any] = json.loads(content["training"]["best"])
    return evaluation
