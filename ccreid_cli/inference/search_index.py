"""An index beside a feature file: searches that read a few of its rows from disk, not all (IVF, of faiss).

The index is a folder: `index.faiss` (the cells), `lists.ivfdata` (the rows of each cell in half precision, mapped into
memory) and `about.json`. It appears whole or not at all. What it proposes is compared again with the features.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.inference.embedding_file import EmbeddingFile
from ccreid_cli.inference.feature_rows import Rows
from ccreid_cli.inference.search import SearchResults, best_matches, check_finite, ordered
from ccreid_cli.inference.shard_index import INDEX

_VERSION = 1
_LISTS = "lists.ivfdata"
_BLOCK_BYTES = 512 << 20
_POINTS_PER_CELL = 64
_CELLS_PER_ROOT = 4
_MEASURED = 400
_TOP = 10
"""Matches whose recall is chosen and measured."""
_PROPOSED = 4
"""Candidates per match wanted, which the exact similarities then decide about."""


@dataclass(frozen=True)
class AboutIndex:
    """What an index says of itself.

    Attributes:
        features: Fingerprint of the features that it is of.
        num_probed: Cells that a search reads.
        num_cells: Of how many.
        wanted: The recall that was asked for.
        recall: Share of the ten best matches that are found, measured on rows on which nothing was chosen.
        list_bytes: Size of the file with the rows of the cells.
        version: Of the folder's form.
    """

    features: str
    num_probed: int
    num_cells: int
    wanted: float
    recall: float
    list_bytes: int = 0
    version: int = _VERSION


class SearchIndex:
    """An index that was opened.

    Args:
        index: faiss's.
        about: What is known of it.
        features: The rows it is of, (N, D), on disk.
    """

    def __init__(self, index: Any, about: AboutIndex, features: Rows) -> None:
        self._index, self.about, self._features = index, about, features

    def best_matches(self, queries: NDArray[np.float32], top: int, num_probed: int | None = None) -> SearchResults:
        """As `search.best_matches`, among the rows of the cells nearest to each query; may be fewer than `top`.

        Args:
            queries: (Q, D) unit rows.
            top: How many to find.
            num_probed: Cells to read; None for those of the wanted recall. All are read for a query of which these
                hold too few rows.

        Raises:
            DataError: The queries have another length than the features.
        """
        import faiss

        if queries.shape[1] != self._features.shape[1]:
            raise DataError(
                f"the index is of features {self._features.shape[1]} long, but the queries are {queries.shape[1]} long."
            )
        count = min(top, len(self._features))
        rows = np.ascontiguousarray(queries, dtype=np.float32)
        parameters: Any = faiss.SearchParametersIVF()
        wanted = min(_PROPOSED * count, len(self._features))
        parameters.nprobe = num_probed or self.about.num_probed
        found = self._index.search(rows, wanted, params=parameters)[1]
        lacking = (found >= 0).sum(1) < count
        if lacking.any():
            parameters.nprobe = self.about.num_cells
            found[lacking] = self._index.search(rows[lacking], wanted, params=parameters)[1]
        similarities = np.full(found.shape, -np.inf, dtype=np.float32)
        for query, columns in enumerate(found):
            valid = columns >= 0
            similarities[query, valid] = self._features[columns[valid]] @ rows[query]
        return ordered(similarities, found, count)


def check_index(name: str | None, gallery: str, *, is_features: bool) -> None:
    """Refuse, before any work is done, an index that there cannot be.

    Args:
        name: What ``--index`` says; None for none.
        gallery: The gallery as the user names it.
        is_features: Whether it is a file or folder of features.

    Raises:
        UsageError: The name is not known, or the gallery is none of features.
    """
    if name not in {None, "ivf"}:
        raise UsageError(f'--index "{name}" is not known.', "The only one is ivf.")
    if name and not is_features:
        raise UsageError(f"--index is for features, and {gallery} are images.", "Extract them first: `ccreid extract`.")


def place_of(gallery: Path) -> Path:
    """Return where the index of a feature file or folder is: beside it."""
    return gallery.with_name(gallery.name + ".ivf")


def open_index(gallery: Path, content: EmbeddingFile, recall: float, reporter: Reporter) -> SearchIndex:
    """Open the index of a gallery; build it where there is none.

    Args:
        gallery: The file or folder of the features.
        content: What it holds.
        recall: The recall to build it for.
        reporter: Told what is built, and the recall.

    Raises:
        DataError: There is an index, but of other features or for another recall; or it is damaged.
    """
    import faiss

    place, features = place_of(gallery), _fingerprint(gallery, content)
    if not place.exists():
        start = time.perf_counter()
        with reporter.task("building the index", 0), _without_faiss_output():
            about = _build(place, content.features, features, recall, gallery)
        reporter.message(f"index: {place} ({time.perf_counter() - start:.0f} s)")
    else:
        about = _read_about(place)
        _check(about, features, recall, place, gallery)
    lists = place / _LISTS
    if not lists.is_file() or lists.stat().st_size != about.list_bytes:
        raise DataError(
            f"{place} is damaged: {_LISTS} is shorter or longer than when it was built.", _REMOVE.format(place)
        )
    try:
        with _without_faiss_output():
            flags = faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR
            index = faiss.read_index(str(place / "index.faiss"), flags)
    except RuntimeError as error:
        raise DataError(f"{place} is damaged: it cannot be read.", _REMOVE.format(place)) from error
    reporter.message(
        f"index: {about.recall:.1%} of the {_TOP} best matches found, reading {about.num_probed} of "
        f"{about.num_cells} cells"
    )
    return SearchIndex(index, about, content.features)


_REMOVE = "Remove it (rm -r {}); the next search builds it again."


def _read_about(place: Path) -> AboutIndex:
    try:
        about = AboutIndex(**json.loads((place / "about.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{place} is no index of ccreid, or a damaged one.", _REMOVE.format(place)) from error
    if about.version != _VERSION:
        raise DataError(f"{place} is of another version of ccreid.", _REMOVE.format(place))
    return about


def _check(about: AboutIndex, features: str, recall: float, place: Path, gallery: Path) -> None:
    if about.features != features:
        raise DataError(f"{place} is stale: {gallery} has changed since it was built.", _REMOVE.format(place))
    if about.wanted != recall:
        raise DataError(f"{place} was built for --recall {about.wanted:g}, not {recall:g}.", _REMOVE.format(place))


def _fingerprint(gallery: Path, content: EmbeddingFile) -> str:
    """Sum up which features these are: their files' sizes and times of change, number, width and model."""
    files = [gallery / INDEX, *sorted(gallery.glob("[0-9]*.npz"))] if gallery.is_dir() else [gallery]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    known = [stats, list(content.features.shape), content.about.get("model")]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _build(place: Path, rows: Rows, features: str, recall: float, gallery: Path) -> AboutIndex:
    """Build an index in a folder beside its place, choose how much a search reads, and put it into place."""
    import faiss

    check_finite(rows, gallery)
    num_cells = max(1, min(round(_CELLS_PER_ROOT * math.sqrt(len(rows))), len(rows)))
    random = np.random.default_rng(1)
    chosen = np.sort(random.choice(len(rows), min(len(rows), num_cells * _POINTS_PER_CELL), replace=False))
    dim = rows.shape[1]
    kind = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dim), dim, num_cells, *kind)
    index.cp.spherical, index.cp.seed, index.cp.min_points_per_centroid = True, 1, 1
    index.train(rows[chosen])
    with _new_folder(place) as folder:
        _fill(index, rows, folder)
        faiss.write_index(index, str(folder / "index.faiss"))
        whole = SearchIndex(index, AboutIndex(features, num_cells, num_cells, recall, 1.0), rows)
        sample = np.sort(random.choice(len(rows), min(len(rows), _MEASURED), replace=False))
        probed, measured = _choose(whole, rows, sample, recall)
        about = AboutIndex(features, probed, num_cells, recall, measured, (folder / _LISTS).stat().st_size)
        (folder / "about.json").write_text(json.dumps(asdict(about)) + "\n", encoding="utf-8")
    return about


