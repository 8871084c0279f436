"""Numbers and names in sentences."""

from __future__ import annotations

from collections.abc import Iterable

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def plural(amount: int, one: str, many: str | None = None) -> str:
    """Return ``1 image`` or ``2,000 images``; `many` where an s at the end does not do."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def few(names: Iterable[str], shown: int = 3) -> str:
    """Name the first few, and say how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def printable(text: str) -> str:
    r"""Return text that a terminal and a log show as one line, whatever is in it, above all in the names of files.

    Control characters become ``\n``, ``\x1b`` and so on, bytes of a name that are not UTF-8 ``\xff``, and the marks
    that turn the direction of writing around ``\u202e``.
    """
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    code = ord(character)
    if character.isprintable() or character.isspace() and code > 0x9F and code not in (0x2028, 0x2029):
        return character
    if character in _NAMED:
        return _NAMED[character]
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that it cannot decode
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
