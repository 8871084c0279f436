from __future__ import annotations

import numpy as np
import pytest

from ccreid_cli.report.numbers import count, decimal, duration, series, stage_seconds, total_seconds


def test_stages_are_summed_and_the_rest_is_other() -> None:
    lines = [
        {"seconds": {"extract": 1.0, "memory": 0.25, "save": 0.5}},
        {"seconds": {"extract": 2.0, "train": 3.0}},
        {},
    ]
    stages = stage_seconds(lines)
    assert list(stages) == ["extract", "train", "other"]
    np.testing.assert_allclose(stages["extract"], [1, 2, 0])
    np.testing.assert_allclose(stages["other"], [0.75, 0, 0])
    assert total_seconds(lines) == pytest.approx(6.75)


def test_numbers_in_words() -> None:
    assert [duration(seconds) for seconds in (0.2, 59.4, 61, 9840)] == ["0 s", "59 s", "1 min 1 s", "2 h 44 min"]
    assert [count(None), count(12936), decimal(float("nan")), decimal(82.649)] == ["–", "12,936", "–", "82.6"]
    np.testing.assert_array_equal(series([{"a": 1}, {"a": True}, {"a": None}, {}], "a"), [1, np.nan, np.nan, np.nan])
