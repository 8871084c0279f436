"""Two feature files that are scored together: names are compared over both, and nothing is left out in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.inference.scored_pair import read_scored_pair


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    warning = message


def save(path: Path, ids: Any, cams: Any, width: int = 3, about: dict[str, Any] | None = None) -> Path:
    features = np.arange(1, len(ids) * width + 1, dtype=np.float64).reshape(-1, width)
    extra = {"about": np.array(json.dumps({"format": "ccreid-features", **about})), "names": ids} if about else {}
    np.savez(path, features=features, ids=np.array(ids), cams=np.array(cams), **extra)
    return path


def pair(query: Path, gallery: Path) -> tuple[list[tuple[list[int], list[int]]], list[str]]:
    listener = Listener()
    sides = read_scored_pair(query, gallery, listener)
    for side in sides:
        np.testing.assert_allclose(np.linalg.norm(side.features, axis=1), 1, rtol=1e-6)
        assert len(side.features) == len(side.ids) == len(side.cams)
    return [(side.ids.tolist(), side.cams.tolist()) for side in sides], listener.said


def test_names_are_numbered_over_both_files(tmp_path: Path) -> None:
    query = save(tmp_path / "q.npz", ["dan", "bea"], ["north", "south"])
    gallery = save(tmp_path / "g.npz", ["ada", "bea", "dan"], ["south", "east", "north"])
    assert pair(query, gallery) == ([([2, 1], [1, 2]), ([0, 1, 2], [2, 0, 1])], [])


def test_numbers_of_any_type_compare_with_text(tmp_path: Path) -> None:
    query = save(tmp_path / "q.npz", np.array([7, 9], np.float32), np.array([1, 2], np.uint8))
    assert pair(query, save(tmp_path / "g.npz", ["9", "7"], ["2", "1"])) == ([([7, 9], [1, 2]), ([9, 7], [2, 1])], [])


def test_rows_without_an_identity_are_left_out_aloud(tmp_path: Path) -> None:
    query = save(tmp_path / "q.npz", [-1, 2, 2], [0, 1, 2])
    gallery = save(tmp_path / "g.npz", ["2", "", "-1.0", "-1"], ["1", "2", "3", "4"])
    sides, said = pair(query, gallery)
    assert sides == [([2, 2], [1, 2]), ([2], [1])]
    assert [text.partition(": ")[2] for text in said] == [
        "1 query without an identity was left out.",
        "3 gallery images without an identity were left out.",
    ]


@pytest.mark.parametrize("ids", [np.array([-1, -1]), np.array([-1.0, -1.0]), ["", "-1"], ["-1.0", "-1.0"]])
def test_files_without_any_identity_cannot_be_scored(tmp_path: Path, ids: Any) -> None:
    known, unknown = save(tmp_path / "k.npz", [1, 2], [1, 2]), save(tmp_path / "u.npz", ids, [1, 2])
    for query, gallery in ((known, unknown), (unknown, known), (unknown, unknown)):
        with pytest.raises(DataError, match=r"u\.npz: none of the 2 .* has an identity") as caught:
            pair(query, gallery)
        assert caught.value.hint


def test_unknown_cameras_are_like_none_and_said(tmp_path: Path) -> None:
    query, gallery = save(tmp_path / "q.npz", [1, 1], ["", "a"]), save(tmp_path / "g.npz", [1, 1], ["a", "-1"])
    sides, said = pair(query, gallery)
    assert not set(sides[0][1][:1]) & set(sides[1][1]) and sides[0][1][1] == sides[1][1][0]
    assert "1 of 2 rows have no camera" in said[0] and len(said) == 2
    sides, said = pair(save(query, [1], [""]), save(gallery, [1], [""]))
    assert sides[0][1] != sides[1][1] and said == ["no cameras are known, so every gallery image counts."]


def test_names_that_only_look_alike_are_pointed_at(tmp_path: Path) -> None:
    query, gallery = save(tmp_path / "q.npz", ["2", "5"], [1, 2]), save(tmp_path / "g.npz", ["0002", "5"], [1, 3])
    said = pair(query, gallery)[1]
    assert len(said) == 1 and "'2' in" in said[0] and "'0002' in" in said[0]


def test_the_width_must_be_one(tmp_path: Path) -> None:
    query, gallery = save(tmp_path / "q.npz", [1], [1]), save(tmp_path / "g.npz", [1], [2], width=5)
    with pytest.raises(DataError, match=r"is 3 wide in .*q\.npz, but 5 wide in .*g\.npz"):
        pair(query, gallery)


def test_files_of_the_first_version_numbered_names_by_file(tmp_path: Path) -> None:
    old, new = ({"version": version, "model": "m"} for version in (1, 2))
    query, gallery = save(tmp_path / "q.npz", [1, 2], [1, 2], about=old), tmp_path / "g.npz"
    with pytest.raises(DataError, match=r"q\.npz was written by ccreid 0\.1.*"):
        pair(query, save(gallery, ["1", "2"], ["2", "1"], about=new))
    assert "Extract again unless" in pair(query, save(gallery, [1, 2], [2, 1], about=old))[1][0]
    assert pair(query, save(gallery, [1, 2], [2, 1]))[1]


def test_features_of_two_models_are_warned_of(tmp_path: Path) -> None:
    query = save(tmp_path / "q.npz", ["1"], ["1"], about={"version": 2, "model": "m"})
    gallery = save(tmp_path / "g.npz", ["1"], ["2"], about={"version": 2, "model": "n"})
    assert "different models" in pair(query, gallery)[1][0]
