"""The decision graph: every action does what it says, replay gives the live state, undo gives the former one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccreid_cli.review.decisions import Decisions
from ccreid_cli.review.graph import DIFFERENT, SAME, UNSURE
from ccreid_cli.review.undo import RefusedAction

NAMES = ["a", "a", "a", "a", "b", "b", "c", "", ""]


def answer(first: list[int], *others: tuple[list[int], bool, str], whole: bool = False) -> dict[str, Any]:
    groups = [{"images": first, "whole": whole}, *({"images": images, "whole": all_} for images, all_, _ in others)]
    return {"do": "answer", "groups": groups, "relations": [relation for _, _, relation in others]}


def names_of(state: Decisions) -> str:
    return " ".join(name or "-" for name in state.rows()[0])


def test_a_whole_group_that_is_the_same_is_merged_under_the_larger_name() -> None:
    state = Decisions(NAMES)
    state.apply(answer([4], ([0], True, SAME), whole=True))
    assert names_of(state) == "a a a a a a c - -"
    assert state.edges == {(0, 4): SAME}


def test_parts_that_are_different_are_split_off_each_into_its_own() -> None:
    state = Decisions(NAMES)
    state.apply(answer([0, 1], ([2], False, DIFFERENT), ([3], False, DIFFERENT), ([7], False, SAME)))
    assert names_of(state) == "a a new-4 new-5 b b c a -"
    assert state.inconsistent() == {}
    assert [image for image in range(9) if state.is_checked(image)] == [0, 2, 3, 7]


def test_an_identity_is_checked_when_all_of_its_parts_are_the_same() -> None:
    state = Decisions(NAMES)
    state.apply(answer([0, 1], ([2, 3], False, SAME), ([6], True, DIFFERENT)))
    assert [image for image in range(9) if state.is_checked(image)] == [0, 1, 2, 3, 6]
    assert names_of(state) == "a a a a b b c - -"


def test_an_image_of_no_identity_that_is_different_is_not_put_aside() -> None:
    """Checked and without an identity means junk to whoever reads the table again."""
    state = Decisions(NAMES)
    state.apply(answer([0, 1, 2, 3], ([7], False, DIFFERENT), ([4], True, DIFFERENT)))
    names, checked = state.rows()
    assert checked == [True] * 5 + [False] * 4
    assert Decisions(names, checked).outliers() == [7, 8]


def test_unsure_moves_nothing_and_checks_nothing() -> None:
    state = Decisions(NAMES)
    state.apply(answer([0], ([7], False, UNSURE)))
    assert state.rows() == (NAMES, [False] * 9)
    assert state.edges == {(0, 7): UNSURE}


def test_what_was_called_different_and_is_merged_contradicts_itself() -> None:
    state = Decisions(NAMES)
    state.apply(answer([0], ([4], True, DIFFERENT), whole=True))
    state.apply(answer([1], ([5], True, SAME), whole=True))
    assert state.inconsistent() == {0: [(0, 4)]}
    state.apply({"do": "move", "images": [4, 5], "to": None})
    assert state.inconsistent() == {}
    assert (1, 5) not in state.edges  # said the same once, and taken apart since


def test_move_split_off_junk_restore_and_name() -> None:
    state = Decisions(["01", "01", "02", ""])
    state.apply({"do": "move", "images": [1], "to": 1})
    assert names_of(state) == "01 02 02 -"
    state.apply({"do": "move", "images": [1, 3], "to": None})
    assert names_of(state) == "01 03 02 03"
    state.apply({"do": "junk", "images": [3]})
    assert (names_of(state), state.junk, state.is_checked(3)) == ("01 03 02 -", [3], True)
    state.apply({"do": "restore", "images": [3]})
    assert (state.junk, state.outliers()) == ([], [3])
    state.apply({"do": "name", "identity": 0, "name": " <b>Ada</b> "})
    assert names_of(state) == "<b>Ada</b> 03 02 -"


REFUSED = [
    {"do": "explode"},
    {"do": ["name"]},
    {},
    {"do": "undo"},
    {"do": "redo"},
    {"do": "move", "images": [0, 99], "to": None},
    {"do": "move", "images": [-1], "to": None},
    {"do": "move", "images": [True], "to": None},
    {"do": "move", "images": [0, 0], "to": None},
    {"do": "move", "images": [], "to": None},
    {"do": "move", "images": [0], "to": 77},
    {"do": "move", "images": [0], "to": 0},
    {"do": "move", "images": [4, 5], "to": None},
    {"do": "name", "identity": 0, "name": ""},
    {"do": "name", "identity": 0, "name": "b"},
    {"do": "name", "identity": 0, "name": "x\ny"},
    {"do": "name", "identity": 0, "name": "\ud800"},
    {"do": "name", "identity": 0, "name": "x" * 201},
    {"do": "name", "identity": 0, "name": 7},
    {"do": "right", "identity": None},
    {"do": "answer", "groups": [{"images": [0]}], "relations": []},
    {"do": "answer", "groups": [{"images": [0]}, {"images": [4]}], "relations": ["maybe"]},
    {"do": "answer", "groups": [{"images": [0]}, {"images": [4]}], "relations": [["same"]]},
    {"do": "answer", "groups": [{"images": [0], "whole": True}, {"images": [1]}], "relations": [SAME]},
]


@pytest.mark.parametrize("action", REFUSED, ids=str)
def test_what_does_not_fit_is_refused_and_changes_nothing(action: dict[str, Any]) -> None:
    state = Decisions(NAMES)
    before = state.snapshot()
    with pytest.raises(RefusedAction):
        state.apply(action)
    assert state.snapshot() == before


IMAGES = st.lists(st.integers(0, len(NAMES) - 1), min_size=1, max_size=3, unique=True)
GROUPS = st.lists(st.builds(dict, images=IMAGES, whole=st.booleans()), min_size=2, max_size=3)
ACTIONS = st.one_of(
    st.builds(
        dict,
        do=st.just("answer"),
        groups=GROUPS,
        relations=st.lists(st.sampled_from([SAME, DIFFERENT, UNSURE]), min_size=1, max_size=2),
    ),
    st.builds(dict, do=st.just("move"), images=IMAGES, to=st.none() | st.integers(0, 5)),
    st.builds(dict, do=st.sampled_from(["junk", "restore"]), images=IMAGES),
    st.builds(dict, do=st.just("name"), identity=st.integers(0, 5), name=st.sampled_from(["a", "x", "y"])),
    st.builds(dict, do=st.just("right"), identity=st.integers(0, 5)),
    st.builds(dict, do=st.sampled_from(["undo", "redo"])),
)


def parts_fit(state: Decisions) -> None:
    """Members and tables say the same, edges "same" join images of one identity, and junk is in none."""
    rows = {number: {i for i in range(len(NAMES)) if state.identity_of(i) == number} for number in state.members}
    assert rows == state.members
    assert sorted([*state.outliers(), *state.junk, *(i for images in rows.values() for i in images)]) == list(
        range(len(NAMES))
    )
    assert all(state.identity_of(a) == state.identity_of(b) for (a, b), kind in state.edges.items() if kind == SAME)
    names = [state.name_of(number) for number in state.members]
    assert len(set(names)) == len(names)
    assert all(names)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=25))
def test_replay_is_the_live_state_and_undo_is_the_former_one(actions: list[dict[str, Any]]) -> None:
    live = Decisions(NAMES)
    journal = []
    for action in actions:
        before = live.snapshot()
        try:
            live.apply(action)
        except RefusedAction:
            assert live.snapshot() == before
            continue
        journal.append(action)
        parts_fit(live)
        if action["do"] not in ("undo", "redo"):
            after = live.snapshot()
            live.apply({"do": "undo"})
            assert live.snapshot() == before
            live.apply({"do": "redo"})
            assert live.snapshot() == after
    again = Decisions(NAMES)
    for action in journal:
        again.apply(action)
    assert again.snapshot() == live.snapshot()
