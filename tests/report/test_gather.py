"""Reports on runs as they are found on disk: whole, unfinished, without images, with hostile names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import DataError
from ccreid_cli.data.splits import Record, ReidDataset, Split
from ccreid_cli.engine.checkpoint import save_checkpoint
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.images.store import ImageStore
from ccreid_cli.models.reid_net import ModelSpec, build_model
from ccreid_cli.report import choose as report_galleries
from ccreid_cli.report.choose import choose_queries, cluster_contents, ranking_groups
from ccreid_cli.report.content import Verdict
from ccreid_cli.report.gather import gather_metrics, published_scores, write_report
from ccreid_cli.report.pictures import data_address

HOSTILE = "<script>document.title=1<"
EVALUATION = {"mAP": 0.5, "mINP": 0.25, "rank1": 0.75, "rank5": 0.875, "rank10": 1.0}
COUNTS = {"num_queries": 8, "num_queries_skipped": 0}


class Listener:
    """A reporter that keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def task(self, description: str, total: int, unit: str = "it") -> Any:
        from ccreid_cli.core.reporter import SilentReporter

        return SilentReporter().task(description, total, unit)


def _draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 32), (shade, 255 - shade, 90)).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four identities of hostile folders, two cameras: 24 training, 8 query and 16 gallery images."""
    root = tmp_path_factory.mktemp("images")
    for split, each in (("train", 3), ("query", 1), ("gallery", 2)):
        for person in range(4):
            for camera in (1, 2):
                for shot in range(each):
                    name = f"{person + 1:04d}_c{camera}_{shot:04d}{HOSTILE}.png"
                    _draw(root / split / name, 20 + 55 * person + 5 * camera + shot)
    return root


def _run(folder: Path, images: Path, epochs_done: int = 2, **changes: Any) -> RunFolder:
    values = {"dataset": str(images), "data_dir": folder, "height": 32, "width": 16, "arch": "mobilenet_v2"}
    config = TrainConfig(**{**values, "epochs": 2, "k1": 6, "k2": 2, "workers": 0, "precision": "fp32", **changes})
    run = RunFolder(folder / f"run{HOSTILE}")
    run.create(config, {"host": HOSTILE, "packages": {"torch": "2"}, "started": "2026-01-02T00:00:00", "recipe": None})
    lines = [
        {"epoch": epoch, "loss": 2.0, "num_clusters": 4, "num_outliers": 1, "seconds": {"train": 1.0}, **EVALUATION}
        for epoch in range(epochs_done)
    ]
    run.write_metrics(lines)
    return run


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = _run(tmp_path_factory.mktemp("logs"), images)
    spec = ModelSpec("mobilenet_v2")
    torch.manual_seed(0)
    model = build_model(spec, weights="none")
    content = {"model": model.state_dict(), "spec": dict(vars(spec)), "preprocess": {"height": 32, "width": 16}}
    content |= {"config": run.read_config().model_dump_json(), "training": {"epoch": 2}}
    save_checkpoint(run.checkpoints / "last.pt", content)
    run.write_result({"last": {"epoch": 1, **EVALUATION, **COUNTS}, "best": {"epoch": 0, **EVALUATION, "mAP": 0.625}})
    return run


@pytest.fixture
def listener() -> Iterator[Listener]:
    yield Listener()


def test_a_finished_run(finished: RunFolder, listener: Listener) -> None:
    path = write_report(finished, device="cpu", reporter=listener)
    text = path.read_text(encoding="utf-8")
    assert path == finished.path / "report.html"
    assert listener.warnings == []
    assert path.stat().st_size < 1_000_000
    assert HOSTILE not in text
    assert text.count("&lt;script&gt;document.title=1&lt;") > 20
    for word in ("Worst queries", "Biggest clusters", "CMC curve", "Distances", "✓ right", "– junk", "cam 1", "62.5"):
        assert word in text, word
    assert write_report(finished, device="cpu").read_text(encoding="utf-8") == text


def test_without_images_there_is_no_picture_but_every_curve(finished: RunFolder, tmp_path: Path) -> None:
    text = write_report(finished, tmp_path / "new" / "r.html", device="cpu", with_images=False).read_text("utf-8")
    assert "<img" not in text
    assert "CMC curve" in text
    assert "Worst queries" not in text


def test_scores_tell_last_from_best(finished: RunFolder) -> None:
    content = gather_metrics(finished)
    assert [(score.kind, score.detail, score.mean_ap) for score in content.scores] == [
        ("last", "epoch 2", 50.0),
        ("best", "epoch 1", 62.5),
    ]
    assert (content.num_queries, content.epochs_done, content.epochs) == (8, 2, 2)


def test_an_unfinished_run_without_a_checkpoint(images: Path, tmp_path: Path, listener: Listener) -> None:
    run = _run(tmp_path, images, epochs_done=1)
    text = write_report(run, device="cpu", reporter=listener).read_text("utf-8")
    assert "unfinished: 1 of 2 epochs" in text
    assert "Left out: " in text
    assert "no last checkpoint yet" in text
    assert "50.0" in text
    assert len(listener.warnings) == 1


def test_images_that_are_gone_cost_only_the_pictures(finished: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder(tmp_path / "moved")
    shutil.copytree(finished.path, moved.path)
    config = moved.read_config()
    moved.write_config(config.model_copy(update={"dataset": str(tmp_path / "nowhere")}))
    text = write_report(moved, device="cpu").read_text("utf-8")
    assert "nowhere does not exist" in text
    assert "Time per epoch" in text
    assert "<img" not in text


def test_other_images_than_those_trained_on_are_told(finished: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder(tmp_path / "moved")
    shutil.copytree(finished.path, moved.path)
    moved.write_environment({"dataset": {"fingerprint": "0"}})
    assert "are not those the run was trained on" in write_report(moved, device="cpu", with_images=False).read_text(
        "utf-8"
    )


def test_bare_crops_show_clusters_only(finished: RunFolder, tmp_path: Path) -> None:
    for shot in range(12):
        _draw(tmp_path / "crops" / f"shot{shot}.png", 10 * shot)
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    run.write_config(run.read_config().model_copy(update={"dataset": str(tmp_path / "crops")}))
    run.write_metrics([{"epoch": 0, "loss": 1.0, "num_clusters": 2, "num_outliers": 0, "seconds": {}}])
    (run.path / "result.json").unlink()
    text = write_report(run, device="cpu").read_text("utf-8")
    assert "has no query and gallery" in text
    assert "CMC curve" not in text
    assert "<img" in text
    assert "purity" not in text


def test_no_run_and_damaged_records(tmp_path: Path, images: Path) -> None:
    with pytest.raises(DataError, match="not the folder of a run"):
        write_report(RunFolder(tmp_path / "none"))
    run = _run(tmp_path, images, dataset=str(tmp_path / "nowhere"))
    (run.path / "environment.json").write_text("[1")
    (run.path / "result.json").write_text(json.dumps({"last": 3, "best": {"epoch": "x", "mAP": None}}))
    run.metrics_file.write_text('3\n{"epoch": 0}\n{"epoch": 1, "mAP": "high"}\n{"epo')
    assert "Results" in write_report(run, device="cpu").read_text("utf-8")


def test_published_numbers_are_those_of_dataset_and_backbone() -> None:
    config = TrainConfig(dataset="market1501", arch="resnet50")
    scores = published_scores(config, {"recipe": {"name": "market1501-nov2021"}})
    assert [(score.mean_ap, score.rank1, score.is_own) for score in scores] == [
        (82.1, 92.3, True),
        (82.6, 93.0, False),
        (83.0, 92.9, False),
    ]
    assert published_scores(replace_arch(config, "resnet18"), {}) == ()
    # A recipe for another dataset than the one trained on says nothing about this run.
    own_images = replace_arch(config.model_copy(update={"dataset": "./mine"}), "resnet50")
    assert (
        published_scores(own_images, {"recipe": {"name": "market1501", "published": {"resnet50": [82.6, 93.0]}}}) == ()
    )
    mine = {"name": "mine.toml", "title": "Mine", "published": {"resnet50": [70.0, 80.0]}}
    (score,) = published_scores(own_images, {"recipe": mine})
    assert (score.mean_ap, score.detail, score.is_own) == (70.0, "Mine", True)


def replace_arch(config: TrainConfig, arch: str) -> TrainConfig:
    return config.model_copy(update={"arch": arch})


def test_chosen_queries_are_the_worst_the_middle_and_others(rng: np.random.Generator) -> None:
    scores = rng.permutation(np.linspace(0, 1, 101))
    scores[[3, 50]] = np.nan
    chosen = choose_queries(scores, amount=5)
    ordered = np.sort(scores[np.isfinite(scores)])
    np.testing.assert_array_equal(scores[chosen["worst"]], ordered[:5])
    np.testing.assert_allclose(scores[chosen["median"]], ordered[47:52])
    everything = np.concatenate(list(chosen.values()))
    assert len(everything) == len(set(everything.tolist())) == 15
    np.testing.assert_array_equal(chosen["random"], choose_queries(scores, amount=5)["random"])


@pytest.mark.parametrize("amount", [0, 1, 4, 9])
def test_few_queries_are_shown_once(amount: int) -> None:
    chosen = np.concatenate(list(choose_queries(np.linspace(0, 1, amount), amount=4).values()))
    assert sorted(chosen.tolist()) == list(range(amount))


def _scored(rng: np.random.Generator) -> tuple[ReidDataset, ImageStore, torch.Tensor, torch.Tensor]:
    def split(amount: int, kind: str) -> Split:
        ids, cameras = rng.integers(0, 5, amount).tolist(), rng.integers(0, 3, amount).tolist()
        rows = zip(range(amount), ids, cameras, strict=True)
        return Split.from_records(
            Path(), [Record(f"{kind}{row:03d}.jpg", person, camera) for row, person, camera in rows]
        )

    query, gallery = split(20, "q"), split(60, "g")
    dataset = ReidDataset("mine", Path(), Split.empty(Path()), query, gallery)
    store = ImageStore(rng.integers(0, 256, (80, 8, 4, 3), dtype=np.uint8))
    rows = torch.from_numpy(rng.standard_normal((80, 6)).astype(np.float32))
    rows = rows / rows.norm(dim=1, keepdim=True)
    return dataset, store, rows[:20], rows[20:]


def test_rankings_match_a_plain_search(rng: np.random.Generator) -> None:
    dataset, store, query_features, gallery_features = _scored(rng)
    query, gallery = dataset.query, dataset.gallery
    ids = (query.person_ids, query.camera_ids, gallery_features, gallery.person_ids, gallery.camera_ids)
    evaluation = evaluate_features(query_features, *ids)
    groups = ranking_groups(dataset, store, query_features, gallery_features, evaluation)
    rankings = [ranking for group in groups for ranking in group.rankings]
    assert len(rankings) == 20
    for ranking in rankings:
        index = query.names.index(ranking.query.name)
        np.testing.assert_array_equal(ranking.query.image, store.images[index])
        order = np.argsort(-(gallery_features @ query_features[index]).numpy(), kind="stable")
        expected, rank, junk = [], 0, 0
        for entry in order:
            if rank == 10:
                break
            same = gallery.person_ids[entry] == query.person_ids[index]
            if same and gallery.camera_ids[entry] == query.camera_ids[index]:
                junk += 1
                if junk <= report_galleries.MAX_JUNK:
                    expected.append((gallery.names[entry], Verdict.JUNK, None))
                continue
            rank += 1
            expected.append((gallery.names[entry], Verdict.RIGHT if same else Verdict.WRONG, rank))
        assert [(found.picture.name, found.verdict, found.rank) for found in ranking.results] == expected
        assert ranking.num_junk_hidden == max(0, junk - report_galleries.MAX_JUNK)
        rights = [found.rank for found in ranking.results if found.verdict is Verdict.RIGHT]
        assert (rights[0] if rights else None) == (ranking.first_match_rank if ranking.first_match_rank <= 10 else None)
        for found in ranking.results:
            np.testing.assert_array_equal(
                found.picture.image, store.images[20 + gallery.names.index(found.picture.name)]
            )


def _clustered() -> tuple[ReidDataset, ImageStore, np.ndarray[Any, np.dtype[np.int64]]]:
    labels = np.array([0] * 20 + [1] * 8 + [2] * 8 + [3] * 6 + [-1] * 5, dtype=np.int64)
    ids = [1] * 15 + [2] * 5 + [3] * 8 + [4, 5, 6, 7] * 2 + [8] * 6 + [9] * 5
    records = [Record(f"{row:03d}.jpg", person, row % 2) for row, person in enumerate(ids)]
    train = Split.from_records(Path(), records)
    dataset = ReidDataset("mine", Path(), train, Split.empty(Path()), Split.empty(Path()))
    return dataset, ImageStore(np.zeros((47, 8, 4, 3), dtype=np.uint8)), labels


def test_clusters_are_counted_and_ordered() -> None:
    found = cluster_contents(*_clustered())
    assert (found.num_images, found.num_clusters, found.num_outliers) == (47, 4, 5)
    biggest, mixed, purest = found.groups
    assert [cluster.number for cluster in biggest.clusters] == [0, 1, 2, 3]
    assert [(cluster.number, cluster.purity, cluster.num_ids) for cluster in mixed.clusters] == [
        (2, 0.25, 4),
        (0, 0.75, 2),
    ]
    assert [cluster.number for cluster in purest.clusters] == [1, 3, 0, 2]
    assert [picture.name for picture in found.outliers] == [f"{row:03d}.jpg" for row in range(42, 47)]


def test_every_identity_of_a_mixed_cluster_is_seen() -> None:
    cluster = cluster_contents(*_clustered()).groups[0].clusters[0]
    assert cluster.main_id == 1
    assert [picture.person_id for picture in cluster.pictures] == [1] * 7 + [2] * 5


def test_clusters_of_unknown_people() -> None:
    dataset, store, labels = _clustered()
    train = replace(dataset.train, person_ids=np.full(47, -1))
    found = cluster_contents(replace(dataset, train=train, has_cameras=False), store, labels)
    (group,) = found.groups
    first = group.clusters[0]
    assert (first.num_ids, first.purity, first.main_id, first.num_cameras) == (None, None, None, None)
    assert first.pictures[0].person_id is None
    assert first.pictures[0].camera is None
    assert cluster_contents(dataset, store, np.full(47, -1)).groups == ()


def test_the_largest_report_stays_under_ten_megabytes(rng: np.random.Generator) -> None:
    noise = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    address, width, height = data_address(noise)
    rankings = 3 * report_galleries.NUM_QUERIES * (1 + report_galleries.NUM_RESULTS + report_galleries.MAX_JUNK)
    members = 3 * report_galleries.NUM_CLUSTERS * report_galleries.NUM_MEMBERS
    most = rankings + members + report_galleries.NUM_OUTLIERS
    assert most * (len(address) + 500) < 9_000_000
    assert width == height
