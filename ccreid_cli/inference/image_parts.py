"""Images cut into parts, each of which becomes one shard of features."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.core.errors import DataError, UsageError
from ccreid_cli.core.files import digest_of
from ccreid_cli.core.names import UNKNOWN, name_of
from ccreid_cli.core.packed_texts import PackedTexts
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.data.columns import parse_columns
from ccreid_cli.data.image_files import is_image
from ccreid_cli.images.decoding import CHUNK
from ccreid_cli.inference.embedder import Embedder
from ccreid_cli.inference.image_list import ImageList, list_sources
from ccreid_cli.transfer.remote import is_remote, open_file
from ccreid_cli.transfer.tar_pictures import Entry, entries_of

_NO_FEATURES = np.empty((0, 0), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Shard:
    """What a part of the images gives.

    Attributes:
        features: (M, D) float32 unit rows.
        images: The M images.
        broken: Position in the part, name and reason of the others.
        num_images: How many there are with those.
    """

    features: NDArray[np.float32]
    images: ImageList
    broken: Sequence[tuple[int, str, str]]
    num_images: int

    @property
    def num_kept(self) -> int:
        """M."""
        return self.num_images - len(self.broken)

    @property
    def kept(self) -> NDArray[np.int64]:
        """Positions in the part of the images that could be read, (M,)."""
        return np.delete(np.arange(self.num_images, dtype=np.int64), [position for position, _, _ in self.broken])

    def without_features(self) -> Shard:
        """Return it without its features."""
        return replace(self, features=_NO_FEATURES)

    @classmethod
    def of(cls, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> Shard:
        """Return a shard as a file describes it; without features and names where its arrays are not wanted."""
        broken = [(int(position), str(name), str(reason)) for position, name, reason in about["broken"]]
        features, names = _NO_FEATURES, ()
        ids = cams = None
        if arrays is not None:
            features, names = arrays["features"], tuple(arrays["names"].tolist())
            ids, cams = (tuple(arrays[key].tolist()) if key in arrays else None for key in ("ids", "cams"))
        return cls(features, ImageList(Path(about["root"]), names, ids, cams), broken, int(about["num_images"]))


class Parts(Protocol):
    """Images cut into parts: the same for every process and in every attempt."""

    @property
    def source(self) -> str:
        """What the images are called in messages."""

    @property
    def num_images(self) -> int:
        """How many there are; 0 where nobody knows yet."""

    def __len__(self) -> int:
        """How many parts there are."""

    def about(self) -> dict[str, Any]:
        """Return what identifies the images and how they are cut, as entries of a `ShardIndex`."""

    def state(self, number: int) -> str:
        """Return a digest of the files of a part as they are now."""

    def compute(
        self, number: int, embedder: Embedder, batch_size: int | None, workers: int | None, reporter: Reporter
    ) -> Shard:
        """Turn a part into a shard."""

    def join(self, shards: Sequence[Shard]) -> ImageList:
        """Return the images of all shards, which are those of all parts in order."""


@dataclass(frozen=True, eq=False)
class ListParts:
    """A list of image files cut into parts of `size` images."""

    images: ImageList
    size: int

    @property
    def source(self) -> str:
        """As `Parts.source`."""
        return str(self.images.root)

    @property
    def num_images(self) -> int:
        """As `Parts.num_images`."""
        return len(self.images)

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def about(self) -> dict[str, Any]:
        """As `Parts.about`."""
        return {
            "root": str(self.images.root.absolute()),
            "images": self.images.digest(),
            "num_images": len(self.images),
            "shard_size": self.size,
        }

    def state(self, number: int) -> str:
        """As `Parts.state`: size and time of change of each file."""
        return digest_of(_state_of(path) for path in self._paths(number))

    def compute(
        self, number: int, embedder: Embedder, batch_size: int | None, workers: int | None, reporter: Reporter
    ) -> Shard:
        """As `Parts.compute`."""
        paths, start = self._paths(number), number * self.size
        found = embedder.embed_files(paths, batch_size=batch_size, workers=workers, reporter=reporter)
        broken = [(position, self.images.names[start + position], reason) for position, reason in found.broken]
        return Shard(found.features, self.images.select(found.kept + start), broken, len(paths))

    def join(self, shards: Sequence[Shard]) -> ImageList:
        """As `Parts.join`."""
        if not shards:
            return self.images.select(np.empty(0, dtype=np.int64))
        kept = [shard.kept + number * self.size for number, shard in enumerate(shards)]
        return self.images.select(np.concatenate(kept))

    def _paths(self, number: int) -> list[str]:
        start = number * self.size
        return self.images.files(start, min(start + self.size, len(self.images)))


@dataclass(frozen=True, eq=False)
class TarParts:
    """Tar files of pictures, each of which is a part (see `transfer.tar_pictures`).

    Args:
        tars: Paths or addresses.
        columns: What the labels beside the pictures call identity and camera, as ``--columns``.
    """

    tars: Sequence[str]
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """As `Parts.source`."""
        return self.tars[0] + (f" to {self.tars[-1]}" if len(self.tars) > 1 else "")

    @property
    def num_images(self) -> int:
        """As `Parts.num_images`."""
        return 0

    def __len__(self) -> int:
        return len(self.tars)

    def about(self) -> dict[str, Any]:
        """As `Parts.about`."""
        listed = digest_of([*self.tars, *map("=".join, sorted(self.columns.items()))])
        return {"root": str(Path().absolute()), "images": listed, "num_images": 0, "shard_size": 0}

    def state(self, number: int) -> str:
        """As `Parts.state`: of a remote tar nothing is asked."""
        return digest_of([self.tars[number] if is_remote(self.tars[number]) else _state_of(self.tars[number])])

    def compute(
        self, number: int, embedder: Embedder, batch_size: int | None, workers: int | None, reporter: Reporter
    ) -> Shard:
        """As `Parts.compute`.

        Raises:
            DataError: The tar is damaged or cut off.
            NetworkError: It cannot be read from where it is.
        """
        tar = self.tars[number]
        seen = _Seen()
        with open_file(tar) as file:
            chunks = seen.pictures(entries_of(file, tar, is_image))
            found = embedder.embed_stream(chunks, batch_size=batch_size, workers=workers, reporter=reporter)
        reasons = dict(seen.refused) | {seen.places[position]: reason for position, reason in found.broken}
        broken = [(place, f"{tar}/{seen.entries[place].name}", reasons[place]) for place in sorted(reasons)]
        kept = [entry for place, entry in enumerate(seen.entries) if place not in reasons]
        ids, cams = (
            tuple([_label(seen.labels.get(entry.key, {}), self.columns.get(field, field)) for entry in kept])
            for field in ("id", "camera")
        )
        names = tuple([f"{tar}/{entry.name}" for entry in kept])
        images = ImageList(Path(), names, ids if any(ids) else None, cams if any(cams) else None)
        return Shard(found.features, images, broken, len(seen.entries))

    def join(self, shards: Sequence[Shard]) -> ImageList:
        """As `Parts.join`."""

        def column(name: str) -> PackedTexts | None:
            parts = [(getattr(shard.images, name), len(shard.images)) for shard in shards]
            if all(part is None for part, _ in parts):
                return None
            return PackedTexts.of(text for part, count in parts for text in (part or (UNKNOWN,) * count))

        return ImageList(Path(), column("names") or (), column("ids"), column("cams"))


class _Seen:
    """What has been read of a tar: its pictures (without their content) in order, and the labels beside them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.places: list[int] = []
        self.refused: list[tuple[int, str]] = []
        self.labels: dict[str, Mapping[str, object]] = {}

    def pictures(self, entries: Iterable[Entry]) -> Iterator[list[bytes]]:
        """Yield the pictures a few at a time, and note everything else."""
        chunk: list[bytes] = []
        for entry in entries:
            if entry.labels is not None:
                self.labels[entry.key] = {**self.labels.get(entry.key, {}), **entry.labels}
                continue
            self.entries.append(replace(entry, data=b""))
            if entry.problem:
                self.refused.append((len(self.entries) - 1, entry.problem))
                continue
            self.places.append(len(self.entries) - 1)
            chunk.append(entry.data)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


