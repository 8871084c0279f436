"""A reviewer that knows the truth mends most of what is wrong with few answers, in the page's own order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scripted_reviewer import main, review, wrong_pairs

from ccreid_cli.review.decisions import Decisions
from ccreid_cli.review.graph import DIFFERENT
from ccreid_cli.review.questions import Questions, as_groups
from ccreid_cli.review.table import read_identities


def noisy_clusters(seed: int = 0) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Features of 40 identities, clusters that join some and take others apart, and the truth."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(40), 15)
    rows = rng.normal(size=(40, 24))[truth] + 0.6 * rng.normal(size=(len(truth), 24))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    labels = truth // 2 * 2 + (truth % 2 == 1) * (truth % 4 == 3)  # every second pair of identities is one cluster
    labels = labels * 2 + (np.arange(len(truth)) % 15 >= 9)  # and all are taken apart
    names = ["" if rng.random() < 0.1 else str(label) for label in labels.tolist()]
    return rows.astype(np.float32), names, list(map(str, truth.tolist()))


def test_half_of_the_wrong_pairs_are_gone_after_few_answers() -> None:
    features, names, truth = noisy_clusters()
    found = review(features, names, truth, 60)
    assert found[30][0] < 0.5 * found[0][0]
    assert found[-1][0] < 0.2 * found[0][0]
    assert found[-1][1] > found[0][1]


def test_wrong_pairs_are_counted_as_by_hand() -> None:
    names, truth = ["a", "a", "b", "", ""], ["1", "1", "1", "2", "2"]
    assert wrong_pairs(names, truth) == (3, 2 / 5)


def test_the_order_is_the_same_each_time_and_what_was_answered_is_not_asked_again() -> None:
    features, names, _ = noisy_clusters()
    state = Decisions(names)
    questions = Questions(features, state)
    assert questions.doubts == Questions(features, Decisions(names)).doubts
    before = questions.estimate()
    doubt = questions.doubts[0]
    groups = as_groups(doubt, state)
    sent = [{"images": group["images"], "whole": group["whole"]} for group in groups]
    outside = [group for group in groups[1:] if not group["inside"]]
    answer = {
        "do": "answer",
        "groups": [sent[0], *(item for item, group in zip(sent[1:], groups[1:], strict=True) if not group["inside"])],
        "relations": [DIFFERENT] * len(outside),
        "bands": [group["band"] for group in outside],
    }
    questions.changed(state.apply(answer))
    again = next(other for other in questions.doubts if other.cluster == doubt.cluster)
    answered = {group["identity"] for group in outside} - {-1}
    assert not answered & {state.identity_of(group.images[0]) for group in again.groups if not group.inside}
    assert questions.estimate()["answered"] == len(outside)
    assert questions.estimate()["wrong"] < before["wrong"]


def test_what_is_computed_bit_by_bit_is_what_is_computed_at_once() -> None:
    features, names, _ = noisy_clusters(1)
    state = Decisions(names)
    questions = Questions(features, state)
    for action in (
        {"do": "move", "images": [0, 1, 2], "to": None},
        {"do": "junk", "images": [3]},
        {"do": "undo"},
        {"do": "undo"},
    ):
        questions.changed(state.apply(action))
    assert [doubt.cluster for doubt in questions.doubts] == [d.cluster for d in Questions(features, state).doubts]


def test_the_reviewer_shows_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, names, truth = noisy_clusters()
    np.savez(tmp_path / "f.npz", features=features, ids=truth)
    (tmp_path / "i.csv").write_text("path,id\n" + "".join(f"{row}.jpg,{name}\n" for row, name in enumerate(names)))
    main(str(tmp_path / "f.npz"), str(tmp_path / "i.csv"))
    assert capsys.readouterr().out.count("pairwise F1") == 4
    main(str(tmp_path / "f.npz"), str(tmp_path / "i.csv"), "3", str(tmp_path / "c.csv"))
    before, after = (read_identities(tmp_path / f"{name}.csv") for name in "ic")
    assert wrong_pairs(after.names, truth) < wrong_pairs(before.names, truth) and any(after.checked)
    assert all(name for name, checked in zip(after.names, after.checked, strict=True) if checked)
