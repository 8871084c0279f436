"""Guessing what a mistyped name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``did you mean "X"?`` for the closest of `choices`, or an empty string when none is close."""
    normal = {choice.lower().replace("_", "-"): choice for choice in choices}
    close = get_close_matches(name.lower().replace("_", "-"), normal, n=1, cutoff=0.6)
    return f'did you mean "{normal[close[0]]}"?' if close else ""
