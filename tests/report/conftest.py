"""A report's content that needs no run: hostile names, every part filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ccreid_cli.pseudo_labels.choosing_eps import EPS_VALUES, EpsChoice, EpsTrial
from ccreid_cli.report.content import (
    Cluster,
    Clusters,
    Merge,
    Picture,
    Ranked,
    Ranking,
    ReportContent,
    Results,
    Retrieval,
    Score,
    Selection,
    Setup,
    Training,
    Verdict,
)
from ccreid_cli.report.page import render

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&amp;"


def metrics(epochs: int = 12, eval_step: int = 4) -> tuple[dict[str, Any], ...]:
    lines = []
    for epoch in range(epochs):
        seconds = {"extract": 8.0, "neighbors": 0.5, "jaccard": 19.0, "clustering": 1.0, "train": 90.0, "save": 0.4}
        line: dict[str, Any] = {"epoch": epoch, "seconds": seconds, "loss": 4 / (epoch + 1) + 1}
        line |= {"num_clusters": 200 + 50 * epoch, "num_outliers": 4000 - 300 * epoch, "cross_camera_share": 0.5}
        line |= {"stability": 0.5 + 0.04 * epoch} if epoch else {}
        line |= {"eps": 0.6 - 0.025 * (epoch % 3)}
        line |= {"ari": 0.07 * epoch, "nmi": 0.5 + 0.03 * epoch, "purity": 0.4 + 0.04 * epoch}
        if (epoch + 1) % eval_step == 0:
            line |= {"mAP": 0.06 * epoch, "rank1": 0.07 * epoch}
        lines.append(line)
    return tuple(lines)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Picture]:
    rng = np.random.default_rng(0)

    def make(identity: str | None = "3", camera: str | None = "1", name: str = HOSTILE) -> Picture:
        return Picture(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8), name, identity, camera)

    return make


@pytest.fixture(scope="session")
def content(picture: Callable[..., Picture]) -> ReportContent:
    rng = np.random.default_rng(0)
    verdicts = [(Verdict.JUNK, None), (Verdict.RIGHT, 1), *((Verdict.WRONG, rank) for rank in range(2, 11))]
    results = tuple(Ranked(picture(), verdict, rank) for verdict, rank in verdicts)
    ranking = Ranking(picture(), 0.42, 1, results, num_junk_hidden=2)
    cluster = Cluster(7, 40, 3, 2, 0.75, "3", tuple(picture(identity) for identity in "339"))
    published = Score(
        "published", "published, this recipe", HOSTILE, 82.6, 93.0, is_own=True, source="arXiv 2103.11568"
    )
    scores = (
        Score("last", "last", "epoch 12", 81.94, 92.5, 96.8, 97.9, 48.1),
        Score("best", "best", "epoch 11", 82.33, 92.6, 96.9, 98.0, 48.6),
        published,
        Score("published", "published", "another paper", 83.0, 92.9),
    )
    checkpoint = "the last checkpoint (after epoch 12)"
    trials = tuple(EpsTrial(value, 750, 321, value / 2, value / 2) for value in EPS_VALUES)
    eps = EpsChoice(EPS_VALUES[-1], trials)
    sections: dict[str, object] = {
        "results": Results(scores, flags=("iters",), num_queries=3368, num_queries_skipped=1),
        "training": Training(metrics(), 12936, 751, published),
        "retrieval": Retrieval(
            checkpoint,
            cmc=np.linspace(0.9, 1, 100),
            average_precision=np.append(rng.random(50), np.nan),
            edges=np.linspace(0, 4, 101),
            positives=rng.integers(0, 90, 100),
            negatives=rng.integers(0, 900, 100),
            rankings=(Selection("Worst queries", "lowest first", (ranking, ranking)),),
        ),
        "clusters": Clusters(
            checkpoint,
            12936,
            750,
            321,
            (Selection("Biggest clusters", "by size", (cluster,)),),
            (picture(),),
            (Merge(cluster, cluster, 0.8),),
            ("ccreid review 'a <b>'",),
            eps,
        ),
        "setup": Setup(
            settings=(("eps", "0.4", "recipe market1501"), ("iters", HOSTILE, "flag")),
            environment=(("host", HOSTILE), ("packages.torch", "2.9")),
        ),
    }
    return ReportContent(
        name=HOSTILE,
        dataset=HOSTILE,
        arch="resnet50",
        version="1.0",
        started="2026-01-02T03:04:05+0000",
        epochs=12,
        metrics=metrics(),
        scores=scores,
        sections=sections,
        notes=(HOSTILE,),
    )


@pytest.fixture(scope="session")
def text(content: ReportContent) -> str:
    """The page of `content`."""
    return render(content)
