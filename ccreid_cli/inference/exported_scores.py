"""How well an exported file scores beside the network it was made from."""

from __future__ import annotations

from pathlib import Path

import torch

from ccreid_cli.core.reporter import Reporter
from ccreid_cli.data.splits import ReidDataset
from ccreid_cli.engine.evaluation_set import EvaluationSet
from ccreid_cli.engine.shared_scores import evaluate_together
from ccreid_cli.images.opening import image_settings
from ccreid_cli.images.source import ImageSet
from ccreid_cli.inference.embedder import Embedder
from ccreid_cli.inference.export_forms import Compute
from ccreid_cli.machine.distributed import Group

_BATCH = 32
_CPU = torch.device("cpu")


def score_both(
    embedder: Embedder, compute: Compute, dataset: ReidDataset, data_dir: Path, reporter: Reporter
) -> dict[str, float]:
    """Score the network and the file made from it on the same images.

    Args:
        embedder: The network.
        compute: The file: (N, height, width, 3) uint8 images -> (N, D) features.
        dataset: With query and gallery.
        data_dir: Folder of the datasets, where decoded images are kept.
        reporter: Where progress goes.

    Returns:
        The mAP ``before`` (the network) and ``after`` (the file).
    """
    size, resize = embedder.input_size, embedder.preprocessing.resize
    group, images = Group(), image_settings(*size, 4, data_dir, resize=resize)
    test_set = EvaluationSet(dataset, images, group, reporter)
    before = test_set.score(embedder.model, _CPU, "fp32")
    rows = _features(compute, test_set.store, reporter)
    num_query = len(dataset.query)
    after = evaluate_together(rows[:num_query], rows[num_query:], dataset, group, device=_CPU)
    return {"before": before.mean_ap, "after": after.mean_ap}


def _features(compute: Compute, store: ImageSet, reporter: Reporter) -> torch.Tensor:
    rows = []
    with reporter.task("extract by the file", len(store), "img") as task:
        for chosen in torch.split(torch.arange(len(store)), _BATCH):
            pixels = store.gather(chosen, _CPU).permute(0, 2, 3, 1).contiguous()
            rows.append(torch.from_numpy(compute(pixels.numpy())).clone())
            task.advance(len(chosen))
    return torch.nn.functional.normalize(torch.cat(rows).float())
