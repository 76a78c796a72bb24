"""Tightening: thresholds chosen from seen rows keep the tolerance, as often as is claimed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.monitor.tightening import (
    FACTORS,
    delta_of,
    find_exits,
    mean_loss,
    rows_to_see,
    scale_thresholds,
    tighten_thresholds,
)

PLANNED = (0.6, 0.7)


def draw_stream(
    random: np.random.Generator, rows: int, *, wrong: float, sharpness: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws rows whose answers disagree the more often, the less confident an exit is."""
    confidence = random.random((3, rows)).astype(np.float32) ** np.float32(0.4)
    disagree = random.random((3, rows)) < wrong * (1 - confidence) ** sharpness
    disagree[-1] = False
    return confidence, 1 - disagree.astype(np.float32)


def true_loss(thresholds: tuple[float, ...], *, wrong: float) -> float:
    confidence, agreement = draw_stream(np.random.default_rng(999), 400_000, wrong=wrong)
    return mean_loss(confidence, agreement, thresholds)


def test_rows_leave_at_the_first_exit_that_is_confident_enough() -> None:
    confidence = np.float32([[0.9, 0.1, 0.1, np.nan], [0.1, 0.7, 0.1, 0.9], [0.5, 0.5, 0.5, 0.5]])
    assert find_exits(confidence, (0.6, float(np.float32(0.7)))).tolist() == [0, 1, 2, 1]
    assert find_exits(confidence, (math.inf, math.inf)).tolist() == [2, 2, 2, 2]


@given(planned=st.lists(st.floats(0, 1.5, allow_nan=False), min_size=1, max_size=4))
def test_thresholds_only_rise_and_the_boldest_are_the_planned_ones(planned: list[float]) -> None:
    ladder = [scale_thresholds(planned, factor) for factor in FACTORS]
    assert ladder[-1] == tuple(float(np.float32(threshold)) for threshold in planned)
    for safer, bolder in itertools.pairwise(ladder):
        assert all(high >= low for high, low in zip(safer, bolder, strict=True))


def test_a_stream_on_which_the_planned_thresholds_do_keeps_them() -> None:
    confidence, agreement = draw_stream(np.random.default_rng(0), 2000, wrong=0.005)
    found = tighten_thresholds(PLANNED, confidence, agreement, tolerance=0.01, delta=0.05)
    assert found.factor == 1
    assert found.thresholds == scale_thresholds(PLANNED, 1)
    assert found.p_value <= 0.05


def test_where_nothing_keeps_the_tolerance_no_row_leaves() -> None:
    confidence, agreement = draw_stream(np.random.default_rng(0), 2000, wrong=1.0, sharpness=0.0)
    found = tighten_thresholds(PLANNED, np.ones_like(confidence), agreement, tolerance=0.01, delta=0.05)
    assert found.factor is None
    assert found.thresholds == (math.inf, math.inf)


def test_too_few_rows_certify_nothing() -> None:
    """Of n rows without a single loss the p-value is (1 - tolerance)^n."""
    confidence, agreement = np.full((2, 100), 0.9, np.float32), np.ones((2, 100), np.float32)
    few = tighten_thresholds((0.5,), confidence, agreement, tolerance=0.01, delta=0.05)
    assert few.factor is None
    many = tighten_thresholds((0.5,), confidence.repeat(3, axis=1), agreement.repeat(3, axis=1), tolerance=0.01,
                              delta=0.05)  # fmt: skip
    assert many.factor == 1
    assert many.p_value == pytest.approx(0.99**300)


def test_the_claim_fails_at_most_as_often_as_delta_says() -> None:
    """The true loss of what is chosen from 1000 rows, over 400 redraws."""
    tolerance, delta, wrong = 0.05, 0.1, 0.6
    losses: dict[tuple[float, ...], float] = {}
    failed, factors = 0, set()
    for seed in range(400):
        confidence, agreement = draw_stream(np.random.default_rng(seed), 1000, wrong=wrong)
        found = tighten_thresholds(PLANNED, confidence, agreement, tolerance=tolerance, delta=delta)
        assert found.factor is not None
        factors.add(found.factor)
        if found.thresholds not in losses:
            losses[found.thresholds] = true_loss(found.thresholds, wrong=wrong)
        failed += losses[found.thresholds] > tolerance
    assert failed <= 400 * delta
    assert true_loss(scale_thresholds(PLANNED, 1), wrong=wrong) > tolerance
    assert len(factors) > 1, "how far thresholds are raised depends on the rows"


def test_fractional_losses_count_by_their_size() -> None:
    confidence = np.full((2, 1000), 0.9, np.float32)
    agreement = np.stack([np.full(1000, 0.97, np.float32), np.ones(1000, np.float32)])
    assert mean_loss(confidence, agreement, (0.5,)) == pytest.approx(0.03)
    assert tighten_thresholds((0.5,), confidence, agreement, tolerance=0.05, delta=0.05).factor == 1
    assert tighten_thresholds((0.5,), confidence, agreement, tolerance=0.03, delta=0.05).factor != 1


def test_the_rows_to_see_and_the_shares_of_delta() -> None:
    assert rows_to_see(0.01) == 2000
    assert rows_to_see(0) is None
    assert rows_to_see(1) is None
    assert sum(delta_of(0.05, alarm) for alarm in range(1, 10_000)) < 0.05
