from __future__ import annotations

from ccreid_cli.core.words import plural


def test_plural() -> None:
    assert [plural(count, "image") for count in (0, 1, 2, 3000)] == ["0 images", "1 image", "2 images", "3,000 images"]
    assert [plural(1, "identity", "identities"), plural(2, "identity", "identities")] == ["1 identity", "2 identities"]
