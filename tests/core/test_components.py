from __future__ import annotations

import sys

import pytest

from ccreid_cli.core.components import find_row, require
from ccreid_cli.core.errors import UsageError


def test_a_row_that_is_not_there_is_explained() -> None:
    assert find_row({"gem": 1, "avg": 2}, "pooling", "avg") == 2
    with pytest.raises(UsageError, match='no pooling "gam"') as caught:
        find_row({"gem": 1, "avg": 2}, "pooling", "gam")
    assert caught.value.hint == 'did you mean "gem"? Known: gem, avg.'


@pytest.mark.parametrize(
    ("arguments", "package", "advice"),
    [
        (("absent.part", "extra"), "absent", "pip install 'ccreid[extra]'"),
        (("absent.part", "extra", "other"), "other", "pip install 'ccreid[extra]'"),
        (("absent",), "absent", "pip install absent"),
    ],
)
def test_an_absent_package_is_explained(arguments: tuple[str, ...], package: str, advice: str) -> None:
    with pytest.raises(UsageError, match=f"the package {package}, which cannot be imported") as caught:
        require(*arguments)
    assert caught.value.hint == advice


def test_a_package_that_is_there_is_imported() -> None:
    assert require("sys") is sys
