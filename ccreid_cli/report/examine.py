"""Sections of what a run's checkpoint does with the images: retrieval and clusters."""

from __future__ import annotations

import shlex

from ccreid_cli.data.splits import compared_cameras
from ccreid_cli.engine.evaluation_set import EvaluationSet
from ccreid_cli.engine.extraction import extract_features
from ccreid_cli.engine.retrieval_scores import distance_histogram, evaluate_features
from ccreid_cli.images.opening import ImageSettings, image_settings, is_sharded, open_paths
from ccreid_cli.machine.distributed import Group
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels
from ccreid_cli.report.choose import choose_clusters, choose_doubtful, choose_outliers, choose_rankings
from ccreid_cli.report.content import Cluster, Clusters, Merge, Retrieval, Selection
from ccreid_cli.report.sources import Sources


def retrieval(sources: Sources) -> Retrieval | None:
    """Search the gallery for every query; None without a network or without query and gallery."""
    dataset, loaded, notes = sources.dataset, sources.loaded, sources.notes
    if dataset is None or loaded is None:
        return None
    if dataset.why_not_scored:
        notes.texts.append(f"{dataset.why_not_scored}: nothing can be scored.")
        return None
    evaluation_set = EvaluationSet(dataset, _images(sources), Group(device=loaded.device), notes.reporter)
    precision = loaded.precision(sources.config.precision)
    query, gallery = evaluation_set.features(loaded.model, loaded.device, precision)
    query_cameras, gallery_cameras = compared_cameras(dataset.query, dataset.gallery)
    pairs = (query, dataset.query.person_ids, query_cameras, gallery, dataset.gallery.person_ids, gallery_cameras)
    evaluation = evaluate_features(*pairs)
    distances = distance_histogram(*pairs)
    rankings = choose_rankings(dataset, evaluation_set.store, query, gallery, evaluation) if sources.with_images else ()
    return Retrieval(
        checkpoint=sources.checkpoint,
        cmc=evaluation.cmc,
        average_precision=evaluation.average_precision,
        edges=distances.edges,
        positives=distances.positives,
        negatives=distances.negatives,
        rankings=rankings,
    )


def clusters(sources: Sources) -> Clusters | None:
    """Give pseudo-labels to the training images; None without a network or where no image may be shown."""
    dataset, loaded = sources.dataset, sources.loaded
    if dataset is None or loaded is None or not sources.with_images:
        return None
    reporter, config, group = sources.notes.reporter, sources.config, Group(device=loaded.device)
    store = open_paths(dataset.train.paths, _images(sources), group, reporter)
    features = extract_features(
        loaded.model,
        store,
        device=loaded.device,
        precision=loaded.precision(config.precision),
        description="extract training set",
        reporter=reporter,
    ).own
    cameras = dataset.train.known_camera_ids()
    settings = ClusterSettings.of(config)
    found = pseudo_labels(features, settings, camera_ids=cameras, group=group, reporter=reporter)
    doubtful: tuple[Selection[Cluster], ...] = ()
    merges: tuple[Merge, ...] = ()
    if not dataset.has_train_ids:
        doubtful, merges = choose_doubtful(dataset, store, features.float().cpu().numpy(), found.labels)
    return Clusters(
        checkpoint=sources.checkpoint,
        num_images=len(found.labels),
        num_clusters=found.num_clusters,
        num_outliers=found.num_outliers,
        selections=(*doubtful, *choose_clusters(dataset, store, found.labels)),
        outliers=choose_outliers(dataset, store, found.labels),
        merges=merges,
        eps_choice=found.eps_choice,
        commands=() if dataset.has_train_ids else _commands(sources),
    )


def _commands(sources: Sources) -> tuple[str, ...]:
    """Return how to write identities, and how to correct them on a page."""
    run = shlex.quote(sources.run)
    return (
        f"ccreid identify {shlex.quote(str(sources.config.dataset))} --resume {run} -o identities.csv",
        f"ccreid review identities.csv --resume {run}",
    )


def _images(sources: Sources) -> ImageSettings:
    config = sources.config
    sharded = is_sharded(config.shard_images)
    return image_settings(
        config.height, config.width, config.workers, sources.data_dir, resize=config.resize, sharded=sharded
    )
