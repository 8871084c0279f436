"""Whether pseudo-labels are worth training on, and what to do when they are not."""

from __future__ import annotations

from ccreid_cli.core.config import TrainConfig, settings
from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.words import plural
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.method.sampling import batches_are_short
from ccreid_cli.models.batch_norm import count_statistics
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.pseudo_labels.pipeline import PseudoLabels
from ccreid_cli.pseudo_labels.registry import CLUSTERERS


def check_clusters(found: PseudoLabels, epoch: int, config: TrainConfig, reporter: Reporter) -> None:
    """Refuse labels that tell nothing apart; warn where clusters are too few for a batch.

    Raises:
        DataError: There are fewer than two clusters.
    """
    if found.num_clusters < 2:
        raise _nothing_to_tell_apart(found, epoch, config)
    if batches_are_short(found.labels, config.batch_size, config.num_instances):
        reporter.warning(
            f"{found.num_clusters} clusters do not fill a batch of {config.batch_size} at "
            f"{plural(config.num_instances, 'image')} each: clusters repeat within a batch."
        )


def takes_camera_statistics(model: ReidNet, dataset: ReidDataset, config: TrainConfig) -> bool:
    """Return whether features to cluster take the batch-norm statistics of each image's camera."""
    return config.camera_batch_norm and dataset.train.num_cameras > 1 and count_statistics(model.backbone) > 0


def check_cameras(model: ReidNet, dataset: ReidDataset, config: TrainConfig, reporter: Reporter) -> None:
    """Say which settings do nothing because fewer than two cameras are known, or there are no batch norms."""
    if dataset.train.num_cameras > 1:
        if config.camera_batch_norm and not takes_camera_statistics(model, dataset, config):
            instead = "only --camera-norm is done" if config.camera_norm else "use --camera-norm instead"
            reporter.warning(f"{config.arch} has no batch norms: --camera-batch-norm does nothing, {instead}.")
        return
    names = ("camera_norm", "camera_batch_norm", "drop_single_camera")
    used = [settings()[name].option for name in names if getattr(config, name)]
    if config.method == "camera-contrast":
        used.append("--method camera-contrast")
    if used:
        what = "are of one camera" if dataset.train.num_cameras else "have no known camera"
        reporter.warning(
            f"the training images of {dataset.name} {what}: what uses cameras does nothing ({', '.join(used)})."
        )


def _nothing_to_tell_apart(found: PseudoLabels, epoch: int, config: TrainConfig) -> DataError:
    num_images = len(found.labels)
    clusters = "no cluster" if found.num_clusters == 0 else "a single cluster"
    eps = f"{config.eps:g}" if config.eps != "auto" else "auto, whichever value it tries"
    return DataError(
        f"epoch {epoch + 1}: {clusters} among {plural(num_images, 'image')} "
        f"({plural(found.num_outliers, 'outlier')}) at --eps {eps}; there is nothing to tell apart.",
        _advice(found, config),
    )


def _advice(found: PseudoLabels, config: TrainConfig) -> str:
    if config.eps == "auto":
        return "Try better starting weights (--weights imagenet), or a smaller --k1 or --min-samples."
    too_few_join = found.num_outliers > len(found.labels) // 2
    change = "larger" if too_few_join == CLUSTERERS[config.cluster].larger_eps_joins_more else "smaller"
    return f"Try a {change} --eps; better starting weights (--weights imagenet) help too."
