"""What is known of images while a person decides about them: identities, edges, and who has looked at what.

The model is the decision graph of wildlife identification: images are joined by edges that say "same", "different" or
"unsure" (nobody can tell). Which identity an image belongs to is kept beside the edges; an identity that holds an edge
"different" contradicts itself and is shown as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ccreid_cli.core.names import UNKNOWN
from ccreid_cli.review.undo import Change, UndoableTables

SAME, DIFFERENT, UNSURE = "same", "different", "unsure"
RELATIONS = {SAME, DIFFERENT, UNSURE}
NO_IDENTITY = -1


class DecisionGraph(UndoableTables):
    """N images, their identities, and what was decided about them.

    Args:
        names: N names of identities as they were before any decision; `UNKNOWN` for none.
        checked: N flags of images that a person has answered for; one of them without an identity is junk.

    Attributes:
        num_images: N.
        members: Identity -> its images. Identities are numbered by their first image, new ones go on from there.
    """

    def __init__(self, names: Sequence[str], checked: Sequence[bool] | None = None) -> None:
        self.num_images = len(names)
        flags = checked or [False] * len(names)
        numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name in names if name))}
        tables: dict[str, dict[Any, Any]] = {
            "identity": {image: numbers[name] for image, name in enumerate(names) if name != UNKNOWN},
            "junk": {image: True for image, name in enumerate(names) if flags[image] and name == UNKNOWN},
            "checked": {image: True for image, flag in enumerate(flags) if flag},
            "edge": {},
            "name": {number: name for name, number in numbers.items()},
            "named": {},
            "asked": {},
        }
        super().__init__(tables)
        self.members: dict[int, set[int]] = {number: set() for number in numbers.values()}
        for image, number in self._tables["identity"].items():
            self.members[number].add(image)

    @property
    def edges(self) -> Mapping[tuple[int, int], str]:
        """(image, later image) -> `SAME`, `DIFFERENT` or `UNSURE`."""
        return self._tables["edge"]

    @property
    def asked(self) -> Iterable[tuple[str, bool]]:
        """Of every group that was answered for sure: its band (see `BANDS`), and whether it was wrong before."""
        return self._tables["asked"].values()

    def identity_of(self, image: int) -> int:
        """Return the identity of an image, or `NO_IDENTITY`."""
        number: int = self._tables["identity"].get(image, NO_IDENTITY)
        return number

    def is_junk(self, image: int) -> bool:
        """Return whether an image was put aside as showing nobody."""
        return image in self._tables["junk"]

    def is_checked(self, image: int) -> bool:
        """Return whether a person has answered for an image."""
        return image in self._tables["checked"]

    def name_of(self, identity: int) -> str:
        """Return the name of an identity; `UNKNOWN` for none."""
        name: str = self._tables["name"].get(identity, UNKNOWN)
        return name

    @property
    def num_checked(self) -> int:
        """How many images a person has answered for."""
        return len(self._tables["checked"])

    @property
    def junk(self) -> list[int]:
        """The images put aside."""
        return sorted(self._tables["junk"])

    def outliers(self) -> list[int]:
        """Return the images in no identity that are not put aside."""
        identity, junk = self._tables["identity"], self._tables["junk"]
        return [image for image in range(self.num_images) if image not in identity and image not in junk]

    def inconsistent(self) -> dict[int, list[tuple[int, int]]]:
        """Return the identities that hold an edge "different", with these edges."""
        found: dict[int, list[tuple[int, int]]] = {}
        for (first, second), relation in self.edges.items():
            identity = self.identity_of(first)
            if relation == DIFFERENT and identity != NO_IDENTITY and identity == self.identity_of(second):
                found.setdefault(identity, []).append((first, second))
        return found

    def rows(self) -> tuple[list[str], list[bool]]:
        """Return the name of the identity of each image, and whether it is checked."""
        names = [self.name_of(self.identity_of(image)) for image in range(self.num_images)]
        return names, [self.is_checked(image) for image in range(self.num_images)]

    # The parts of which actions are made

    @staticmethod
    def _touched(delta: Sequence[Change]) -> tuple[int, ...]:
        values = {value for change in delta if change.table == "identity" for value in (change.before, change.after)}
        return tuple(sorted(value for value in values if value is not None))

    def _write(self, table: str, key: Any, value: Any) -> None:
        if table == "identity":
            self._change_members(key, self._tables[table].get(key), value)
        super()._write(table, key, value)

    def _change_members(self, image: int, before: int | None, after: int | None) -> None:
        if before is not None:
            self.members[before].discard(image)
            if not self.members[before]:
                del self.members[before]
        if after is not None:
            self.members.setdefault(after, set()).add(image)

    def _rank(self, number: int) -> tuple[bool, int, int]:
        """Order identities by whose name stays: given by hand, of more images, earlier."""
        return number in self._tables["named"], len(self.members[number]), -number

    def _new_identity(self) -> int:
        number = max(self._tables["name"], default=-1) + 1
        self._set("name", number, _new_name(set(self._tables["name"].values()), number))
        return number

    def _place(self, images: Iterable[int], goal: int) -> None:
        """Put images into an identity; edges "same" to images that they leave behind are no longer held."""
        moved = [image for image in images if self.identity_of(image) != goal]
        for image in moved:
            self._set("identity", image, goal)
            self._set("junk", image, None)
        if not moved:
            return
        for (first, second), relation in list(self.edges.items()):
            if relation == SAME and self.identity_of(first) != self.identity_of(second):
                self._set("edge", (first, second), None)

    def _join(self, first: int, second: int, relation: str) -> None:
        self._set("edge", (min(first, second), max(first, second)), relation)

    def _drop_edges(self, image: int) -> None:
        for pair in [pair for pair in self.edges if image in pair]:
            self._set("edge", pair, None)

    def _check(self, images: Iterable[int]) -> None:
        for image in images:
            self._set("checked", image, True)


def _new_name(taken: set[str], number: int) -> str:
    """Return a name for a new identity, in the way of the others: the next number of as many digits, or ``new-N``."""
    numbers = [name for name in taken if name.isascii() and name.isdigit() and len(name) < 19]
    if numbers and 2 * len(numbers) >= len(taken):
        return str(max(map(int, numbers)) + 1).zfill(max(map(len, numbers)))
    while (name := f"new-{number + 1}") in taken:
        number += 1
    return name