def _fill(index: Any, rows: Rows, folder: Path) -> None:
    """Add rows a block at a time, each to a file of its own, and merge the files list by list into the one on disk."""
    import faiss
    from faiss.contrib.ondisk import merge_ondisk

    step = max(1, _BLOCK_BYTES // (4 * rows.shape[1]))
    blocks = []
    for first in range(0, len(rows), step):
        part = faiss.clone_index(index)
        block = np.ascontiguousarray(rows[first : first + step])
        part.add_with_ids(block, np.arange(first, first + len(block)))
        blocks.append(folder / f"block-{first}")
        faiss.write_index(part, str(blocks[-1]))
    merge_ondisk(index, [str(path) for path in blocks], str(folder / _LISTS))
    for path in blocks:
        path.unlink()


def _choose(index: SearchIndex, rows: Rows, sample: NDArray[np.int64], wanted: float) -> tuple[int, float]:
    """Return how many cells to read, twice as many at a time, and the recall that gives on other rows."""
    known, fresh = sample[::2], sample[1::2] if len(sample) > 1 else sample
    probed = 1
    exact = best_matches(np.asarray(rows[known]), rows, _TOP)
    while probed < index.about.num_cells and _recall(index, rows[known], exact, probed) < wanted:
        probed = min(2 * probed, index.about.num_cells)
    return probed, _recall(index, rows[fresh], best_matches(np.asarray(rows[fresh]), rows, _TOP), probed)


def _recall(index: SearchIndex, queries: NDArray[np.float32], exact: SearchResults, probed: int) -> float:
    """Share of the exact matches as near as which there are matches; the row itself, always found, is left out."""
    count = exact.similarities.shape[1]
    found = index.best_matches(queries, count, probed).similarities
    hits = (found >= exact.similarities[:, -1:] - 1e-6).sum(1) - 1
    return float(hits.clip(0).mean() / max(1, count - 1)) if count > 1 else 1.0


@contextmanager
def _without_faiss_output() -> Iterator[None]:
    """Keep what faiss prints about its files out of the standard output, where a program may expect JSON."""
    c_library = ctypes.CDLL(None)
    sys.stdout.flush()
    c_library.fflush(None)
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        c_library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _new_folder(place: Path) -> Iterator[Path]:
    """Give a temporary folder that takes its place at the end, and is removed where the block fails."""
    folder = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
        try:
            folder.rename(place)
        except OSError:
            if not (place / "about.json").is_file():  # else another search was quicker, and built the same
                raise
    except OSError as error:
        raise DataError(f"could not write {place}: {error.strerror or error}.", "Free some space there.") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
