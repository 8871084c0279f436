"""A trained network as a tool: any images in, unit features out. The Python interface of the package is here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.engine.checkpoint import digest
from ccreid_cli.engine.extraction import checked_batch_size, extract_features, prepared
from ccreid_cli.images.decoding import CHUNK, Broken, Decoder, Picture, decode, describe_broken, reason_of, to_pixels
from ccreid_cli.images.store import ImageStore
from ccreid_cli.inference.loading import LoadedModel, ModelRequest, Preprocessing, load_network
from ccreid_cli.machine.device import resolve_precision
from ccreid_cli.machine.distributed import Group
from ccreid_cli.models.placing import probe_precision
from ccreid_cli.models.reid_net import ReidNet
from ccreid_cli.transfer.remote import picture_at

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"
"""An image file, a Pillow image, or an (H, W, 3) uint8 RGB array."""

_WORTH_A_TRIAL = 2048
"""From so many images, timing both number formats first may save more than it costs."""


@dataclass(frozen=True, eq=False)
class EmbeddedFiles:
    """The features of image files.

    Attributes:
        features: (N, D) float32 unit rows of the files that could be read.
        kept: (N,) int64, which files they are.
        broken: (position, reason) of the other files.
    """

    features: NDArray[np.float32]
    kept: NDArray[np.int64]
    broken: Broken


class Embedder:
    """A trained network that turns images into features of unit length; their dot product is the cosine similarity.

    Made by `load_model`. One instance may be used by one thread at a time.

    Attributes:
        model: The network, in evaluation mode.
        device: Where it computes.
        precision: ``fp32`` or ``bf16``; features are float32 either way.
        preprocessing: How images are prepared.
        fingerprint: SHA-256 over the weights and the pooling: features with the same fingerprint can be compared.
        source: The checkpoint file, in words.
        loaded: The checkpoint as it was read.
    """

    def __init__(self, loaded: LoadedModel, preprocessing: Preprocessing, precision: str) -> None:
        self.loaded = loaded
        self.model: ReidNet = loaded.model
        self.device: torch.device = loaded.device
        self.source = loaded.source
        self.precision = precision
        self.preprocessing = preprocessing
        self.fingerprint: str = fingerprint_of(loaded.model)

    @cached_property
    def _network(self) -> nn.Module:
        return prepared(self.model, self.device, self.precision)

    @property
    def embedding_dim(self) -> int:
        """Length D of a feature."""
        return int(self.model.embedding_dim)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that images are resized to."""
        return self.preprocessing.height, self.preprocessing.width

    def about(self) -> dict[str, Any]:
        """Return what a feature file must say of the model, as plain JSON values."""
        preprocess = {**self.preprocessing.as_json(), "precision": self.precision}
        return {"model": self.fingerprint, "source": self.source, "preprocess": preprocess}

    def embed(self, images: Iterable[ImageLike] | ImageLike, *, batch_size: int | None = None) -> NDArray[np.float32]:
        """Turn images into features.

        Args:
            images: N image files, Pillow images or (H, W, 3) uint8 RGB arrays of any size, in any mixture, or one
                (N, H, W, 3) array. A single image counts as a list of one. A Pillow image is taken as its file is:
                turned by the EXIF orientation it carries, over white where it is transparent (`images.appearance`).
            batch_size: Images at once; by default what suits the device.

        Returns:
            (N, embedding_dim) float32, rows of length one, in the order of `images`.

        Raises:
            DataError: Images are missing, broken or of a kind that cannot be shown; the message names them.
            UsageError: Something is neither a path nor an image, or the batch size is less than 1.
        """
        items = _as_list(images)
        paths = [Path(item) for item in items if isinstance(item, str | os.PathLike)]
        if paths and len(paths) == len(items):
            found = self.embed_files(paths, batch_size=batch_size)
            if found.broken:
                raise DataError(describe_broken([str(item) for item in items], found.broken))
            return found.features
        rows = _Rows(self, len(items), batch_size)
        for position, item in enumerate(items):
            rows.add(self._pixels(position, item)[None])
        return rows.finish()

    def embed_files(
        self,
        paths: Sequence[Path | str],
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        reporter: Reporter | None = None,
    ) -> EmbeddedFiles:
        """Turn image files into features, going on after broken ones; only a few batches are in memory at a time.

        Args:
            paths: Image files, or addresses that fsspec reads.
            batch_size: Images at once; by default what suits the device.
            workers: Threads that decode; by default up to four.
            reporter: Where progress goes.
        """
        chunks = ([str(path) for path in paths[start : start + CHUNK]] for start in range(0, len(paths), CHUNK))
        return self.embed_stream(chunks, len(paths), batch_size=batch_size, workers=workers, reporter=reporter)

    def embed_stream(
        self,
        chunks: Iterable[Sequence[Picture]],
        expected: int = 0,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        reporter: Reporter | None = None,
    ) -> EmbeddedFiles:
        """Turn images that come a few at a time into features, as `embed_files`.

        Args:
            chunks: Files, addresses, or the contents of files.
            expected: How many images there are; 0 where that is not known.
            batch_size: Images at once; by default what suits the device.
            workers: Threads that decode; by default up to four.
            reporter: Where progress goes.
        """
        height, width = self.input_size
        threads = min(4 if workers is None else workers, os.cpu_count() or 1)
        reporter, resize = reporter or SilentReporter(), self.preprocessing.resize
        rows = _Rows(self, expected, batch_size)
        broken = Decoder((), height, width, threads, reporter, resize, picture_at).run_stream(chunks, rows.add)
        features = rows.finish()
        kept = np.arange(len(features) + len(broken), dtype=np.int64)
        return EmbeddedFiles(features, np.delete(kept, [position for position, _ in broken]), broken)

    def read_files(self, paths: Sequence[Path]) -> NDArray[np.uint8]:
        """Decode image files to (N, height, width, 3) uint8 of the input size.

        Raises:
            DataError: One cannot be read.
        """
        return np.stack([self._pixels(position, path) for position, path in enumerate(paths)])

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn (N, height, width, 3) uint8 images of the input size into (N, D) features, in one batch."""
        features = extract_features(
            self.model,
            ImageStore(np.require(pixels, requirements=["C", "W"])),
            device=self.device,
            precision=self.precision,
            batch_size=len(pixels),
            network=self._network,
        )
        rows: NDArray[np.float32] = features.own.cpu().numpy()
        return rows

    def _pixels(self, position: int, item: ImageLike) -> NDArray[np.uint8]:
        """Return one image as (height, width, 3) uint8, resized as files are."""
        height, width = self.input_size
        if isinstance(item, str | os.PathLike):
            try:
                return decode(os.fspath(item), height, width, self.preprocessing.resize)
            except Exception as error:  # Pillow's decoders raise nearly every type there is
                raise DataError(f"image {position}, {item}, cannot be read: {reason_of(error)}.") from error
        if isinstance(item, np.ndarray):
            if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
                raise UsageError(
                    f"image {position} is an array of {item.dtype} of shape {item.shape}.",
                    "An array must be (H, W, 3) uint8, RGB.",
                )
            item = Image.fromarray(item)
        if not isinstance(item, Image.Image):
            raise UsageError(
                f"image {position} is a {type(item).__name__}.", "Give paths, Pillow images or uint8 arrays."
            )
        try:
            return to_pixels(item, height, width, self.preprocessing.resize)
        except Exception as error:  # as above
            raise DataError(f"image {position} cannot be shown: {reason_of(error)}.") from error


class _Rows:
    """Collects decoded images until a batch is full, and the features of full batches."""

    def __init__(self, embedder: Embedder, capacity: int, batch_size: int | None) -> None:
        self.embedder = embedder
        self.batch_size = checked_batch_size(batch_size, embedder.device)
        self.features = np.empty((capacity, embedder.embedding_dim), dtype=np.float32)
        self.filled = 0
        self.waiting: list[NDArray[np.uint8]] = []
        self.num_waiting = 0

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Take (M, height, width, 3) more images."""
        while len(pixels):
            taken = pixels[: self.batch_size - self.num_waiting]
            pixels = pixels[len(taken) :]
            self.waiting.append(taken)
            self.num_waiting += len(taken)
            if self.num_waiting == self.batch_size:
                self._flush()

    def _flush(self) -> None:
        batch = self.waiting[0] if len(self.waiting) == 1 else np.concatenate(self.waiting)
        make_room(self.features, self.filled + len(batch))
        self.features[self.filled : self.filled + len(batch)] = self.embedder.embed_pixels(batch)
        self.filled += len(batch)
        self.waiting, self.num_waiting = [], 0

    def finish(self) -> NDArray[np.float32]:
        """Return the features of all images."""
        if self.waiting:
            self._flush()
        return self.features[: self.filled]


