"""An index beside a feature file: what it finds, what it says of itself, and when it is refused."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.inference import search_index
from ccreid_cli.inference.embedding_file import EmbeddingFile, read_embeddings, write_embeddings
from ccreid_cli.inference.image_list import ImageList
from ccreid_cli.inference.search import best_matches
from ccreid_cli.inference.search_index import check_index, open_index, place_of

faiss = pytest.importorskip("faiss")
pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(num_ids: int, per_id: int, seed: int = 1) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows = np.repeat(random.standard_normal((num_ids, 16)), per_id, axis=0)
    rows += 0.3 * random.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Messages(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    rows = rows_of(80, 12)
    names = tuple(f"{number}.jpg" for number in range(len(rows)))
    write_embeddings(tmp_path / "g.npy", EmbeddingFile(rows, ImageList(tmp_path, names), {"model": "m"}))
    return tmp_path / "g.npy"


def opened(gallery: Path, recall: float = 0.95, reporter: Any = None) -> search_index.SearchIndex:
    return open_index(gallery, read_embeddings(gallery), recall, reporter or SilentReporter())


@pytest.mark.parametrize("block_bytes", [512 << 20, 64 * 100])
def test_the_recall_is_as_told_and_similarities_are_exact(
    block_bytes: int, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the rows come in several blocks, as of a gallery larger than the memory."""
    monkeypatch.setattr(search_index, "_BLOCK_BYTES", block_bytes)
    reporter = Messages()
    index = opened(gallery, 0.9, reporter)
    rows = np.load(gallery)
    queries = rows[5::9]
    found, exact = index.best_matches(queries, 10), best_matches(queries, rows, 10)
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.indices, exact.indices, strict=True)])
    assert hits >= 0.88 and index.about.recall == pytest.approx(hits, abs=0.08)
    assert index.about.num_probed < index.about.num_cells / 2
    np.testing.assert_allclose(
        found.similarities, np.take_along_axis(queries @ rows.T, found.indices, axis=1), atol=1e-6
    )
    assert (found.indices[:, 0] == np.arange(len(rows))[5::9]).all()
    assert any(f"{index.about.recall:.1%} of the 10 best" in text for text in reporter.said)
    assert not list(gallery.parent.glob("*.tmp")) and not list(place_of(gallery).glob("block-*"))


def test_a_query_finds_the_same_alone_and_beside_others(gallery: Path) -> None:
    """Of few cells some hold too few rows; all cells are then read for that query only, and recall is told for each."""
    index, queries = opened(gallery), np.load(gallery)[::5]
    together = index.best_matches(queries, 8, 1).indices
    for number in range(len(queries)):
        assert index.best_matches(queries[number : number + 1], 8, 1).indices.tolist() == [together[number].tolist()]
    whole = index.best_matches(queries, 8, index.about.num_cells).indices
    is_whole = (together == whole).all(axis=1)
    assert is_whole.any() and not is_whole.all()


def test_a_list_file_cut_short_is_damaged(gallery: Path) -> None:
    opened(gallery)
    with (place_of(gallery) / "lists.ivfdata").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"damaged: lists\.ivfdata"):
        opened(gallery)


def test_of_two_that_build_at_once_one_index_stays(tmp_path: Path) -> None:
    place = tmp_path / "g.ivf"
    with search_index._new_folder(place) as slower:
        (slower / "about.json").write_text("slower")
        place.mkdir()
        (place / "about.json").write_text("quicker")
    assert (place / "about.json").read_text() == "quicker" and list(tmp_path.iterdir()) == [place]


def test_nothing_is_printed_beside_results(gallery: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """faiss tells of its files on the standard output of C, which Python does not see."""
    for _ in range(2):
        opened(gallery)
        ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == ""


def test_it_is_built_once(gallery: Path) -> None:
    first = opened(gallery).best_matches(np.load(gallery)[:7], 5)
    stamps = {path.name: path.stat().st_mtime_ns for path in place_of(gallery).iterdir()}
    assert stamps.keys() == {"index.faiss", "lists.ivfdata", "about.json"}
    again = opened(gallery).best_matches(np.load(gallery)[:7], 5)
    assert (again.indices == first.indices).all() and (again.similarities == first.similarities).all()
    assert stamps == {path.name: path.stat().st_mtime_ns for path in place_of(gallery).iterdir()}


def test_it_may_be_moved_with_its_features(gallery: Path, tmp_path: Path) -> None:
    opened(gallery)
    there = tmp_path / "elsewhere"
    there.mkdir()
    for path in list(tmp_path.glob("g.*")):
        path.rename(there / path.name)
    index = opened(there / "g.npy")
    assert index.best_matches(np.load(there / "g.npy")[:3], 1).indices[:, 0].tolist() == [0, 1, 2]


def test_more_matches_than_the_cells_hold(gallery: Path) -> None:
    rows = np.load(gallery)
    found = opened(gallery, 0.5).best_matches(rows[:2], 700)
    exact = best_matches(rows[:2], rows, 700)
    np.testing.assert_array_equal(found.indices, exact.indices)
    assert opened(gallery, 0.5).best_matches(rows[:2], 5000).indices.shape == (2, len(rows))


def test_what_is_refused(gallery: Path) -> None:
    index = opened(gallery)
    with pytest.raises(DataError, match="built for --recall 0.95, not 0.5"):
        opened(gallery, 0.5)
    with pytest.raises(DataError, match="the queries are 3 long"):
        index.best_matches(np.ones((1, 3), dtype=np.float32), 1)
    about = place_of(gallery) / "about.json"
    good = about.read_text()
    for bad, said in (
        (json.dumps(json.loads(good) | {"version": 99}), "another version"),
        ("{}", "no index of ccreid"),
        ("", "no index of ccreid"),
    ):
        about.write_text(bad)
        with pytest.raises(DataError, match=said) as caught:
            opened(gallery)
        assert f"rm -r {place_of(gallery)}" in str(caught.value.hint)
    about.write_text(good)
    (place_of(gallery) / "index.faiss").write_bytes(b"broken")
    with pytest.raises(DataError, match="is damaged"):
        opened(gallery)


def test_a_stale_one_is_refused(gallery: Path) -> None:
    opened(gallery)
    stamp = gallery.stat().st_mtime_ns
    np.save(gallery, np.load(gallery)[::-1])
    os.utime(gallery, ns=(stamp + 1000, stamp + 1000))
    with pytest.raises(DataError, match="is stale: .* has changed"):
        opened(gallery)


def test_a_failure_leaves_nothing(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_index, "_choose", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opened(gallery)
    assert {path.name for path in gallery.parent.iterdir()} == {"g.npy", "g.txt", "g.json"}


def test_features_that_are_no_numbers(gallery: Path) -> None:
    rows = np.load(gallery)
    rows[7, 3] = np.nan
    np.save(gallery, rows)
    with pytest.raises(DataError, match="first in row 7"):
        opened(gallery)
    assert not place_of(gallery).exists()


def test_only_features_have_an_index() -> None:
    check_index(None, "crops/", is_features=False)
    check_index("ivf", "g.npy", is_features=True)
    with pytest.raises(UsageError, match="crops/ are images"):
        check_index("ivf", "crops/", is_features=False)
    with pytest.raises(UsageError, match='"hnsw" is not known'):
        check_index("hnsw", "g.npy", is_features=True)
