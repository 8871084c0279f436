"""Which strings are the same name: only equal ones, and nothing that means none."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccreid_cli.core.names import look_alikes, name_of, names_in, number_names, numbering

TRICKY = ["17", "017", "17.0", "1_7", "１７", "+17", "1e1", "-17", "ada", "Ada", "é", "e\u0301", " a", "a ", "a\x0b"]
names = st.text(st.characters(exclude_characters="\0"), max_size=8) | st.sampled_from(TRICKY)
groups = st.lists(names | st.integers(0, 10**22).map(str), max_size=12).map(lambda values: tuple(map(name_of, values)))


@given(groups, groups, st.booleans())
def test_numbers_are_equal_exactly_where_names_are(first: tuple[str, ...], second: tuple[str, ...], by: bool) -> None:
    numbered = [int(number) for group in number_names(first, second, by_value=by) for number in group]
    oracle: dict[str, int] = {}
    for name, number in zip((*first, *second), numbered, strict=True):
        assert oracle.setdefault(name, number) == number
        assert (number < 0) == (name == "")
    assert len(set(oracle.values())) == len(oracle)
    assert numbering((*second, *first, ""), by_value=by) == oracle | {"": -1}


@given(st.lists(st.integers(0, 2**63 - 1), unique=True))
def test_whole_numbers_keep_their_values(values: list[int]) -> None:
    assert number_names([f"{value:04d}" for value in values])[0].tolist() == values


def test_numbers_are_places_where_values_would_merge_or_overflow() -> None:
    assert numbering(["2", "02", "1"]) == {"02": 0, "1": 1, "2": 2, "": -1}
    assert numbering(["9" * 30, "1"]) == {"1": 0, "9" * 30: 1, "": -1}
    assert numbering(["9" * 5000]) == {"9" * 5000: 0, "": -1}
    assert numbering([str(2**63)]) == {str(2**63): 0, "": -1}
    assert numbering(["5", "7"], by_value=False) == {"5": 0, "7": 1, "": -1}


@pytest.mark.parametrize("value", [None, "", "-1", "-1.0", -1, -1.0])
def test_all_forms_of_none(value: object) -> None:
    assert name_of(value) == ""


@pytest.mark.parametrize("value", ["-1.00", "-01", "−1", "nan", "None", " ", "0", "-2"])
def test_anything_else_is_a_name(value: str) -> None:
    assert name_of(value) == value


@pytest.mark.parametrize("value", [True, 1.5, float("nan"), float("inf"), 2.0**53, "a\0", "\0", Fraction(1), b"a"])
def test_what_is_no_name(value: object) -> None:
    with pytest.raises(ValueError):
        name_of(value)


@given(st.lists(names.filter(lambda name: not name.endswith("\0"))))
def test_texts_of_arrays_come_back(texts: list[str]) -> None:
    assert names_in(np.array(texts, dtype=np.str_)) == tuple(map(name_of, texts))


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.int64, np.float16, np.float32, np.float64, object])
def test_numbers_of_any_type_are_the_same_names(dtype: type) -> None:
    assert names_in(np.array([10, 2, 2, 0], dtype=dtype)) == ("10", "2", "2", "0")


def test_numbers_beyond_int64_in_arrays() -> None:
    assert names_in(np.array([2**64 - 1, 2**63], dtype=np.uint64)) == ("18446744073709551615", "9223372036854775808")


@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, 11), (np.float32, 24), (np.float64, 53)])
def test_floats_that_may_have_merged_are_refused(dtype: type, bits: int) -> None:
    assert names_in(np.array([2.0**bits - 1], dtype=dtype)) == (str(2**bits - 1),)
    for merged in (2.0**bits, -(2.0**bits)):
        with pytest.raises(ValueError, match=rf"beyond 2\^{bits}, where different numbers have become one"):
            names_in(np.array([1, merged], dtype=dtype))


@pytest.mark.parametrize("array", [np.zeros(2, bool), np.zeros(2, complex), np.array(["2020-01-01"], "M8[D]")])
def test_types_that_hold_no_names(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="are no names"):
        names_in(array)


def test_names_that_look_alike_are_told_not_merged() -> None:
    assert look_alikes(["2", "ada", "x", "17"], ["0002", "Ada", "x", "y"]) == [("2", "0002"), ("ada", "Ada")]
    assert look_alikes(["2", "0002"], ["2", "0002"]) == []