def make_room(rows: NDArray[Any], needed: int) -> None:
    """Let an array have `needed` rows, and room for more, where it has fewer."""
    if needed > len(rows):
        rows.resize((max(needed, 2 * len(rows)), *rows.shape[1:]), refcheck=False)


def _as_list(images: Iterable[ImageLike] | ImageLike) -> list[ImageLike]:
    if isinstance(images, str | os.PathLike | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        return [images]
    return list(images)


def fingerprint_of(model: ReidNet) -> str:
    """Return the SHA-256 of a network's weights and of its pooling, which average and maximum leave no trace of."""
    return digest({"pooling_type": model.spec.pooling_type, "state": model.state_dict()})


def open_embedder(
    request: ModelRequest,
    *,
    logs_dir: Path,
    device: str = "auto",
    precision: str = "auto",
    height: int | None = None,
    width: int | None = None,
    resize: str | None = None,
    num_images: int = 0,
    group: Group | None = None,
    reporter: Reporter | None = None,
) -> Embedder:
    """Load a network as the command line asks for it.

    Args:
        request: Which network.
        logs_dir: Folder of the runs.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        height: Input height; None for the one it was trained at.
        width: Input width, likewise.
        resize: How images are resized; None for what the checkpoint says.
        num_images: How many images are expected; for many, ``auto`` may try which number format is faster on a CPU.
        group: The processes that open it together: the first one's number format is that of all.
        reporter: Where messages go.

    Raises:
        UsageError: An option does not exist or contradicts the checkpoint.
        DataError: There is no such run or checkpoint, or it is damaged.
        DeviceError: The device cannot be used.
    """
    if precision not in {"auto", "fp32", "bf16"}:
        raise UsageError(f'precision "{precision}" is not known.', "Use auto, fp32 or bf16.")
    reporter = reporter or SilentReporter()
    loaded = load_network(request, logs_dir, device, reporter)
    preprocessing = Preprocessing.of(loaded, height=height, width=width, resize=resize, reporter=reporter)

    def settle() -> str:
        if num_images < _WORTH_A_TRIAL:
            return resolve_precision(precision, loaded.device)
        return probe_precision(precision, loaded.model, loaded.device, preprocessing.height, preprocessing.width)

    found = (group or Group()).on_main(settle)
    return Embedder(loaded, preprocessing, resolve_precision(found, loaded.device))  # it prepares each process's GPU


def load_model(
    path_or_run: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    logs_dir: str | os.PathLike[str] | None = None,
    checkpoint: str = "last",
    resize: str | None = None,
) -> Embedder:
    """Load a trained network to compute features with.

    Args:
        path_or_run: A run's name or folder, or a checkpoint file: ccreid's, the official code's, or safetensors.
        device: ``auto`` (the freest GPU, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 on a GPU that has it, else fp32.
        logs_dir: Folder where a run's name is looked for; by default ``$CCREID_LOGS_DIR``, else ``logs``.
        checkpoint: Which checkpoint of a run: ``last`` or ``best``.
        resize: How images are resized, as ``--resize``; None for what the checkpoint says.

    Returns:
        The network, ready for `Embedder.embed`.

    Raises:
        DataError: There is no such run or file, or it is damaged (`CheckpointError`).
        UsageError: `device`, `precision`, `checkpoint` or `resize` is not known.
        DeviceError: The device cannot be used.
    """
    if checkpoint not in {"last", "best"}:
        raise UsageError(f'checkpoint "{checkpoint}" is not known.', "Use last or best.")
    folder = Path(logs_dir or os.environ.get("CCREID_LOGS_DIR") or "logs")
    request = ModelRequest(resume=os.fspath(path_or_run), checkpoint=checkpoint)
    return open_embedder(request, logs_dir=folder, device=device, precision=precision, resize=resize)
