"""Sections of what a run wrote about itself: scores, metrics, settings. No image and no network is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.recipes import load_recipe, recipe_names
from ccreid_cli.engine.run_folder import flatten
from ccreid_cli.report.content import Results, Score, Setup, Training
from ccreid_cli.report.numbers import as_mapping, number
from ccreid_cli.report.sources import Sources

NO_EFFECT_ON_SCORES = {"dataset", "data_dir", "logs_dir", "name", "device", "workers"}


def results(sources: Sources) -> Results | None:
    """Return the run's scores beside the published ones; None where there are neither."""
    scores = all_scores(sources)
    last, _ = _evaluations(sources)
    origins = as_mapping(sources.environment.get("sources"))
    names = asdict(sources.config)
    flags = tuple(name for name in names if origins.get(name) == "flag" and name not in NO_EFFECT_ON_SCORES)
    num_queries = _whole(last.get("num_queries"))
    found = Results(scores, flags, num_queries, _whole(last.get("num_queries_skipped")) or 0)
    return found if scores else None


def training(sources: Sources) -> Training:
    """Return the metrics and what to compare them with."""
    dataset = sources.dataset
    published = next((score for score in all_scores(sources) if score.is_own), None)
    return Training(
        metrics=sources.metrics,
        num_images=len(dataset.train) or None if dataset else None,
        num_ids=dataset.train.num_ids if dataset and dataset.has_train_ids else None,
        published=published,
    )


def setup(sources: Sources) -> Setup:
    """Return the settings and what the run was done with."""
    origins = as_mapping(sources.environment.get("sources"))
    values = sources.config.as_json()
    shown = {name: value for name, value in sources.environment.items() if name not in {"sources", "recipe"}}
    recipe = sources.environment.get("recipe")
    if isinstance(recipe, Mapping):
        shown["recipe"] = recipe.get("name", "")
    return Setup(
        settings=tuple((name, _text(value), str(origins.get(name, ""))) for name, value in values.items()),
        environment=tuple((name, _text(value)) for name, value in flatten(shown).items()),
    )


def all_scores(sources: Sources) -> tuple[Score, ...]:
    """Return the last, the best and the published scores, in the order to show."""
    last, best = _evaluations(sources)
    own = [_own_score(kind, line) for kind, line in (("last", last), ("best", best)) if line]
    return (*own, *published_scores(sources.config, sources.environment))


def published_scores(config: TrainConfig, environment: Mapping[str, Any]) -> tuple[Score, ...]:
    """Return every published result for the run's dataset and backbone, that of its own recipe first.

    Args:
        config: The run's settings.
        environment: The run's record; its recipe counts even where it is none of the shipped ones.
    """
    own = as_mapping(environment.get("recipe"))
    recipes = {name: load_recipe(name) for name in recipe_names()}
    found: dict[str, Mapping[str, Any]] = {
        name: asdict(recipe.about) for name, recipe in recipes.items() if recipe.values.get("dataset") == config.dataset
    }
    if own.get("name") not in recipes:
        found[str(own.get("name", ""))] = own
    scores = [_published(about, config.arch, name == own.get("name")) for name, about in found.items()]
    return tuple(sorted(filter(None, scores), key=lambda score: not score.is_own))


def _published(about: Mapping[str, Any], arch: str, is_own: bool) -> Score | None:
    pair = as_mapping(about.get("published")).get(arch)
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    label = "published, this recipe" if is_own else "published"
    title, source = (str(about.get(key) or "") for key in ("title", "source"))
    return Score("published", label, title, float(pair[0]), float(pair[1]), is_own=is_own, source=source)


def _evaluations(sources: Sources) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the last and the best evaluation: of the result, or so far; empty without any."""
    scored = [line for line in sources.metrics if isinstance(line.get("mAP"), float | int)]
    last, best = sources.result.get("last"), sources.result.get("best")
    if not isinstance(last, Mapping):
        last = scored[-1] if scored else {}
    if not isinstance(best, Mapping):
        best = max(scored, key=lambda line: float(line["mAP"]), default={})
    return last, best


def _own_score(kind: str, line: Mapping[str, Any]) -> Score:
    epoch = _whole(line.get("epoch"))
    detail = "" if epoch is None else f"epoch {epoch + 1}"
    mean_ap, rank1, rank5, rank10, mean_inp = (
        100 * number(line.get(key)) for key in ("mAP", "rank1", "rank5", "rank10", "mINP")
    )
    return Score(kind, kind, detail, mean_ap, rank1, rank5, rank10, mean_inp)


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
