"""Options of the official code that alter nothing in Cluster Contrast: refused in plainer words than unknown ones."""

from __future__ import annotations

from collections.abc import Iterable

from ccreid_cli.core.errors import UsageError

WITHOUT_EFFECT = ("--eps-gap", "--dsbn", "--test-source")


def refuse_options_without_effect(words: Iterable[str]) -> None:
    """Look for such an option among the words of a command line.

    Raises:
        UsageError: There is one.
    """
    for word in words:
        name = word.partition("=")[0]
        if name in WITHOUT_EFFECT:
            raise UsageError(f"{name} has no effect in Cluster Contrast, so it is not accepted.", "Leave it out.")
