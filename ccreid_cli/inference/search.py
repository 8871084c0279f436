"""Search: the gallery images most similar to a query, by exact cosine similarity over any number of features."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.core.words import plural
from ccreid_cli.images.sheet import Cell, check_sheet, draw_sheet, save_sheet
from ccreid_cli.inference.embedder import Embedder
from ccreid_cli.inference.embedding_file import EmbeddingFile, read_embeddings
from ccreid_cli.inference.feature_rows import Rows
from ccreid_cli.inference.image_list import ImageList
from ccreid_cli.machine.ranks import threads_per_process

_BLOCK_BYTES = 256 << 20
_LEAST_ROWS = 10_000
"""Of a gallery, for a thread of its own."""
_COMPARED = ("height", "width", "resize", "mean", "std")
"""What of the preprocessing must agree. The number format may differ: features are float32 and all but the same."""


@dataclass(frozen=True, eq=False)
class SearchResults:
    """The best matches of Q queries.

    Attributes:
        similarities: (Q, K) float32 cosines, descending.
        indices: (Q, K) int64 rows of the gallery; equal similarities in the gallery's order.
    """

    similarities: NDArray[np.float32]
    indices: NDArray[np.int64]


def best_matches(queries: NDArray[np.float32], gallery: Rows, top: int) -> SearchResults:
    """Find the gallery rows most similar to each query, without a copy of the gallery.

    faiss compares, exactly (its ``IndexFlatIP`` without the copy); NumPy where faiss is not installed.

    Args:
        queries: (Q, D) unit rows.
        gallery: (N, D) unit rows, in RAM or on disk.
        top: How many to find, at least 1; a smaller gallery gives all it has.

    Raises:
        DataError: The rows differ in length, or the gallery is empty or holds values that are not numbers.
    """
    if queries.shape[1] != gallery.shape[1] or not len(gallery):
        raise DataError(
            f"the gallery is {gallery.shape[0]} x {gallery.shape[1]}, but the queries are {queries.shape[1]} long.",
            "Extract the gallery with the same model.",
        )
    count = min(top, len(gallery))
    search = _search_faiss if importlib.util.find_spec("faiss") else _search_numpy
    similarities, indices = search(np.ascontiguousarray(queries), gallery, count)
    if not np.isfinite(similarities).all() or (indices < 0).any():
        raise DataError("the features hold values that are not numbers.", "Extract them again.")
    return ordered(similarities, indices, count)


def ordered(similarities: NDArray[np.float32], indices: NDArray[np.int64], count: int) -> SearchResults:
    """Return the best `count` of some matches (Q, M): by similarity, equal ones in the gallery's order."""
    order = np.lexsort((indices, -similarities))[:, :count]
    return SearchResults(
        np.clip(np.take_along_axis(similarities, order, 1), -1, 1), np.take_along_axis(indices, order, 1)
    )


