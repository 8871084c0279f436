"""A report on a run: its metrics and result, and what its checkpoint does with the images, as one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ccreid_cli.core.config import TrainConfig, load_recipe, recipe_names
from ccreid_cli.core.errors import CcreidError, Interrupted
from ccreid_cli.core.files import atomic_write_text
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.version import __version__
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.evaluation_set import EvaluationSet
from ccreid_cli.engine.extraction import extract_features
from ccreid_cli.engine.labelling import label_features
from ccreid_cli.engine.retrieval_scores import distance_histogram, evaluate_features
from ccreid_cli.engine.run_folder import RunFolder, flatten
from ccreid_cli.images.opening import ImageSettings, image_settings, is_sharded, open_paths
from ccreid_cli.inference.loading import LoadedModel, ModelRequest, load_network
from ccreid_cli.machine.distributed import Group
from ccreid_cli.report.choose import cluster_contents, ranking_groups
from ccreid_cli.report.content import Clusters, ReportContent, Retrieval, Score, Setting

FILE_NAME = "report.html"

T = TypeVar("T")


def write_report(
    run: RunFolder,
    out: Path | None = None,
    *,
    device: str = "auto",
    reporter: Reporter | None = None,
    with_images: bool = True,
    checkpoint: str = "last",
    data_dir: Path | None = None,
    say_device: bool = True,
) -> Path:
    """Write a report on a run: what is missing (images, a checkpoint, an evaluation) is left out and said so.

    Args:
        run: The run, finished or not.
        out: The file; by default ``report.html`` in the run's folder.
        device: Where features are computed, as ``--device``.
        reporter: Where progress goes.
        with_images: Whether images of the dataset are shown. Without them the training images need no features.
        checkpoint: Which checkpoint rankings and clusters come from: ``last`` or ``best``.
        data_dir: Folder of the datasets; by default where the run was trained.
        say_device: Whether the device is said, as it need not be where training has just said it.

    Returns:
        The file.

    Raises:
        DataError: The folder is no run, or the file cannot be written.
        UsageError: The run's settings are damaged.
    """
    reporter = reporter or SilentReporter()
    content = gather_metrics(run)
    examiner = _Examiner(run, device, reporter, checkpoint, data_dir, say_device)
    content = examiner.examine(content, with_images=with_images)
    # Only report.page draws, and only here is it needed: Matplotlib takes a second to import.
    from ccreid_cli.report.page import render

    path = out or run.path / FILE_NAME
    atomic_write_text(path, render(content))
    return path


def gather_metrics(run: RunFolder) -> ReportContent:
    """Read what a run wrote about itself; no image and no network is needed.

    Raises:
        DataError: The folder is no run.
        UsageError: The run's settings are damaged.
    """
    config, environment, result = run.read_config(), run.read_environment(), run.read_result()
    metrics = tuple(line for line in run.read_metrics() if isinstance(line, Mapping))
    last, best = _evaluations(metrics, result)
    return ReportContent(
        name=run.path.absolute().name,
        dataset=config.dataset,
        arch=config.arch,
        version=__version__,
        started=str(environment.get("started", "")),
        epochs_done=len(metrics),
        epochs=config.epochs,
        num_train_images=None,
        num_train_ids=None,
        metrics=metrics,
        scores=(*_own_scores(last, best), *published_scores(config, environment)),
        num_queries=_whole(last.get("num_queries")),
        num_queries_skipped=_whole(last.get("num_queries_skipped")),
        settings=_settings(config, environment),
        environment=_environment(environment),
    )


@dataclass(frozen=True)
class _Examiner:
    """Looks at what a run's checkpoint does with the images."""

    run: RunFolder
    device: str
    reporter: Reporter
    checkpoint: str
    data_dir: Path | None
    say_device: bool

    def examine(self, content: ReportContent, *, with_images: bool) -> ReportContent:
        """Add everything that needs the images or the network, as far as they can be had."""
        config = self.run.read_config()
        data_dir = self.data_dir or config.data_dir
        content, dataset = self._attempt(content, lambda: load_dataset(config.dataset, data_dir, self.reporter))
        if dataset is None:
            return content
        content = self._with_counts(content, dataset)
        request = ModelRequest(str(self.run.path), self.checkpoint)
        content, loaded = self._attempt(
            content,
            lambda: load_network(request, self.run.path.parent, self.device, self.reporter, say_device=self.say_device),
        )
        if loaded is None:
            return content
        content = replace(content, checkpoint=_name_of(loaded, self.checkpoint))
        sharded = is_sharded(config.shard_images)
        images = image_settings(config.height, config.width, config.workers, data_dir, sharded=sharded)
        work = _Work(config, dataset, loaded, images, self.reporter)
        if dataset.has_evaluation:
            content, retrieval = self._attempt(content, lambda: work.retrieval(with_images))
            content = replace(content, retrieval=retrieval)
        else:
            content = _noted(content, f"{dataset.name} has no query and gallery: nothing can be scored.")
        if with_images:
            content, clusters = self._attempt(content, work.clusters)
            content = replace(content, clusters=clusters)
        return content

    def _attempt(self, content: ReportContent, action: Callable[[], T]) -> tuple[ReportContent, T | None]:
        """Do something whose failure costs a part of the report, not the report."""
        try:
            return content, action()
        except Interrupted:
            raise
        except CcreidError as error:
            problem = error.message
        except (OSError, MemoryError, torch.OutOfMemoryError) as error:
            problem = f"{type(error).__name__}: {error}"
        self.reporter.warning(f"report: {problem}")
        return _noted(content, f"Left out: {problem}"), None

    def _with_counts(self, content: ReportContent, dataset: ReidDataset) -> ReportContent:
        trained_on = self.run.read_environment().get("dataset")
        fingerprint = trained_on.get("fingerprint") if isinstance(trained_on, Mapping) else None
        if fingerprint and fingerprint != dataset.fingerprint():
            text = (
                f"The images in {dataset.root} are not those the run was trained on: rankings and clusters may differ."
            )
            content = _noted(content, text)
        num_ids = dataset.train.num_ids if dataset.has_train_ids else None
        return replace(content, num_train_images=len(dataset.train) or None, num_train_ids=num_ids)


