"""Numbers in sentences."""

from __future__ import annotations


def plural(amount: int, one: str, many: str | None = None) -> str:
    """Return ``1 image`` or ``2,000 images``; `many` where an s at the end does not do."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"
