"""Thinning: points spread evenly over time are the best of all choices, found by brute force."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.cuts.thinning import spread_evenly


def squares(ends: list[float], total: float, chosen: tuple[int, ...]) -> float:
    return sum((b - a) ** 2 for a, b in pairwise([0.0, *(ends[index] for index in chosen), total]))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 9))
def test_no_other_choice_is_more_even(steps: list[int], count: int) -> None:
    ends = [float(sum(steps[: place + 1])) for place in range(len(steps))]
    total = ends[-1] + 7.0
    chosen = spread_evenly(ends, total, count)
    assert len(chosen) == min(count, len(ends))
    assert list(chosen) == sorted(set(chosen))
    least = min(squares(ends, total, other) for other in combinations(range(len(ends)), len(chosen)))
    assert squares(ends, total, chosen) == pytest.approx(least)


def test_cuts_that_crowd_at_the_end_do_not_take_all_places() -> None:
    ends = [10.0, 20.0, 30.0, *(30 + step / 10 for step in range(1, 20))]
    assert spread_evenly(ends, 40.0, 3) == (0, 1, 2)
