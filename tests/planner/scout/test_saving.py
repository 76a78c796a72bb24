"""Savings: the range holds what a plan saves on fresh samples; nothing is promised without grounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from artifacts import Trace
from planner import NetworkCosts, price_exits
from planner.scout.saving import Saving, estimate_savings, judge_savings
from planner.search.joint import plan_coarsely
from planner.search.problem import SearchProblem
from planner.search.rules import SearchRules, SlowBatchRule
from tests.planner.planning_worlds import make_costs, make_trace

FREE = SearchRules(slow_batches=SlowBatchRule(stay_allowance=None))


def bare_costs(seed: int, exits: int) -> NetworkCosts:
    """Costs as scouting times them: heads and gathers take no time."""
    costs = make_costs(seed, exits=exits)
    median = {
        name: (0.0,) * len(row) if name.startswith(("exit_", "gather_")) else row
        for name, row in costs.itm.median_ms.items()
    }
    return NetworkCosts(itm=replace(costs.itm, median_ms=median), cuts=costs.cuts, batch_size=costs.batch_size)


def halves_of(trace: Trace) -> np.ndarray:
    return np.arange(trace.sample_count) % 2 == 0


@pytest.mark.parametrize("seed", range(6))
def test_the_range_holds_what_a_plan_of_many_samples_saves(seed: int) -> None:
    """The heads of the fresh trace are as good as the probes, and a plan for it is tuned on far more samples."""
    costs = bare_costs(seed, exits=4)
    few, many = make_trace(seed, exits=4, samples=400), make_trace(seed + 100, exits=4, samples=6000)
    tuned, judged = many.select(np.arange(3000)), many.select(np.arange(3000, 6000))
    savings = estimate_savings(few, halves_of(few), costs, tolerances=(0.01, 0.05, 0.2))
    assert savings[-1].at_least > 0
    for saving in savings:
        (result,) = plan_coarsely(SearchProblem(trace=tuned, costs=costs, tolerances=(saving.tolerance,), rules=FREE))
        reached = 1 - price_exits(judged, result.best.exits, costs).times.mean_ms / costs.full_ms
        assert saving.at_least - 1e-9 <= reached <= saving.at_most + 1e-9, saving


def test_larger_tolerances_promise_and_hope_for_no_less() -> None:
    trace, costs = make_trace(2, exits=4, samples=400), bare_costs(2, exits=4)
    savings = estimate_savings(trace, halves_of(trace), costs, tolerances=(0.01, 0.05, 0.2))
    hopes = [saving.at_most for saving in savings]
    assert hopes == sorted(hopes)
    assert savings[-1].at_least > savings[0].at_least
    assert all(0 <= saving.at_least <= saving.at_most <= 1 for saving in savings)


def test_nothing_is_promised_that_cannot_be_certified() -> None:
    trace, costs = make_trace(2, exits=4, samples=400), bare_costs(2, exits=4)
    free, *_ = estimate_savings(trace, halves_of(trace), costs, tolerances=(0.2,))
    few, *_ = estimate_savings(trace, halves_of(trace), costs, tolerances=(0.2,), delta=0.05, calibrating=20)
    enough, *_ = estimate_savings(trace, halves_of(trace), costs, tolerances=(0.2,), delta=0.05, calibrating=4000)
    assert (free.certifiable, few.certifiable, enough.certifiable) == (None, False, True)
    assert free.at_least == enough.at_least > 0 == few.at_least
    assert few.at_most == free.at_most


def test_what_few_samples_could_hardly_certify_is_not_promised() -> None:
    """With twenty samples to test on, a tolerance of 0.2 is certified if at most one of them is lost."""
    trace, costs = make_trace(2, exits=4, samples=400), bare_costs(2, exits=4)
    promised = [
        estimate_savings(trace, halves_of(trace), costs, tolerances=(0.2,), delta=0.05, calibrating=calibrating)[0]
        for calibrating in (40, 200, 4000)
    ]
    assert all(saving.certifiable for saving in promised)
    at_least = [saving.at_least for saving in promised]
    assert at_least == sorted(at_least)
    assert at_least[0] < at_least[-1]


def test_probes_that_know_nothing_promise_nothing() -> None:
    random = np.random.default_rng(0)
    trace = make_trace(0, exits=3, samples=400)
    metric = np.zeros_like(trace.metric)
    metric[-1] = 1
    blind = replace(
        trace, confidence=random.random(trace.confidence.shape).astype(np.float32), metric=metric, agreement=metric
    )
    savings = estimate_savings(blind, halves_of(blind), bare_costs(0, exits=3))
    assert [saving.at_least for saving in savings] == [0] * 4
    assert all(saving.at_most < 0.1 for saving in savings)
    assert judge_savings(savings[:1]) == "no"


def test_the_verdict() -> None:
    def judge(*ranges: tuple[float, float]) -> str:
        return judge_savings([
            Saving(tolerance=0.01, at_least=low, at_most=high, lost=0.0, certifiable=None) for low, high in ranges
        ])  # fmt: skip

    assert judge((0.3, 0.6)) == "yes"
    assert judge((0.0, 0.6), (0.1, 0.7)) == "yes"
    assert judge((0.0, 0.6)) == "perhaps"
    assert judge((0.0, 0.04), (0.01, 0.049)) == "no"