def parts_of(
    sources: Sequence[str],
    split: str | None,
    data_dir: Path,
    reporter: Reporter,
    *,
    size: int | None = None,
    usual_size: int,
    columns: str | None = None,
) -> Parts:
    """Cut what a command line names into parts.

    Args:
        sources: Tar files, any number of them, or what `list_sources` takes.
        split: As for `list_sources`, likewise the arguments that follow.
        data_dir: The data directory.
        reporter: Told what was taken for what.
        size: Images in a part, where the user says it.
        usual_size: The same where not.
        columns: As ``--columns``; of tars, what the labels beside the pictures call identity and camera.

    Raises:
        UsageError: Tars are mixed with others, or given a split or a size.
        DataError: There is nothing there.
    """
    expanded = [name for source in sources for name in expand_braces(source)]
    if not any(map(is_tar, expanded)):
        return ListParts(list_sources(sources, split, data_dir, reporter, columns=columns), size or usual_size)
    other = next((name for name in expanded if not is_tar(name)), None)
    if other is not None:
        raise UsageError(f"{other} is no tar, as others are.", "Name tars only, or one folder, list or dataset.")
    if split or size:
        raise UsageError("a tar has no splits, and is one shard.", "Leave --split and --shard-size out.")
    absent = next((name for name in expanded if not is_remote(name) and not Path(name).is_file()), None)
    if absent is not None:
        raise DataError(f"{absent} does not exist.", "Nothing was extracted yet.")
    return TarParts(expanded, parse_columns(columns))


def is_tar(source: str) -> bool:
    """Whether a source is a tar of pictures: by its name."""
    return source.lower().endswith(".tar")


def expand_braces(source: str) -> list[str]:
    """Return the names that ``shards/{000000..000099}.tar`` stands for, as a shell does; of others, themselves."""
    found = re.fullmatch(r"(.*?)\{(\d+)\.\.(\d+)\}(.*)", source, re.DOTALL)
    if not found:
        return [source]
    before, first, last, after = found.groups()
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    numbers = range(int(first), int(last) + 1)
    return [name for number in numbers for name in expand_braces(f"{before}{number:0{width}d}{after}")]


def _label(labels: Mapping[str, object], column: str) -> str:
    """Return an identity or camera that stands beside a picture; none where it is no name."""
    try:
        return name_of(labels.get(column))
    except ValueError:
        return UNKNOWN


def _state_of(path: str) -> str:
    try:
        status = Path(path).stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
