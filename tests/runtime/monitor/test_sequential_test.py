"""The capital against every possible stream of a few rows, and against long ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.monitor.sequential_test import ODDS_STEPS, Bets, reserve

probabilities = st.floats(0.01, 0.99)


def make_bets(bounds: list[float], at_most: list[bool]) -> Bets:
    return Bets(np.array(bounds), np.array(at_most), np.full(len(bounds), 1 / len(bounds)))


def expected_capital(bound: float, probability: list[float], blocks: list[int], *, at_most: bool) -> float:
    """The mean capital over all outcomes of ``sum(blocks)`` rows, row i a hit with ``probability[i]``."""
    total = 0.0
    ends = np.cumsum(blocks)
    for outcome in itertools.product((0, 1), repeat=int(ends[-1])):
        bets = make_bets([bound], [at_most])
        for rows, end in zip(blocks, ends, strict=True):
            bets.update(np.array([sum(outcome[end - rows : end])]), np.array([rows]))
        likely = math.prod(p if hit else 1 - p for hit, p in zip(outcome, probability, strict=True))
        total += likely * math.exp(bets.log_capital)
    return total


@settings(deadline=None)
@given(bound=probabilities, at_most=st.booleans(), blocks=st.lists(st.integers(0, 3), min_size=1, max_size=2))
def test_the_game_is_fair_at_the_bound(bound: float, at_most: bool, blocks: list[int]) -> None:
    assert expected_capital(bound, [bound] * sum(blocks), blocks, at_most=at_most) == pytest.approx(1)


@settings(deadline=None)
@given(bound=probabilities, at_most=st.booleans(), parts=st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_nothing_is_won_inside_whatever_the_rows_do(bound: float, at_most: bool, parts: list[float]) -> None:
    inside = [part * bound if at_most else 1 - part * (1 - bound) for part in parts]
    assert expected_capital(bound, inside, [2, 1, 2], at_most=at_most) <= 1 + 1e-9


@settings(deadline=None)
@given(bound=probabilities, at_most=st.booleans(), blocks=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_the_capital_is_the_sum_over_starts_and_alternatives(
    bound: float, at_most: bool, blocks: list[tuple[int, int]]
) -> None:
    bets = make_bets([bound], [at_most])
    stakes, rows, held = [], 0, 1.0
    for hits, misses in blocks:
        bets.update(np.array([hits]), np.array([hits + misses]))
        left = float(reserve(np.array(float(rows))))
        stakes.append(held - left)
        held, rows = left, rows + hits + misses
    capital = held
    for start, stake in enumerate(stakes):
        hits, misses = (sum(block[side] for block in blocks[start:]) for side in (0, 1))
        for step in ODDS_STEPS:
            odds = bound / (1 - bound) * math.exp(step if at_most else -step)
            q = odds / (1 + odds)
            capital += stake / len(ODDS_STEPS) * (q / bound) ** hits * ((1 - q) / (1 - bound)) ** misses
    assert math.exp(bets.log_capital) == pytest.approx(capital, rel=1e-6)


def test_the_capital_of_all_is_the_weighted_mean() -> None:
    hits, rows = np.array([30, 30]), np.array([40, 40])
    both = Bets(np.array([0.5, 0.9]), np.array([True, False]), np.array([0.25, 0.75]))
    both.update(hits, rows)
    alone = []
    for bound, at_most in ((0.5, True), (0.9, False)):
        bet = make_bets([bound], [at_most])
        bet.update(hits[:1], rows[:1])
        alone.append(math.exp(bet.log_capital))
    assert math.exp(both.log_capital) == pytest.approx(0.25 * alone[0] + 0.75 * alone[1])


def ever_reaches(limit: float, probability: float, bound: float, seeds: int) -> int:
    found = 0
    for seed in range(seeds):
        random, bets = np.random.default_rng(seed), make_bets([bound, bound], [True, False])
        for _ in range(100):
            bets.update(np.full(2, random.binomial(20, probability)), np.full(2, 20))
            if bets.log_capital >= math.log(limit):
                found += 1
                break
    return found


def test_watching_a_fair_game_all_the_time_seldom_shows_a_fortune() -> None:
    assert ever_reaches(5.0, 0.3, 0.3, seeds=200) <= 40 + 3 * math.sqrt(200 * 0.2 * 0.8)
    assert ever_reaches(5.0, 0.4, 0.3, seeds=30) == 30


def test_a_late_change_is_found_nearly_as_fast_as_an_early_one() -> None:
    def rows_until_found(quiet_rows: int) -> int:
        random, bets = np.random.default_rng(1), make_bets([0.3, 0.2], [True, False])
        for _ in range(quiet_rows // 100):
            bets.update(np.full(2, random.binomial(100, 0.25)), np.full(2, 100))
        rows = 0
        while bets.log_capital < math.log(200):
            bets.update(np.full(2, random.binomial(20, 0.45)), np.full(2, 20))
            rows += 20
        assert bets.strongest.index == 0
        assert bets.strongest.rows <= rows + 100
        assert bets.strongest.hits / bets.strongest.rows > 0.38
        return rows

    assert rows_until_found(0) <= 400
    assert rows_until_found(1_000_000) <= 800


def test_capital_neither_overflows_nor_is_lost_for_good() -> None:
    bets = make_bets([0.5], [True])
    bets.update(np.array([0]), np.array([10**7]))
    assert math.log(0.01) < bets.log_capital < 0
    bets.update(np.array([10**7]), np.array([10**7]))
    assert 1e5 < bets.log_capital < math.inf


def test_no_hypotheses_win_nothing() -> None:
    bets = Bets(np.empty(0), np.empty(0, bool), np.empty(0))
    bets.update(np.empty(0), np.empty(0))
    assert bets.log_capital == 0
