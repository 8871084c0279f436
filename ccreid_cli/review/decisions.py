"""The actions of a person who looks at images: checked, done whole or not at all, and taken back.

The same actions in the same order give the same state, always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ccreid_cli.core.names import UNKNOWN, name_of
from ccreid_cli.review.graph import DIFFERENT, NO_IDENTITY, RELATIONS, SAME, UNSURE, DecisionGraph
from ccreid_cli.review.undo import RefusedAction

BANDS = {f"{side} {level}" for side in ("inside", "outside") for level in ("likely", "possible", "unlikely")}
"""How a question's group was doubted: within its identity or beside it, and how likely something is wrong."""
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Group:
    """Images that an answer speaks of as one.

    Attributes:
        images: The images; the first one stands for the others in the graph.
        whole: Whether all other images of the first one's identity are meant, too.
    """

    images: tuple[int, ...]
    whole: bool = False


class Decisions(DecisionGraph):
    """N images, their identities, and the actions that change them: see `DecisionGraph`."""

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
        sure = [group.images[0] for group, _, _, relation in others if relation != UNSURE]
        self._check(image for image in sure if self.identity_of(image) != NO_IDENTITY)  # not to be taken for junk
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
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise RefusedAction(f"a name is one line of at most {_LONGEST_NAME} characters.")
    return name
