"""Recipe files: read, checked, and wrong ones in plain words."""

from __future__ import annotations

import pytest

from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.recipes import parse_recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("= 3", "not valid TOML"),
        ("epochs = 3", "'epochs'"),
        ("[train]\nepoch = 3", 'did you mean "epochs"'),
        ("[train]\nepochs = 2.5", "epochs = 2.5"),
        ("[about]\nname = 'x'", "[about]"),
        ("[training]\nepochs = 3", "'training'"),
    ],
)
def test_wrong_recipes(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe("mine", text)
    assert words in caught.value.message
    assert "mine" in caught.value.message
