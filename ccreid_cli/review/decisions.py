"""What a person decided about images: the state that every action changes, and takes back.

The model is the decision graph of wildlife identification: images are joined by edges that say "same", "different" or
"unsure" (nobody can tell). Which identity an image belongs to is kept beside the edges; an identity that holds an edge
"different" contradicts itself and is shown as such. The same actions in the same order give the same state, always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ccreid_cli.core.names import UNKNOWN, name_of
from ccreid_cli.review.undo import Change, RefusedAction, UndoableTables

SAME, DIFFERENT, UNSURE = "same", "different", "unsure"
RELATIONS = {SAME, DIFFERENT, UNSURE}
BANDS = {f"{side} {level}" for side in ("inside", "outside") for level in ("likely", "possible", "unlikely")}
"""How a question's group was doubted: within its identity or beside it, and how likely something is wrong."""
NO_IDENTITY = -1
LONGEST_NAME = 200


@dataclass(frozen=True)
class Group:
    """Images that an answer speaks of as one.

    Attributes:
        images: The images; the first one stands for the others in the graph.
        whole: Whether all other images of the first one's identity are meant, too.
    """

    images: tuple[int, ...]
    whole: bool = False


class Decisions(UndoableTables):
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

    # What is known

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

    # What changes it

    def apply(self, action: Mapping[str, Any]) -> tuple[int, ...]:
        """Do one action, whole or not at all.

        Args:
            action: ``do`` says which: ``answer`` with ``groups`` and, for every group but the first, ``relations`` to
                the first (and ``bands``, see `BANDS`); ``move`` with ``images`` and ``to``, an identity or None for a
                new one; ``junk`` or ``restore`` with ``images``; ``right`` with ``identity``; ``name`` with
                ``identity`` and ``name``; ``undo``; ``redo``.

        Returns:
            The identities that have other images than before.

        Raises:
            RefusedAction: The action is none of these, or does not fit the present state.
        """
        kind = action.get("do")
        if kind in ("undo", "redo"):
            return self._touched(self._go_back() if kind == "undo" else self._go_on())
        act = _ACTIONS.get(kind) if isinstance(kind, str) else None
        if act is None:
            raise RefusedAction(f"there is no action {kind!r}.")
        with self._action():
            act(self, action)
        return self._touched(self._delta)

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

    # The actions

    def _answer(self, action: Mapping[str, Any]) -> None:
        groups = self._groups(action)
        relations = _words(action.get("relations"), RELATIONS, len(groups) - 1)
        if relations is None:
            raise RefusedAction("an answer says same, different or unsure of every group but the first.")
        parts = [self._all_of(group) for group in groups]
        before = [self.identity_of(group.images[0]) for group in groups]
        others = list(zip(groups[1:], parts[1:], before[1:], relations, strict=True))
        kept = {i for _, part, owner, relation in others if owner == before[0] and relation == SAME for i in part}
        is_seen = not groups[0].whole and self.members.get(before[0], set()) == kept | set(parts[0])
        same = [part for _, part, _, relation in others if relation == SAME]
        goal = self._goal(parts[0], same, before[0])
        for part in (parts[0], *same):
            self._place(part, goal)
        for _, part, owner, relation in others:
            if relation == DIFFERENT and owner == before[0] != NO_IDENTITY:
                self._place(part, self._new_identity())
        for group, _, _, relation in others:
            self._join(groups[0].images[0], group.images[0], relation)
        if set(relations) != {UNSURE}:
            self._check({*kept, *parts[0]} if is_seen else groups[0].images[:1])
        self._check(group.images[0] for group, _, _, relation in others if relation != UNSURE)
        self._count(action, relations)

    def _goal(self, anchor: Sequence[int], same: Sequence[Sequence[int]], own: int) -> int:
        """Return the identity whose name stays: that of the first group, or of one that joins it as a whole."""
        joined = set().union(*same)
        whole = {self.identity_of(part[0]) for part in same} - {NO_IDENTITY, own}
        whole = {number for number in whole if self.members[number] <= joined}
        if own != NO_IDENTITY:
            whole.add(own)
        return max(whole, key=self._rank) if whole else self._new_identity()

    def _move(self, action: Mapping[str, Any]) -> None:
        images = self._images(action.get("images"))
        goal = action.get("to")
        if goal is not None:
            goal = self._identity(goal)
        moved = [image for image in images if goal is None or self.identity_of(image) != goal]
        if not moved:
            raise RefusedAction("these images are there already.")
        left = {number: self.members[number] - set(moved) for number in map(self.identity_of, moved) if number >= 0}
        if goal is None and not any(left.values()) and len(left) == 1 and len(moved) == len(self.members[min(left)]):
            raise RefusedAction("these are all images of this identity: there is nothing to split off.")
        standing = min(self.members[goal]) if goal is not None else None
        self._place(moved, self._new_identity() if goal is None else goal)
        if standing is not None:
            self._join(standing, moved[0], SAME)
        for rest in left.values():
            if rest:
                self._join(min(rest), moved[0], DIFFERENT)
        self._check(moved)

    def _junk(self, action: Mapping[str, Any]) -> None:
        images = self._images(action.get("images"))
        for image in images:
            self._set("identity", image, None)
            self._set("junk", image, True)
            self._drop_edges(image)
        self._check(images)

    def _restore(self, action: Mapping[str, Any]) -> None:
        for image in self._images(action.get("images")):
            if self.is_junk(image):
                self._set("junk", image, None)
                self._set("checked", image, None)

    def _right(self, action: Mapping[str, Any]) -> None:
        self._check(self.members[self._identity(action.get("identity"))])

    def _name(self, action: Mapping[str, Any]) -> None:
        identity = self._identity(action.get("identity"))
        name = checked_name(action.get("name"))
        other = next((number for number in self.members if number != identity and self.name_of(number) == name), None)
        if other is not None:
            raise RefusedAction(f'another identity is called "{name}".', "Merge the two if they are one.")
        self._set("name", identity, name)
        self._set("named", identity, True)

    # Parts of actions

    def _groups(self, action: Mapping[str, Any]) -> list[Group]:
        given = action.get("groups")
        if not isinstance(given, Sequence) or len(given) < 2 or not all(isinstance(group, Mapping) for group in given):
            raise RefusedAction("an answer needs two groups of images or more.")
        groups = [Group(tuple(self._images(group.get("images"))), group.get("whole") is True) for group in given]
        parts = [self._all_of(group) for group in groups]
        if sum(map(len, parts)) != len(set().union(*parts)):
            raise RefusedAction("these images are in one group already.")
        if any(self.is_junk(image) for part in parts for image in part):
            raise RefusedAction("an image of these was put aside as junk.")
        return groups

    def _images(self, given: Any) -> list[int]:
        if not isinstance(given, Sequence) or not given or not all(type(image) is int for image in given):
            raise RefusedAction("no image is named.")
        if len(set(given)) != len(given) or not all(0 <= image < self.num_images for image in given):
            raise RefusedAction("an image is named twice or does not exist.")
        return list(given)

    def _identity(self, given: Any) -> int:
        if type(given) is not int or given not in self.members:
            raise RefusedAction("that identity does not exist any more.")
        return int(given)

    def _all_of(self, group: Group) -> list[int]:
        number = self.identity_of(group.images[0])
        if not group.whole or number == NO_IDENTITY:
            return list(group.images)
        return [group.images[0], *sorted(self.members[number] - {group.images[0]})]

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

    def _count(self, action: Mapping[str, Any], relations: Sequence[str]) -> None:
        """Keep, for the estimate of what is still wrong, which groups of a question of the page's were wrong."""
        bands = _words(action.get("bands"), BANDS, len(relations))
        if bands is None:
            return
        for band, relation in zip(bands, relations, strict=True):
            if relation != UNSURE:
                wrong = (relation == DIFFERENT) == band.startswith("inside")
                self._set("asked", len(self._tables["asked"]), (band, wrong))