def _search_faiss(
    queries: NDArray[np.float32], gallery: Rows, count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import faiss

    def search(start: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows = gallery[start : start + size]
        scores, found = faiss.knn(queries, rows, min(count, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        return scores, np.where(found < 0, found, found + start)

    # faiss gives each of a few queries to one thread. So that one query has all of them, the gallery is cut up.
    parts = max(1, threads_per_process(1) // len(queries))
    size = max(_LEAST_ROWS, min(-(-len(gallery) // parts), _BLOCK_BYTES // (4 * gallery.shape[1])))
    starts = range(0, len(gallery), size)
    if len(starts) == 1:
        return search(0)
    with ThreadPoolExecutor(parts, "search") as pool:
        found = list(pool.map(search, starts))
    scores, indices = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(indices, best, 1)


def _search_numpy(
    queries: NDArray[np.float32], gallery: Rows, count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rows = max(1, _BLOCK_BYTES // (4 * len(queries)))
    best = np.empty((len(queries), 0), dtype=np.float32)
    indices = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(gallery), rows):
        scores = queries @ gallery[start : start + rows].T
        best = np.concatenate([best, scores], axis=1)
        here = np.arange(start, start + scores.shape[1], dtype=np.int64)
        indices = np.concatenate([indices, np.broadcast_to(here, scores.shape)], axis=1)
        # Sorting is stable, so of equal similarities the earlier rows stay.
        kept = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best, indices = np.take_along_axis(best, kept, 1), np.take_along_axis(indices, kept, 1)
    return best, indices


def open_gallery(path: Path, embedder: Embedder, reporter: Reporter, *, all_rows: bool = True) -> EmbeddingFile:
    """Read a gallery's feature file and check that `embedder` made it, or a model like it.

    Args:
        path: The file.
        embedder: The query's.
        reporter: Told when the file does not say which model made it.
        all_rows: Check every value; False where an index was built, which did.

    Raises:
        DataError: The file is damaged, or its features are of another model or other preprocessing.
    """
    gallery = read_embeddings(path)
    if all_rows:
        check_finite(gallery.features, path)
    if gallery.about:
        check_same_model(gallery.about, embedder.about(), path)
    else:
        reporter.warning(f"{path} does not say which model made it; it must be {embedder.source}.")
    if gallery.features.shape[1] != embedder.embedding_dim:
        raise DataError(
            f"{path} holds features of length {gallery.features.shape[1]}; {embedder.source} gives "
            f"{embedder.embedding_dim}.",
            "Extract the gallery with the same model: `ccreid extract`.",
        )
    return gallery


def check_finite(features: Rows, path: Path) -> None:
    """Raise a DataError that names the first row with a value that is no number: a search would pass it over."""
    ones = np.ones(features.shape[1], dtype=np.float32)
    rows = max(1, _BLOCK_BYTES // (4 * max(1, features.shape[1])))
    for start in range(0, len(features), rows):
        bad = ~np.isfinite(features[start : start + rows] @ ones)  # a sum is as finite as its terms
        if bad.any():
            row = start + int(bad.argmax())
            raise DataError(f"{path}: features holds NaN or infinity, first in row {row}.", "Extract them again.")


def check_same_model(gallery: Mapping[str, Any], query: Mapping[str, Any], path: Path) -> None:
    """Raise a DataError, naming both sides, unless features of the two can be compared.

    Args:
        gallery: What the file says of its features (see `Embedder.about`).
        query: The same of the query's.
        path: The file, for the message.
    """
    hint = f"Extract it again with this model: `ccreid extract FOLDER --resume {query['source']} -o {path} --force`."
    if gallery.get("model") != query["model"]:
        raise DataError(f"{path} was made by another model: {_model(gallery)}; the query's is {_model(query)}.", hint)
    there, here = gallery.get("preprocess") or {}, query["preprocess"]
    wrong = [name for name in _COMPARED if there.get(name) != here[name]]
    if wrong:
        sides = (", ".join(f"{name} {side.get(name)}" for name in wrong) for side in (there, here))
        raise DataError("{} was made with {}; the query with {}.".format(path, *sides), hint)


def _model(about: Mapping[str, Any]) -> str:
    return f"{about.get('source', 'unknown')} ({str(about.get('model'))[:12]})"


def matches_as_json(query: str, row: int, matches: SearchResults, images: ImageList) -> dict[str, Any]:
    """Return one query's matches as plain JSON values.

    Args:
        query: The query image.
        row: Which query it is.
        matches: The matches of all queries.
        images: The gallery.
    """
    found = []
    pairs = zip(matches.indices[row].tolist(), matches.similarities[row].tolist(), strict=True)
    for rank, (index, similarity) in enumerate(pairs, start=1):
        match = {"rank": rank, "name": images.names[index], "similarity": round(similarity, 6)}
        match["path"] = images.files(index, index + 1)[0]
        if images.ids is not None and images.cams is not None:
            match |= {"id": images.ids[index] or None, "camera": images.cams[index] or None}
        found.append(match)
    return {"query": query, "matches": found}


def search_sheet(found: Sequence[Mapping[str, Any]], out: Path, *, reporter: Reporter | None = None) -> Path:
    """Draw one row per query: the query, framed, then its matches. A picture that cannot be read is a grey box.

    Args:
        found: What `matches_as_json` returns for each of the queries, at least one.
        out: A .png, .jpg or .webp file.
        reporter: Told of pictures that cannot be read.

    Returns:
        `out`.

    Raises:
        UsageError: `out` has another ending.
        DataError: `out` cannot be written, or there are too many rows or columns for one picture.
    """
    check_sheet(out)
    rows = [
        [
            Cell(Path(query["query"]), "query", framed=True),
            *(Cell(Path(match["path"]), f"{match['rank']}: {match['similarity']:.3f}") for match in query["matches"]),
        ]
        for query in found
    ]
    sheet, unread = draw_sheet(rows, cell_height=160)
    if unread:
        text = f"{plural(len(unread), 'image')} cannot be read and {'is' if len(unread) == 1 else 'are'} left grey"
        (reporter or SilentReporter()).warning(f"{out}: {text}; the first is {next(iter(unread))}.")
    return save_sheet(sheet, out)
