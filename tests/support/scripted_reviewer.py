"""A reviewer that knows the truth and answers the page's questions in its order, and what is wrong before and after."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.review.decisions import Decisions
from ccreid_cli.review.graph import DIFFERENT, SAME
from ccreid_cli.review.questions import Questions, as_groups
from ccreid_cli.review.table import read_identities


def wrong_pairs(names: Sequence[str], truth: Sequence[str]) -> tuple[int, float]:
    """Return how many pairs of images are together wrongly or apart wrongly, and the pairwise F1."""

    def pairs(keys: Sequence[object]) -> int:
        return sum(count * (count - 1) // 2 for count in Counter(keys).values())

    own = [name or f"alone {row}" for row, name in enumerate(names)]
    both, here, true = pairs(list(zip(own, truth, strict=True))), pairs(own), pairs(truth)
    return here + true - 2 * both, 2 * both / (here + true)


def answered(features: NDArray[np.float32], state: Decisions, truth: Sequence[str]) -> Iterator[None]:
    """Answer one question after another, a group as the identity of most of its images, until there are none."""
    questions = Questions(features, state)

    def main_id(images: Sequence[int]) -> str:
        return Counter(truth[image] for image in images).most_common(1)[0][0]

    while questions.doubts:
        groups = as_groups(questions.doubts[0], state)
        ids = [
            main_id(sorted(state.members[group["identity"]]) if group["whole"] else group["images"]) for group in groups
        ]
        relations = [SAME if name == ids[0] else DIFFERENT for name in ids[1:]]
        bands = [group["band"] for group in groups[1:]]
        sent = [{"images": group["images"], "whole": group["whole"]} for group in groups]
        questions.changed(state.apply({"do": "answer", "groups": sent, "relations": relations, "bands": bands}))
        yield


def review(
    features: NDArray[np.float32], names: Sequence[str], truth: Sequence[str], actions: int
) -> list[tuple[int, float]]:
    """Return wrong pairs and F1 after 0, 1, ... actions."""
    state = Decisions(names)
    found = [wrong_pairs(names, truth)]
    for _ in islice(answered(features, state, truth), actions):
        found.append(wrong_pairs(state.rows()[0], truth))
    return found


def main(features_file: str, identities_file: str, actions: str = "", corrected_file: str = "") -> None:
    """Show what 50, 100 and 200 answers mend, or write what so many give: to train on, as a person would.

    `python scripted_reviewer.py FEATURES.npz IDENTITIES.csv [ANSWERS CORRECTED.csv]`. The features have the true ids;
    the CSV has a line for each, in their order, and names images by whole paths if it is to be trained on.
    """
    arrays, table = np.load(features_file), read_identities(Path(identities_file))
    features, truth = arrays["features"], arrays["ids"].tolist()
    if corrected_file:
        state = Decisions(table.names)
        for _ in islice(answered(features, state, truth), int(actions)):
            pass
        replace(table, path=Path(corrected_file)).write(*state.rows())
        return
    found = review(features, table.names, truth, 200)
    for number in (0, 50, 100, 200):
        wrong, f1 = found[min(number, len(found) - 1)]
        print(f"{number:4} actions: pairwise F1 {f1:.3f}, {wrong:,} wrong pairs ({wrong / found[0][0]:.0%})")


if __name__ == "__main__":
    main(*sys.argv[1:])
