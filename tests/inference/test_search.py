from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.inference import search
from ccreid_cli.inference.image_list import ImageList
from ccreid_cli.inference.search import SearchResults, best_matches, check_same_model, matches_as_json, search_sheet


def unit_rows(seed: int, count: int, dim: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def oracle(queries: NDArray[np.float32], gallery: NDArray[np.float32], top: int) -> list[list[int]]:
    """Sort everything, in double precision."""
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    return [sorted(range(len(gallery)), key=lambda i: (-row[i], i))[:top] for row in scores]


@pytest.fixture(params=["faiss", "faiss in parts", "numpy"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param.startswith("faiss"):
        pytest.importorskip("faiss")
        if request.param != "faiss":
            monkeypatch.setattr(search, "threads_per_process", lambda _: 9)
            monkeypatch.setattr(search, "_LEAST_ROWS", 2)
    else:
        monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(search, "_BLOCK_BYTES", 400)
    return str(request.param)


@pytest.mark.parametrize(("num_queries", "num_gallery", "top"), [(1, 300, 10), (25, 77, 5), (3, 4, 10), (2, 1, 1)])
def test_matches_are_those_of_a_full_sort(engine: str, num_queries: int, num_gallery: int, top: int) -> None:
    queries, gallery = unit_rows(0, num_queries, 16), unit_rows(1, num_gallery, 16)
    found = best_matches(queries, gallery, top)
    assert found.indices.tolist() == oracle(queries, gallery, top)
    expected = np.take_along_axis(queries @ gallery.T, found.indices, axis=1)
    np.testing.assert_allclose(found.similarities, expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 60), st.integers(1, 70), st.integers(0, 1000))
def test_both_engines_agree(num_queries: int, num_gallery: int, top: int, seed: int) -> None:
    pytest.importorskip("faiss")
    queries, gallery = unit_rows(seed, num_queries, 6), unit_rows(seed + 1, num_gallery, 6)
    count = min(top, num_gallery)
    ours, theirs = search._search_numpy(queries, gallery, count), search._search_faiss(queries, gallery, count)
    np.testing.assert_allclose(ours[0], np.sort(theirs[0])[:, ::-1], atol=1e-6)


def test_equal_similarities_keep_the_gallerys_order(engine: str) -> None:
    row = unit_rows(0, 1, 4)
    found = best_matches(row, np.repeat(row, 5, axis=0), 5)
    assert found.indices.tolist() == [[0, 1, 2, 3, 4]]
    assert found.similarities.max() <= 1


def test_a_memory_mapped_gallery_is_searched_in_place(engine: str, tmp_path: Path) -> None:
    gallery = unit_rows(1, 50, 8)
    np.save(tmp_path / "g.npy", gallery)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    assert best_matches(gallery[[7]], mapped, 1).indices.tolist() == [[7]]


def test_features_that_cannot_be_compared(engine: str) -> None:
    with pytest.raises(DataError, match="5 long"):
        best_matches(unit_rows(0, 1, 5), unit_rows(0, 9, 4), 3)
    with pytest.raises(DataError, match="0 x 4"):
        best_matches(unit_rows(0, 1, 4), unit_rows(0, 0, 4), 3)
    with pytest.raises(DataError, match="not numbers"):
        best_matches(np.full((1, 4), np.nan, np.float32), unit_rows(0, 9, 4), 3)


PREPROCESS = {"height": 256, "width": 128, "resize": "bicubic", "mean": [0.485], "std": [0.229], "precision": "fp32"}
OURS = {"model": "a" * 64, "source": "run1/last.pt", "preprocess": PREPROCESS}


def test_only_features_of_one_model_and_preprocessing_are_compared() -> None:
    path = Path("g.npz")
    check_same_model({**OURS, "source": "elsewhere", "preprocess": {**PREPROCESS, "precision": "bf16"}}, OURS, path)
    with pytest.raises(DataError) as caught:
        check_same_model({**OURS, "model": "b" * 64, "source": "run2/last.pt"}, OURS, path)
    assert all(part in caught.value.message for part in ("g.npz", "run1/last.pt", "run2/last.pt", "a" * 12, "b" * 12))
    with pytest.raises(DataError, match=r"height 224, width 224; .* height 256, width 128"):
        check_same_model({**OURS, "preprocess": {**PREPROCESS, "height": 224, "width": 224}}, OURS, path)


def test_json_form_has_ids_only_where_they_are_known() -> None:
    matches = SearchResults(np.array([[0.9, 0.5]], np.float32), np.array([[1, 0]]))
    plain = matches_as_json("q.jpg", 0, matches, ImageList(Path("/g"), ("a.jpg", "b.jpg")))
    assert plain["matches"][0] == {"rank": 1, "name": "b.jpg", "similarity": 0.9, "path": "/g/b.jpg"}
    known = ImageList(Path("/g"), ("a.jpg", "b.jpg"), ("0004", "0005"), ("a", ""))
    full = matches_as_json("q.jpg", 0, matches, known)
    assert (full["matches"][0]["id"], full["matches"][0]["camera"]) == ("0005", None)
    assert json.loads(json.dumps(full)) == full


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_sheet_shows_queries_matches_and_grey_for_what_is_gone(tmp_path: Path) -> None:
    listener = Listener()
    Image.new("RGB", (20, 40), (200, 0, 0)).save(tmp_path / "q.png")
    Image.new("RGB", (20, 40), (0, 200, 0)).save(tmp_path / "a.png")
    matches = [
        {"rank": rank, "similarity": 0.5, "path": str(tmp_path / name)}
        for rank, name in enumerate(("a.png", "gone.png"), start=1)
    ]
    query = {"query": str(tmp_path / "q.png"), "matches": matches}
    out = search_sheet([query, query], tmp_path / "new" / "sheet.png", reporter=listener)
    with Image.open(out) as sheet:
        step, middle = (sheet.width - 6) // 3, sheet.height // 4
        centres = [sheet.getpixel((6 + step * column + 30, middle)) for column in range(3)]
        again = sheet.getpixel((36, middle + sheet.height // 2))
    assert centres == [(200, 0, 0), (0, 200, 0), (225, 225, 225)] and again == (200, 0, 0)
    assert "1 image cannot be read" in listener.warnings[0] and "gone.png" in listener.warnings[0]


def test_a_row_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_BLOCK_BYTES", 400)
    rows = unit_rows(0, 50, 8)
    search.check_finite(rows, tmp_path / "g.npz")
    rows[37, 2] = np.nan
    with pytest.raises(DataError, match=r"g\.npz: features holds NaN or infinity, first in row 37"):
        search.check_finite(rows, tmp_path / "g.npz")
