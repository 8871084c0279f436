from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccreid_cli.core.packed_texts import PackedTexts

TEXTS = st.lists(st.text(max_size=5) | st.sampled_from(["\udcff", "a\nb", "é", ""]), max_size=12)


@given(TEXTS)
@settings(max_examples=50, deadline=None)
def test_it_is_read_like_a_tuple(texts: list[str]) -> None:
    packed = PackedTexts.of(texts)
    assert list(packed) == texts and packed == tuple(texts) and tuple(texts) == packed and len(packed) == len(texts)
    assert packed[2:7] == tuple(texts[2:7]) and packed[::-1] == tuple(texts[::-1])
    assert pickle.loads(pickle.dumps(packed)) == packed and packed != [*texts, "more"]
    assert packed.pick(range(0, len(texts), 2)) == texts[::2]
    packed.sort()
    assert list(packed) == sorted(texts)


def test_places_and_bytes() -> None:
    packed = PackedTexts.of(["a", "bc"])
    assert (packed[-1], packed[0]) == ("bc", "a") and PackedTexts.of(packed) is packed
    with pytest.raises(IndexError):
        packed[2]
    assert packed.as_bytes() != PackedTexts.of(["ab", "c"]).as_bytes()


def test_a_name_takes_its_length_and_eight_bytes() -> None:
    packed = PackedTexts.of(f"cam{n % 8:02}/track{n // 100:06}/frame{n:08}.jpg" for n in range(10_000))
    assert packed.num_bytes / len(packed) < 1.2 * len(packed[0]) + 8 < 64
