"""The features of the images of a CSV: from a file, from an earlier start, or computed now and kept beside the CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.core.side_tasks import side_task
from ccreid_cli.images.decoding import describe_broken
from ccreid_cli.inference.embedding_file import EmbeddingFile, read_embeddings, write_embeddings
from ccreid_cli.inference.image_list import ImageList
from ccreid_cli.review.table import IdentityTable

if TYPE_CHECKING:
    from ccreid_cli.inference.embedder import Embedder

SUFFIX = ".features.npz"


def features_from(file: Path, table: IdentityTable) -> NDArray[np.float32]:
    """Return the feature of each image of the table, from a feature file of any of the three forms.

    Args:
        file: What `ccreid extract` wrote; its names are those of the table, or lead to the same files. A file of
            another program has a row for each line of the table, in its order.
        table: N images.

    Returns:
        (N, D) float32 unit rows.

    Raises:
        DataError: An image has no feature.
    """
    content = read_embeddings(file)
    if not content.about and len(content) == len(table):
        return content.matrix
    rows = {name: row for row, name in enumerate(content.images.names)}
    by_file = {path.absolute(): row for row, path in enumerate(content.images.paths)}
    found = [rows.get(name, by_file.get(path.absolute())) for name, path in zip(table.images, table.files, strict=True)]
    absent = [name for name, row in zip(table.images, found, strict=True) if row is None]
    if absent:
        raise DataError(
            f"{file} has no feature for {len(absent):,} of {len(found):,} images, the first {absent[0]}.",
            "Leave --features out and name the run with --resume.",
        )
    return content.features[np.array(found, dtype=np.int64)]


def features_of(
    table: IdentityTable,
    embedder: Callable[[], Embedder] | None,
    *,
    workers: int | None,
    batch_size: int | None,
    reporter: Reporter,
) -> NDArray[np.float32]:
    """Return the feature of each image of the table: those kept beside it where they fit, else computed and kept.

    Args:
        table: N images.
        embedder: Opens the network; None where none is named, and the kept ones must do.
        workers: Threads that decode.
        batch_size: Images at once.
        reporter: Told of images that cannot be read; their features are zero.

    Returns:
        (N, D) float32 unit rows.

    Raises:
        UsageError: No network is named, and no features are kept that fit.
        DataError: No image can be read.
    """
    kept = _kept(table)
    if embedder is None:
        if kept is None:
            raise UsageError(
                "no trained model is named.", "Name a run with --resume, or a feature file with --features."
            )
        return kept.matrix
    network = embedder()
    if kept is not None and all(kept.about.get(key) == network.about()[key] for key in ("model", "preprocess")):
        return kept.matrix
    found = network.embed_files(table.files, batch_size=batch_size, workers=workers, reporter=reporter)
    if found.broken:
        text = describe_broken(table.images, found.broken)
        if not len(found.kept):
            raise DataError(f"{table.path}: {text}", "Paths are relative to the folder of this file.")
        reporter.warning(f"{table.path}: {text} They are shown grey, and no question is made from them.")
    features = np.zeros((len(table), network.embedding_dim), dtype=np.float32)
    features[found.kept] = found.features
    with side_task("the features were not kept for the next start", reporter):
        images = ImageList(table.path.parent, tuple(table.images))
        write_embeddings(_file_beside(table), EmbeddingFile(features, images, network.about()))
    return features


def _kept(table: IdentityTable) -> EmbeddingFile | None:
    """Return the features of an earlier start, where they are of these images."""
    file = _file_beside(table)
    if not file.exists():
        return None
    try:
        content = read_embeddings(file)
    except DataError:
        return None
    return content if list(content.images.names) == table.images else None


def _file_beside(table: IdentityTable) -> Path:
    return table.path.with_name(table.path.name + SUFFIX)
