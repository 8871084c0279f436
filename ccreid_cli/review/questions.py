"""The page's questions in their order, and how much is estimated to be still wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccreid_cli.pseudo_labels.doubts import Doubt, DoubtFinder, Doubtful
from ccreid_cli.review.decisions import BANDS, Decisions

_PRIOR = {"likely": 0.7, "possible": 0.35, "unlikely": 0.05}
"""Share of wrong groups of each band before any answer; it counts as much as two answers."""
_SHOWN_LIKELIHOOD = 0.02
"""Questions in which nothing is likelier than this to be wrong are not asked."""


class Questions:
    """What to ask next about a state of decisions.

    Args:
        features: (N, D) float32 unit rows, zeros for images that could not be read.
        decisions: The state; `changed` must be told of every action.
    """

    def __init__(self, features: NDArray[np.float32], decisions: Decisions) -> None:
        self._decisions = decisions
        self._finder = DoubtFinder(features)
        self._finder.update(decisions.members, decisions.outliers())
        self._found: list[Doubt] | None = None

    def changed(self, identities: Sequence[int]) -> None:
        """Take note of an action that changed these identities."""
        self._finder.update(self._decisions.members, self._decisions.outliers(), identities)
        self._found = None

    @property
    def doubts(self) -> list[Doubt]:
        """What is doubtful now, the most doubtful first."""
        if self._found is None:
            state = self._decisions
            settled = {number for number, images in state.members.items() if all(map(state.is_checked, images))}
            cluster_of = {image: number for number, images in state.members.items() for image in images}
            found = self._finder.find(
                state.members, cluster_of, settled=settled, answered=state.edges, left_out=state.junk
            )
            self._found = [
                doubt for doubt in found if max(group.likelihood for group in doubt.groups) >= _SHOWN_LIKELIHOOD
            ]
        return self._found

    def order(self) -> dict[int, float]:
        """Return the expected number of wrong pairs of each identity that is doubtful."""
        return {doubt.cluster: doubt.wrong_pairs for doubt in self.doubts}

    def estimate(self) -> dict[str, Any]:
        """Return what is left: questions, and groups expected to be on the wrong side, from the answers so far."""
        asked = Counter(band for band, _ in self._decisions.asked)
        wrong = Counter(band for band, is_wrong in self._decisions.asked if is_wrong)
        left = Counter(band_of(group) for doubt in self.doubts for group in doubt.groups)
        share = {band: (wrong[band] + 2 * _PRIOR[band.split()[1]]) / (asked[band] + 2) for band in BANDS}
        return {
            "questions": len(self.doubts),
            "groups": sum(left.values()),
            "wrong": round(sum(left[band] * share[band] for band in left)),
            "answered": sum(asked.values()),
            "found_wrong": sum(wrong.values()),
        }


def band_of(group: Doubtful) -> str:
    """Return the band that a group is counted in: see `decisions.BANDS`."""
    level = "likely" if group.likelihood >= 0.5 else "possible" if group.likelihood >= 0.2 else "unlikely"
    return f"{'inside' if group.inside else 'outside'} {level}"


def as_groups(doubt: Doubt, decisions: Decisions) -> list[dict[str, Any]]:
    """Return the groups of a question as an answer sends them back, with what is shown of them."""
    is_whole = not any(group.inside for group in doubt.groups)
    own = {"images": list(doubt.anchor), "whole": False, "size": len(doubt.anchor), "identity": doubt.cluster}
    groups = [{**own, "name": decisions.name_of(doubt.cluster), "is_all": is_whole}]
    for group in doubt.groups:
        identity = decisions.identity_of(group.images[0])
        groups.append(
            {
                "images": list(group.images),
                "whole": group.whole,
                "size": group.size,
                "identity": identity,
                "name": decisions.name_of(identity),
                "inside": group.inside,
                "band": band_of(group),
                "likelihood": round(group.likelihood, 3),
            }
        )
    return groups
