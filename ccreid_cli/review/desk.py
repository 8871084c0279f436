"""Everything that the page can ask for and do, behind one lock: the state, its journal, the questions, the images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccreid_cli.core.words import printable
from ccreid_cli.images.decoding import read_picture
from ccreid_cli.images.thumbnail import encode_small
from ccreid_cli.review.decisions import Decisions
from ccreid_cli.review.graph import NO_IDENTITY
from ccreid_cli.review.journal import Journal
from ccreid_cli.review.questions import Questions, as_groups
from ccreid_cli.review.table import IdentityTable

PAGE_SIZE = 200
"""Most images or identities in one answer."""
SHOWN_PER_GROUP = 24
SIDES = {"small": 192, "large": 1024}
"""Longest side of a picture in pixels, by the name of its size."""
_KEPT_PICTURES = 4096
_GREY = (128, 128, 128)


class Desk:
    """What the server answers with, as plain JSON values.

    Args:
        table: The CSV.
        journal: The decisions on it.
        features: (N, D) float32 unit rows.
    """

    def __init__(self, table: IdentityTable, journal: Journal, features: NDArray[np.float32]) -> None:
        self._table, self._journal = table, journal
        self._files, self._names, self._cameras = table.files, table.images, table.column("camera")
        self._questions = Questions(features, journal.decisions)
        self._lock = Lock()
        self._pictures: OrderedDict[tuple[int, str], tuple[bytes, str]] = OrderedDict()
        self._picture_lock = Lock()

    @property
    def _state(self) -> Decisions:
        return self._journal.decisions

    def summary(self) -> dict[str, Any]:
        """Return the revision, what was done, and what is left."""
        with self._lock:
            return self._summary()

    def _summary(self) -> dict[str, Any]:
        state = self._state
        return {
            "revision": self._journal.revision,
            "written": self._journal.written_revision == self._journal.revision,
            "file": printable(self._table.path.name),
            "images": state.num_images,
            "identities": len(state.members),
            "outliers": state.num_images - sum(map(len, state.members.values())) - len(state.junk),
            "junk": len(state.junk),
            "checked": state.num_checked,
            "inconsistent": len(state.inconsistent()),
            "can_undo": state.can_undo,
            "can_redo": state.can_redo,
            "left": self._questions.estimate(),
        }

    def act(self, action: Mapping[str, Any], revision: int) -> dict[str, Any]:
        """Do an action and return the new summary.

        Raises:
            StaleRevision: Another window acted since `revision`.
            RefusedAction: The action does not fit.
            DataError: It could not be put on disk; nothing was changed.
        """
        with self._lock:
            self._questions.changed(self._journal.act(action, revision))
            return self._summary()

    def write(self) -> dict[str, Any]:
        """Write the CSV and return the summary.

        Raises:
            DataError: It cannot be written.
        """
        with self._lock:
            self._journal.write_table()
            return self._summary()

    def question(self, place: int) -> dict[str, Any]:
        """Return the question at a place of the order, from 0; without groups where there is none."""
        with self._lock:
            doubts = self._questions.doubts
            place = max(0, min(place, len(doubts) - 1))
            groups = as_groups(doubts[place], self._state) if doubts else []
            for group in groups:
                members = [group["images"][0], *self._rest(group)] if group["whole"] else group["images"]
                group["shown"] = [self._image(image) for image in members[:SHOWN_PER_GROUP]]
            return {"revision": self._journal.revision, "place": place, "count": len(doubts), "groups": groups}

    def _rest(self, group: Mapping[str, Any]) -> list[int]:
        return sorted(self._state.members[group["identity"]] - {group["images"][0]})

    def identities(self, first: int, count: int, order: str, search: str) -> dict[str, Any]:
        """Return some identities, in the order ``doubt``, ``size`` or ``name``, whose names hold `search`."""
        with self._lock:
            state, wrong = self._state, self._questions.order()
            bad = state.inconsistent()
            keys: dict[str, Callable[[int], Any]] = {
                "doubt": lambda number: (number not in bad, -wrong.get(number, 0.0), number),
                "size": lambda number: (-len(state.members[number]), number),
                "name": lambda number: (state.name_of(number).casefold(), number),
            }
            wanted = search.casefold()
            numbers = [number for number in state.members if wanted in state.name_of(number).casefold()]
            numbers.sort(key=keys.get(order, keys["doubt"]))
            rows = [self._identity_row(number, bad) for number in numbers[first : first + min(count, PAGE_SIZE)]]
            return {"revision": self._journal.revision, "total": len(numbers), "rows": rows}

    def _identity_row(self, number: int, bad: Mapping[int, object]) -> dict[str, Any]:
        state = self._state
        images = sorted(state.members[number])
        step = max(1, len(images) // 12)
        return {
            "identity": number,
            "name": state.name_of(number),
            "size": len(images),
            "checked": sum(map(state.is_checked, images)),
            "inconsistent": number in bad,
            "shown": [self._image(image) for image in images[::step][:12]],
        }

    def members(self, group: str, first: int, count: int) -> dict[str, Any]:
        """Return some images of an identity by its number, or of ``outliers`` or ``junk``."""
        with self._lock:
            state = self._state
            number = int(group) if group.isascii() and group.isdigit() and len(group) < 12 else NO_IDENTITY
            images = state.junk if group == "junk" else state.outliers() if group == "outliers" else []
            images = sorted(state.members.get(number, images))
            bad = state.inconsistent().get(number, [])
            return {
                "revision": self._journal.revision,
                "identity": number,
                "name": state.name_of(number) if number in state.members else "",
                "total": len(images),
                "contradictions": [[self._image(first), self._image(second)] for first, second in bad[:20]],
                "images": [self._image(image) for image in images[first : first + min(count, PAGE_SIZE)]],
            }

    def _image(self, image: int) -> dict[str, Any]:
        name, camera = printable(self._names[image]), printable(self._cameras[image])
        return {"image": image, "path": name, "camera": camera, "checked": self._state.is_checked(image)}

    def picture(self, image: int, size: str) -> tuple[bytes, str] | None:
        """Return an image of the list, encoded, and its kind; a grey one where it cannot be read, None for no such."""
        if not 0 <= image < len(self._files) or size not in SIDES:
            return None
        with self._picture_lock:
            if (image, size) in self._pictures:
                self._pictures.move_to_end((image, size))
                return self._pictures[image, size]
        found = self._encode(image, size)
        with self._picture_lock:
            self._pictures[image, size] = found
            while len(self._pictures) > _KEPT_PICTURES:
                self._pictures.popitem(last=False)
        return found

    def _encode(self, image: int, size: str) -> tuple[bytes, str]:
        try:
            picture = read_picture(self._files[image])
        except Exception:  # Pillow's decoders raise almost anything on damaged bytes
            picture = Image.new("RGB", (48, 96), _GREY)
        return encode_small(picture, SIDES[size], quality=70)


def as_integer(text: str | None, default: int, most: int) -> int:
    """Return a number of an address, within 0 and `most`; `default` where it is none."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 12:
        return default
    return min(int(text), most)