_ACTIONS = {
    "answer": Decisions._answer,
    "move": Decisions._move,
    "junk": Decisions._junk,
    "restore": Decisions._restore,
    "right": Decisions._right,
    "name": Decisions._name,
}


def _words(given: Any, known: set[str], count: int) -> list[str] | None:
    """Return what was sent, where it is a list of so many of the known words."""
    if not isinstance(given, list) or len(given) != count:
        return None
    return given if all(isinstance(item, str) and item in known for item in given) else None


def checked_name(given: Any) -> str:
    """Return a name that a person gives to an identity.

    Raises:
        RefusedAction: It is none, too long, or cannot be shown in one line of a file.
    """
    try:
        name = name_of(given.strip()) if isinstance(given, str) else UNKNOWN
    except ValueError as error:
        raise RefusedAction(f"{error}.") from error
    if name == UNKNOWN:
        raise RefusedAction("a name is needed.", "-1 and empty text mean that there is none.")
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise RefusedAction(f"a name is one line of at most {LONGEST_NAME} characters.")
    return name


def _new_name(taken: set[str], number: int) -> str:
    """Return a name for a new identity, in the way of the others: the next number of as many digits, or ``new-N``."""
    numbers = [name for name in taken if name.isascii() and name.isdigit() and len(name) < 19]
    if numbers and 2 * len(numbers) >= len(taken):
        return str(max(map(int, numbers)) + 1).zfill(max(map(len, numbers)))
    while (name := f"new-{number + 1}") in taken:
        number += 1
    return name
