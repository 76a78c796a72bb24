"""The descent: one exit's best threshold against trying all of them, and where descents end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.predict.objectives import BATCH, MEAN
from planner.search.descent import CoordinateDescent
from planner.search.level_tables import RankedTrace
from planner.search.prices import Prices
from tests.planner.planning_worlds import make_costs, make_trace


def make_descent(
    seed: int, *, exits: int = 4, samples: int = 40, objective: str = MEAN, **options: object
) -> CoordinateDescent:
    trace = make_trace(seed, exits=exits, samples=samples, levels=[None, 6][seed % 2], graded=seed % 3 == 0)
    costs = make_costs(seed, exits=exits, head=0.05)
    rules = {"allows": lambda _: True, "most_survivors": [samples] * exits, "most_exits": exits, **options}
    prices = Prices(costs=costs, exits=trace.exits, samples=samples, objective=objective)
    return CoordinateDescent(ranked=RankedTrace.of(trace), prices=prices, **rules)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([0.0, 0.01, 0.1, 1.0]), st.sampled_from([MEAN, BATCH]))
@example(5741, 1.0, BATCH)
def test_no_change_of_a_single_exit_improves_where_it_ends(seed: int, weight: float, objective: str) -> None:
    descent = make_descent(seed, objective=objective)
    settled = descent.settle({}, weight)

    def value(state: dict[int, int]) -> float:
        found = descent.measure(state)
        return found.price_ms + weight * found.loss

    least = value(settled)
    for row, values in enumerate(descent.ranked.values):
        others = {other: rank for other, rank in settled.items() if other != row}
        tried = [others, *({**others, row: rank} for rank in range(len(values)))]
        assert min(map(value, tried)) >= least - 1e-9


def test_rising_weights_lose_less_and_cost_more() -> None:
    descent = make_descent(3, samples=500)
    ends = sorted(descent.walk(), key=lambda end: end.weight)
    assert ends[0].combination.loss > ends[-1].combination.loss
    assert ends[0].combination.price_ms < ends[-1].combination.price_ms
    assert len({end.combination.rows for end in ends}) > 2


def test_walk_turns_round_beyond_the_largest_budget() -> None:
    descent = make_descent(3, samples=500)
    whole, short = descent.walk(), descent.walk(10.0)
    assert len(short) < len(whole) / 1.5
    assert min(end.weight for end in short) > min(end.weight for end in whole)
    assert short[-1].weight == whole[-1].weight
    assert len({end.combination.loss for end in short if end.combination.loss > 10.0}) >= 1
    assert any(end.combination.loss <= 10.0 and end.combination.rows for end in short)


def test_rules_hold_on_the_way() -> None:
    for seed in range(4):
        descent = make_descent(
            seed, samples=200, most_exits=2, allows=lambda rows: 0 not in rows, most_survivors=[200, 120, 100, 150]
        )
        for end in (settled.combination for settled in descent.walk()):
            assert len(end.rows) <= 2
            assert 0 not in end.rows
            if end.rows:
                going = (descent.ranked.ranks[end.rows[0]] < end.ranks[0]).sum()
                assert going <= descent.most_survivors[end.rows[0]]


def test_an_exit_moves_where_none_may_be_added() -> None:
    """With one exit allowed the descent starts at a poor one and ends at the best there is."""
    descent = make_descent(5, samples=400, most_exits=1)
    weight = 0.02

    def value(state: dict[int, int]) -> float:
        found = descent.measure(state)
        return found.price_ms + weight * found.loss

    def best_of(row: int) -> float:
        return min(value({row: rank}) for rank in range(len(descent.ranked.values[row])))

    per_row = [best_of(row) for row in range(4)]
    worst = int(np.argmax(per_row))
    assert value(descent.settle({worst: 0}, weight)) < max(per_row) - 1e-6


def test_approach_comes_nearer_to_the_budget() -> None:
    descent = make_descent(8, samples=2000)
    ends = descent.walk()
    gains = []
    for share in (0.005, 0.01, 0.02, 0.03, 0.05):
        budget = share * 2000
        within = min(end.combination.price_ms for end in ends if end.combination.loss <= budget)
        nearer = [end.combination for end in descent.approach(ends, budget)]
        found = [combination.price_ms for combination in nearer if combination.loss <= budget]
        gains.append(1 - min(found, default=within) / within)
    assert max(gains) > 0.005


def test_approach_without_a_plan_on_either_side_finds_nothing() -> None:
    descent = make_descent(8)
    ends = descent.walk()
    assert descent.approach(ends, 1e9) == []
    lossy = [replace(end, combination=replace(end.combination, loss=5.0)) for end in ends]
    assert descent.approach(lossy, 1.0) == []


def test_measure_is_what_the_costs_say() -> None:
    from planner import evaluate_exits, expect_times

    descent = make_descent(2, samples=300)
    found = descent.measure({0: 100, 2: 50})
    trace, costs = descent.ranked.trace, descent.prices.costs
    chosen = descent.ranked.choose(found.rows, found.ranks)
    outcome = evaluate_exits(trace, chosen)
    assert found.price_ms == pytest.approx(expect_times(costs.plan_costs(chosen.cuts), outcome.survival).mean_ms)
    assert found.loss == pytest.approx((trace.full_metric - outcome.metric) * 300, abs=1e-4)
