"""The same images give the same score as manifests, folders and feature files, however they are cut into files."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.data.reading import load_dataset
from ccreid_cli.data.splits import Split, compared_cameras
from ccreid_cli.engine.retrieval_scores import evaluate_features
from ccreid_cli.inference.embedding_file import EmbeddingFile, write_embeddings
from ccreid_cli.inference.image_list import list_source
from ccreid_cli.inference.scored_pair import read_scored_pair

SILENT = SilentReporter()
Score = dict[str, float | int] | None
"""None: nothing can be scored."""


class Shot(NamedTuple):
    """One image: its file, who is on it, which camera took it, and its split."""

    name: str
    identity: str
    camera: str
    split: str

    @property
    def feature(self) -> np.ndarray:
        seed = int(self.name.rpartition("_")[2].partition(".")[0])
        return np.random.default_rng(seed).normal(size=4).astype(np.float32)


def shots_of(identities: st.SearchStrategy[str], cameras: st.SearchStrategy[str]) -> st.SearchStrategy[list[Shot]]:
    drawn = st.tuples(identities, cameras, st.sampled_from(["query", "gallery"]))
    return st.lists(drawn, min_size=4, max_size=14).map(
        lambda rows: [Shot(f"img_{number}.png", *row) for number, row in enumerate(rows)]
    )


def write_manifest(path: Path, shots: Sequence[Shot]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "id", "camera", "split"), *shots])
    return str(path)


def as_dataset(source: str, shots: Sequence[Shot]) -> Score:
    """Score as training and `eval` do."""
    by_number = {shot.name.rpartition("_")[2]: shot.feature for shot in shots}

    def features(split: Split) -> np.ndarray:
        return unit(np.stack([by_number[name.rpartition("_")[2]] for name in split.names]))

    try:
        dataset = load_dataset(source, Path("unused"), SILENT)
        if not dataset.has_evaluation:
            return None
        cameras = compared_cameras(dataset.query, dataset.gallery)
        query = (features(dataset.query), dataset.query.person_ids, cameras[0])
        return evaluate_features(*query, features(dataset.gallery), dataset.gallery.person_ids, cameras[1]).as_json()
    except DataError:
        return None


def as_files(sources: dict[str, str], folder: Path, shots: Sequence[Shot], suffix: str) -> Score:
    """Score as `extract` and `score` do, each split of a source of its own."""
    by_number = {shot.name.rpartition("_")[2]: shot.feature for shot in shots}
    files = [folder / f"{split}{suffix}" for split in ("query", "gallery")]
    try:
        for split, file in zip(("query", "gallery"), files, strict=True):
            images = list_source(sources[split], split, Path("unused"), SILENT)
            rows = np.stack([by_number[name.rpartition("_")[2]] for name in images.names])
            write_embeddings(file, EmbeddingFile(unit(rows), images, {}))
        query, gallery = read_scored_pair(*files, SILENT)
        entries = (gallery.features, gallery.ids, gallery.cams)
        return evaluate_features(query.features, query.ids, query.cams, *entries).as_json()
    except DataError:
        return None


def unit(rows: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def oracle(shots: Sequence[Shot]) -> Score:
    """Compare names by Python's own equality."""
    known = [shot for shot in shots if shot.identity.strip() not in NONE]
    query, gallery = ([shot for shot in known if shot.split == split] for split in ("query", "gallery"))
    if not query or not gallery:
        return None
    ids, cameras = sorted({shot.identity for shot in known}), sorted({shot.camera for shot in known})
    sides = [
        (
            unit(np.stack([shot.feature for shot in side])),
            np.array([ids.index(shot.identity) for shot in side]),
            np.array([cameras.index(shot.camera) if shot.camera else -row for shot in side]),
        )
        for row, side in ((1, query), (2, gallery))
    ]
    try:
        return evaluate_features(*sides[0], *sides[1]).as_json()
    except DataError:
        return None


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=4)
stripped = text.map(str.strip)
TRICKY = ["1", "01", "1.0", "\uff11", "1_0", "10", "A", "a", "\u00e9", "e\u0301", 'a,"b', "a\nb", "9" * 25, "-2"]
NONE = ["", "-1", "-1.0"]
identities = st.sampled_from(TRICKY[:4]) | st.sampled_from(TRICKY + NONE) | stripped
cameras = st.sampled_from(["1", "01", "c", "C"]) | stripped.filter(lambda name: name not in NONE)


@settings(max_examples=25, deadline=None)
@given(shots_of(identities, cameras), st.sampled_from([".npz", ".npy"]))
def test_one_manifest_two_manifests_and_feature_files(shots: list[Shot], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for shot in shots:
            (here / shot.name).touch()
        whole = write_manifest(here / "all.csv", shots)
        parts = {
            split: write_manifest(here / f"{split}.csv", [shot for shot in shots if shot.split == split] or shots[:1])
            for split in ("query", "gallery")
        }
        expected = oracle(shots)
        for score in (
            as_dataset(whole, shots),
            as_files({"query": whole, "gallery": whole}, here, shots, suffix),
            as_files(parts, here, shots, suffix),
        ):
            assert score == (expected and pytest.approx(expected, abs=1e-9))


digits = st.sampled_from(["1", "01", "001", "2", "10", "0000", "-1", "9" * 22])


@settings(max_examples=12, deadline=None)
@given(shots_of(digits, st.sampled_from(["1", "01", "2", "9" * 22])))
def test_file_names_folders_and_manifests(shots: list[Shot]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        named = [
            shot._replace(name=f"{shot.split}/{shot.identity}_c{shot.camera}_{shot.name.rpartition('_')[2]}")
            for shot in shots
        ]
        for shot in named:
            path = here / "names" / shot.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            path = here / "folders" / shot.split / shot.identity / f"x_c{shot.camera}_{shot.name.rpartition('_')[2]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        sources = [str(here / "names"), str(here / "folders"), write_manifest(here / "names" / "m.csv", named)]
        expected = oracle(shots)
        for source in sources:
            assert as_dataset(source, shots) == (expected and pytest.approx(expected, abs=1e-9))
        for query, gallery in zip(sources, sources[1:] + sources[:1], strict=True):
            score = as_files({"query": query, "gallery": gallery}, here, shots, ".npz")
            assert score == (expected and pytest.approx(expected, abs=1e-9))