@dataclass(frozen=True)
class _Work:
    """The parts of a report that take time."""

    config: TrainConfig
    dataset: ReidDataset
    loaded: LoadedModel
    images: ImageSettings
    reporter: Reporter

    def retrieval(self, with_images: bool) -> Retrieval:
        """Search the gallery for every query."""
        group = Group(device=self.loaded.device)
        test_set = EvaluationSet(self.dataset, self.images, group, self.reporter)
        query, gallery = test_set.features(self.loaded.model, self.loaded.device, self.config.precision)
        queries, entries = self.dataset.query, self.dataset.gallery
        pairs = (query, queries.person_ids, queries.camera_ids, gallery, entries.person_ids, entries.camera_ids)
        evaluation = evaluate_features(*pairs)
        distances = distance_histogram(*pairs)
        shown = ranking_groups(self.dataset, test_set.store, query, gallery, evaluation) if with_images else ()
        return Retrieval(
            cmc=evaluation.cmc,
            average_precision=evaluation.average_precision,
            edges=distances.edges,
            positives=distances.positives,
            negatives=distances.negatives,
            groups=shown,
        )

    def clusters(self) -> Clusters:
        """Give pseudo-labels to the training images."""
        group = Group(device=self.loaded.device)
        store = open_paths(self.dataset.train.paths, self.images, group, self.reporter)
        features = extract_features(
            self.loaded.model,
            store,
            device=self.loaded.device,
            precision=self.config.precision,
            description="extract training set",
            reporter=self.reporter,
        )
        found = label_features(features, self.config, group, self.reporter)
        return cluster_contents(self.dataset, store, found.labels.astype(np.int64))


def published_scores(config: TrainConfig, environment: Mapping[str, Any]) -> tuple[Score, ...]:
    """Return every published result for the run's dataset and backbone, that of its own recipe first.

    Args:
        config: The run's settings.
        environment: The run's record; its recipe counts even where it is none of the shipped ones.
    """
    own = environment.get("recipe")
    own = own if isinstance(own, Mapping) else {}
    found: dict[str, Mapping[str, Any]] = {}
    for name in recipe_names():
        recipe = load_recipe(name)
        if recipe.values.get("dataset") == config.dataset:
            found[name] = recipe.about.model_dump()
    if own.get("name") not in recipe_names():
        found[str(own.get("name", ""))] = own
    scores = [_published(about, config.arch, name == own.get("name")) for name, about in found.items()]
    known = [score for score in scores if score is not None]
    return tuple(sorted(known, key=lambda score: not score.is_own))


def _published(about: Mapping[str, Any], arch: str, is_own: bool) -> Score | None:
    published = about.get("published")
    pair = published.get(arch) if isinstance(published, Mapping) else None
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    label = "published, this recipe" if is_own else "published"
    title, source = (str(about.get(key) or "") for key in ("title", "source"))
    return Score("published", label, title, float(pair[0]), float(pair[1]), is_own=is_own, source=source)


def _evaluations(
    metrics: tuple[Mapping[str, Any], ...], result: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the last and the best evaluation: of the result, or so far; empty without any."""
    scored = [line for line in metrics if isinstance(line.get("mAP"), float | int)]
    last, best = result.get("last"), result.get("best")
    if not isinstance(last, Mapping):
        last = scored[-1] if scored else {}
    if not isinstance(best, Mapping):
        best = max(scored, key=lambda line: float(line["mAP"]), default={})
    return last, best


def _own_scores(last: Mapping[str, Any], best: Mapping[str, Any]) -> list[Score]:
    return [_own_score(kind, line) for kind, line in (("last", last), ("best", best)) if line]


def _own_score(kind: str, line: Mapping[str, Any]) -> Score:
    def percent(key: str) -> float | None:
        value = line.get(key)
        return 100.0 * value if isinstance(value, float | int) else None

    epoch = _whole(line.get("epoch"))
    return Score(
        kind=kind,
        label=kind,
        detail="" if epoch is None else f"epoch {epoch + 1}",
        mean_ap=percent("mAP"),
        rank1=percent("rank1"),
        rank5=percent("rank5"),
        rank10=percent("rank10"),
        mean_inp=percent("mINP"),
    )


def _settings(config: TrainConfig, environment: Mapping[str, Any]) -> tuple[Setting, ...]:
    sources = environment.get("sources")
    sources = sources if isinstance(sources, Mapping) else {}
    values = config.model_dump(mode="json")
    return tuple(Setting(name, _text(value), str(sources.get(name, ""))) for name, value in values.items())


def _environment(environment: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    shown = {name: value for name, value in environment.items() if name not in {"sources", "recipe"}}
    recipe = environment.get("recipe")
    if isinstance(recipe, Mapping):
        shown["recipe"] = recipe.get("name", "")
    return tuple((name, _text(value)) for name, value in flatten(shown).items())


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _noted(content: ReportContent, note: str) -> ReportContent:
    return replace(content, notes=(*content.notes, note))


def _name_of(loaded: LoadedModel, which: str) -> str:
    training = loaded.meta.get("training")
    epoch = training.get("epoch") if isinstance(training, Mapping) else None
    when = f" (after epoch {epoch})" if isinstance(epoch, int) else ""
    return f"the {which} checkpoint{when}"
