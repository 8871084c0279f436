"""Names of identities and cameras: which are the same name, and how a computation numbers them.

Two names are the same where their characters are: nothing is read as a number, no case is folded, no form of Unicode
is made another ("17", "017", "17.0", "1e1" and full-width "１７" are five names). The one exception: `UNKNOWN_FORMS`
all say that there is no name. The numbers of a computation mean nothing outside it: what is kept, written, compared
between files and shown is the name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNKNOWN = ""
"""The name of what has none: an image without an identity, or without a camera."""
UNKNOWN_FORMS = ("", "-1", "-1.0")
"""How having none is written: nothing at all, the field's -1, and -1 as pandas writes it beside empty fields."""

_LARGEST_NUMBER = 2**63 - 1


def name_of(value: object) -> str:
    """Return the name that a value of a file stands for.

    Args:
        value: Text (kept as it is), a whole number (its decimal digits), or None (no name).

    Raises:
        ValueError: It is something else, a number that is not whole or not exact, or text with a NUL character; the
            message says which.
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        value = _whole(value, 53)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is neither text nor a whole number")
    if "\0" in value:  # NumPy drops it at the end of a text, where it would make two names one
        raise ValueError(f"{value!r} holds a NUL character")
    return UNKNOWN if value in UNKNOWN_FORMS else value


def names_in(array: NDArray[Any]) -> tuple[str, ...]:
    """Return the names that an array stands for.

    Args:
        array: (N,) texts, bytes of UTF-8 text, whole numbers, or objects of these kinds.

    Raises:
        ValueError: Its type holds no names, or one of its values is none (see `name_of`); floats from 2^24 (float32),
            2^53 (float64) on are refused, since different numbers have become one there.
    """
    import numpy as np

    kind, dtype = array.dtype.kind, array.dtype
    if kind == "O":
        return tuple(map(name_of, array.tolist()))
    if kind not in "iufUS":
        raise ValueError(f"values of type {dtype} are no names")
    different, where = np.unique(array, return_inverse=True)
    if kind == "f":
        bits = np.finfo(dtype).nmant + 1
        values: list[Any] = [_whole(value, bits, f"{dtype} ") for value in different]
    elif kind == "S":
        values = [value.decode() for value in different.tolist()]
    else:
        values = different.tolist()
    names = [name_of(value) for value in values]
    return tuple([names[place] for place in where.tolist()])


def numbering(names: Iterable[str], *, by_value: bool = True) -> dict[str, int]:
    """Number the different names of one computation.

    Args:
        names: All names that are compared with one another; a name may come more than once.
        by_value: Whether names that are whole decimal numbers, all of different values that int64 holds, are numbered
            by their values; otherwise, and wherever one of them is not, the numbers are places in sorted order.

    Returns:
        A number from 0 for each name, and -1 for `UNKNOWN`.
    """
    different = sorted(set(names) - {UNKNOWN})
    values = _values(different) if by_value else None
    return dict(zip(different, range(len(different)) if values is None else values, strict=True)) | {UNKNOWN: -1}


def number_names(*groups: Sequence[str], by_value: bool = True) -> tuple[NDArray[np.int64], ...]:
    """Number the names of several groups that are compared with one another.

    Args:
        groups: Names, in any number of groups.
        by_value: As for `numbering`.

    Returns:
        (N,) int64 numbers of each group: equal exactly where the names are equal, -1 where there is none.
    """
    import numpy as np

    numbers = numbering(chain.from_iterable(groups), by_value=by_value)
    return tuple(np.fromiter(map(numbers.__getitem__, group), np.int64, len(group)) for group in groups)


def look_alikes(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of different names, one of each side and without its equal on the other, that look like the same.

    Names look the same that differ in case, surrounding space, form of Unicode, or how a number is written: who wrote
    them may have meant one, which nobody but the user can know.
    """
    ours, theirs = set(first), set(second)
    by_look = {_look(name): name for name in sorted(theirs - ours)}
    return [(name, by_look[_look(name)]) for name in sorted(ours - theirs) if _look(name) in by_look]


def _whole(value: Any, bits: int, kind: str = "") -> int:
    """Return a float as a whole number; `bits` is how many its type is exact to."""
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{value} is no name; -1 or empty text says that there is none")
    if value != int(value):
        raise ValueError(f"{value} is not whole")
    if abs(value) >= 2**bits:
        raise ValueError(f"{kind}{value:.0f} is beyond 2^{bits}, where different numbers have become one")
    return int(value)


def _values(names: Collection[str]) -> list[int] | None:
    """Return the values of whole decimal numbers, all different and within int64; None where names are not that."""
    if not all(
        name.isascii() and name.isdigit() and len(name.lstrip("0")) <= len(str(_LARGEST_NUMBER)) for name in names
    ):
        return None
    values = [int(name.lstrip("0") or "0") for name in names]
    return values if len(set(values)) == len(values) and max(values, default=0) <= _LARGEST_NUMBER else None


def _look(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold().strip()
    number = text.removesuffix(".0")
    return number.lstrip("0") or "0" if number.isdigit() else text
