from __future__ import annotations

import pytest

from ccreid_cli.core.words import plural, printable


def test_plural() -> None:
    assert [plural(count, "image") for count in (0, 1, 2, 3000)] == ["0 images", "1 image", "2 images", "3,000 images"]
    assert [plural(1, "identity", "identities"), plural(2, "identity", "identities")] == ["1 identity", "2 identities"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a :smile: [/red] é 人.jpg", "a :smile: [/red] é 人.jpg"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\udcff\udce9.jpg", "\\xff\\xe9.jpg"),
        ("a\u202egpj.exe\x9b\u2028", "a\\u202egpj.exe\\x9b\\u2028"),
        ("1\u00a0m", "1\u00a0m"),
    ],
)
def test_names_are_shown_as_they_are_but_for_what_moves_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
