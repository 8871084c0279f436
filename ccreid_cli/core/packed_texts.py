"""Very many texts in little memory: names of ten million images take what they are long, and eight bytes each."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class Texts(Sequence[str]):
    """N texts that are no objects until one is asked for; it is read like a tuple of texts."""

    @abstractmethod
    def _at(self, place: int) -> str:
        """Return the text at a place from 0 to N - 1."""

    @overload
    def __getitem__(self, position: int) -> str: ...

    @overload
    def __getitem__(self, position: slice) -> tuple[str, ...]: ...

    def __getitem__(self, position: int | slice) -> str | tuple[str, ...]:
        if isinstance(position, slice):
            return tuple([self._at(each) for each in range(*position.indices(len(self)))])
        place = range(len(self))[position]  # negative ones too; raises IndexError
        return self._at(place)

    def __iter__(self) -> Iterator[str]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))


class PackedTexts(Texts):
    """N texts in one block of bytes, which grows like a list."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q")

    @classmethod
    def of(cls, texts: Iterable[str]) -> PackedTexts:
        """Return texts packed; what is packed already is returned itself."""
        if isinstance(texts, PackedTexts):
            return texts
        packed = cls()
        for text in texts:
            packed.append(text)
        return packed

    def append(self, text: str) -> None:
        """Add a text. Bytes of a file's name that are no UTF-8 stay what they are."""
        self._data += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._data))

    def sort(self) -> None:
        """Put the texts in order; for the moment they are all unpacked."""
        ordered = PackedTexts.of(sorted(self))
        self._data, self._ends = ordered._data, ordered._ends

    def pick(self, positions: Iterable[int]) -> PackedTexts:
        """Return the texts at these positions."""
        return PackedTexts.of(self[position] for position in positions)

    def as_bytes(self) -> bytes:
        """Return all of it, different for different texts."""
        return self._ends.tobytes() + self._data

    @property
    def num_bytes(self) -> int:
        """What the texts take of the memory."""
        return self._data.__alloc__() + self._ends.itemsize * len(self._ends)

    def __len__(self) -> int:
        return len(self._ends)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedTexts):
            return self._ends == other._ends and self._data == other._data
        return super().__eq__(other)

    def _at(self, place: int) -> str:
        start = self._ends[place - 1] if place else 0
        return self._data[start : self._ends[place]].decode("utf-8", "surrogateescape")
