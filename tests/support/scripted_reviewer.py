"""A reviewer that knows the truth and answers the page's questions in its order, and what is wrong before and after."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.review.decisions import DIFFERENT, SAME, Decisions
from ccreid_cli.review.questions import Questions, as_groups
from ccreid_cli.review.table import read_identities


def wrong_pairs(names: Sequence[str], truth: Sequence[str]) -> tuple[int, float]:
    """Return how many pairs of images are together wrongly or apart wrongly, and the pairwise F1."""

    def pairs(keys: Sequence[object]) -> int:
        return sum(count * (count - 1) // 2 for count in Counter(keys).values())

    own = [name or f"alone {row}" for row, name in enumerate(names)]
    both, here, true = pairs(list(zip(own, truth, strict=True))), pairs(own), pairs(truth)
    return here + true - 2 * both, 2 * both / (here + true)


def review(
    features: NDArray[np.float32], names: Sequence[str], truth: Sequence[str], actions: int
) -> list[tuple[int, float]]:
    """Answer questions, a group as the identity of most of its images; (wrong pairs, F1) after 0, 1, ... actions."""
    state = Decisions(names)
    questions = Questions(features, state)
    found = [wrong_pairs(names, truth)]

    def main_id(images: Sequence[int]) -> str:
        return Counter(truth[image] for image in images).most_common(1)[0][0]

    while len(found) <= actions and questions.doubts:
        groups = as_groups(questions.doubts[0], state)
        ids = [
            main_id(sorted(state.members[group["identity"]]) if group["whole"] else group["images"]) for group in groups
        ]
        relations = [SAME if name == ids[0] else DIFFERENT for name in ids[1:]]
        bands = [group["band"] for group in groups[1:]]
        sent = [{"images": group["images"], "whole": group["whole"]} for group in groups]
        questions.changed(state.apply({"do": "answer", "groups": sent, "relations": relations, "bands": bands}))
        found.append(wrong_pairs(state.rows()[0], truth))
    return found


def main(features_file: str, identities_file: str) -> None:
    """Show what 50, 100 and 200 answers mend: `python scripted_reviewer.py FEATURES.npz IDENTITIES.csv`.

    The features have the true ids; the CSV has a line for each, in their order.
    """
    arrays = np.load(features_file)
    names = read_identities(Path(identities_file)).names
    found = review(arrays["features"], names, arrays["ids"].tolist(), 200)
    for number in (0, 50, 100, 200):
        wrong, f1 = found[min(number, len(found) - 1)]
        print(f"{number:4} actions: pairwise F1 {f1:.3f}, {wrong:,} wrong pairs ({wrong / found[0][0]:.0%})")


if __name__ == "__main__":
    main(*sys.argv[1:])
