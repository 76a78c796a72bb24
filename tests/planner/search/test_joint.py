"""The joint search against every plan there is, against the greedy search, and what must hold of every answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from artifacts import NoPlanError, Trace, UsageError
from planner import (
    NO_EXITS,
    Exits,
    KeptGrids,
    Load,
    NetworkCosts,
    PricedExits,
    SlowBatchRule,
    evaluate_plan,
    plan_joint,
    threshold_grid,
)
from planner.predict.objectives import OBJECTIVES, objective_ms
from planner.search.problem import share_in_time
from tests.planner.planning_worlds import make_costs, make_problem, make_trace, search_greedily, search_jointly, traces

ANY_BATCHES = SlowBatchRule(share=0.0, stay_allowance=None)
RULES = [ANY_BATCHES, SlowBatchRule(), SlowBatchRule(share=0.5, allowance=0.1, stay_allowance=0.3)]
tolerances = st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5])


def price_of(trace: Trace, costs: NetworkCosts, chosen: Exits) -> PricedExits:
    return evaluate_plan(
        trace, chosen, costs.plan_costs(chosen.cuts), full_ms=costs.full_ms, load=costs.load, percentile=True
    )


def allowed(trace: Trace, costs: NetworkCosts, figures: PricedExits, tolerance: float, rule: SlowBatchRule) -> bool:
    if figures.outcome.metric < trace.full_metric * (1 - tolerance) - 1e-9:
        return False
    cuts = figures.exits.cuts
    if not cuts:
        return True
    share = share_in_time(costs, cuts[0], figures.outcome.survival[1], allowance=rule.allowance)
    stays = rule.stay_allowance is None or costs.stay_ms(cuts) <= (1 + rule.stay_allowance) * costs.full_ms
    return share >= rule.share - 1e-9 and stays


def every_plan(trace: Trace) -> Iterator[Exits]:
    levels = [np.unique(row).tolist() for row in trace.confidence[:-1]]
    for size in range(len(trace.exits) + 1):
        for rows in itertools.combinations(range(len(trace.exits)), size):
            for thresholds in itertools.product(*(levels[row] for row in rows)):
                yield Exits(cuts=tuple(trace.exits[row] for row in rows), thresholds=thresholds)


@settings(max_examples=120, deadline=None)
@given(
    traces(max_exits=3, max_samples=7), st.integers(0, 2**16), tolerances, st.sampled_from([1, 2, 5]),
    st.sampled_from(RULES), st.sampled_from(OBJECTIVES), st.booleans(), st.booleans(),
)  # fmt: skip
def test_answer_is_the_best_of_all_plans(
    trace: Trace, seed: int, tolerance: float, batch_size: int, rule: SlowBatchRule, objective: str,
    mixed: bool, fixed: bool,
) -> None:  # fmt: skip
    assume(trace.full_metric > 0)
    costs = make_costs(seed, exits=len(trace.exits), batch_size=batch_size, head=0.05, fixed=fixed)
    if mixed and batch_size > 1:
        costs = replace(costs, mixture=Load(batch_sizes=(1, batch_size), shares=(0.7, 0.3)))
    figures = [price_of(trace, costs, chosen) for chosen in every_plan(trace)]
    candidates = [plan for plan in figures if allowed(trace, costs, plan, tolerance, rule)]
    least = min(objective_ms(plan.times, objective) for plan in candidates)
    best = search_jointly(trace, costs, tolerance=tolerance, objective=objective, slow_batches=rule).best
    assert objective_ms(best.times, objective) == pytest.approx(least, rel=1e-9)
    assert allowed(trace, costs, best, tolerance, rule)


@settings(max_examples=40, deadline=None)
@given(
    traces(max_exits=5, max_samples=60), st.integers(0, 2**16), tolerances, st.sampled_from(RULES),
    st.sampled_from(OBJECTIVES),
)  # fmt: skip
def test_never_worse_than_the_greedy_search(
    trace: Trace, seed: int, tolerance: float, rule: SlowBatchRule, objective: str
) -> None:
    assume(trace.full_metric > 0)
    costs = make_costs(seed, exits=len(trace.exits), head=0.05)
    grids = KeptGrids(thresholds=threshold_grid())
    greedy = search_greedily(trace, costs, tolerance=tolerance, grids=grids, slow_batches=rule).best
    found = search_jointly(trace, costs, tolerance=tolerance, objective=objective, slow_batches=rule, grids=grids)
    greedy = price_of(trace, costs, greedy.exits)
    assert objective_ms(found.best.times, objective) <= objective_ms(greedy.times, objective) + 1e-12
    assert found.baseline == greedy.exits
    for plan in found.considered:
        assert allowed(trace, costs, plan.priced, tolerance, rule)


def test_clearly_better_than_the_greedy_search_where_budget_must_be_shared() -> None:
    """The greedy search's first exit spends the whole budget; the joint search shares it between exits."""
    gains = []
    for seed in range(6):
        trace, costs = make_trace(seed, exits=6, samples=2000), make_costs(seed, exits=6, head=0.02)
        grids = KeptGrids(thresholds=threshold_grid())
        greedy = search_greedily(trace, costs, tolerance=0.02, grids=grids, slow_batches=ANY_BATCHES).best
        gains.append(
            1
            - search_jointly(trace, costs, tolerance=0.02, slow_batches=ANY_BATCHES).best.times.mean_ms
            / greedy.times.mean_ms
        )
    assert min(gains) >= 0
    assert np.mean(gains) > 0.02


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_several_tolerances_are_as_good_as_each_alone_and_monotone(objective: str) -> None:
    trace, costs = make_trace(5, exits=5, samples=400), make_costs(5, exits=5, head=0.05)
    steps = (0.05, 0.0, 0.02, 0.01)
    results = plan_joint(make_problem(trace, costs, *steps, objective=objective, slow_batches=ANY_BATCHES))
    priced = dict(zip(steps, (objective_ms(result.best.times, objective) for result in results), strict=True))
    assert [priced[step] for step in sorted(steps)] == sorted(priced.values(), reverse=True)
    for step in steps:
        alone = search_jointly(trace, costs, tolerance=step, objective=objective, slow_batches=ANY_BATCHES).best
        assert priced[step] <= objective_ms(alone.times, objective) * 1.002


def test_within_a_hundredth_of_a_fine_exhaustive_search() -> None:
    from planner.search.level_tables import RankedTrace, make_table, spread_levels

    trace, costs = make_trace(2, exits=5, samples=3000), make_costs(2, exits=5, head=0.05)
    ranked, budget = RankedTrace.of(trace), 0.02 * trace.full_metric * trace.sample_count
    best = costs.full_ms
    for rows in itertools.chain.from_iterable(itertools.combinations(range(5), size) for size in (1, 2, 3)):
        levels = [spread_levels(ranked.ranks[row], 60) for row in rows]
        table = make_table(ranked, rows, levels)
        cells = np.argwhere(table.loss <= budget)
        survivors = [array[tuple(cells[:, : k + 1].T)] for k, array in enumerate(table.survivors)]
        fewest = np.array(survivors).T[np.argsort(np.sum(survivors, axis=0))[:50]].tolist()
        for tried in {tuple(counts) for counts in fewest}:
            shares = [1.0, *(count / trace.sample_count for count in tried)]
            priced = costs.plan_costs([trace.exits[row] for row in rows])
            from planner import expect_times

            best = min(best, expect_times(priced, shares).mean_ms)
    assert best < 0.9 * costs.full_ms
    assert search_jointly(trace, costs, tolerance=0.02, slow_batches=ANY_BATCHES).best.times.mean_ms <= 1.01 * best


@pytest.mark.parametrize("most", [0, 1, 2])
def test_no_plan_has_more_exits_than_it_may(most: int) -> None:
    trace, costs = make_trace(1, exits=5, samples=300), make_costs(1, exits=5, head=0.02)
    found = search_jointly(trace, costs, tolerance=0.01, max_exits=most, slow_batches=ANY_BATCHES)
    assert max(len(plan.exits.cuts) for plan in found.considered if plan.allowed) <= most
    assert found.baseline in [plan.exits for plan in found.considered]  # the greedy search's, with any number
    assert len(found.best.exits.cuts) == most
    free = search_jointly(trace, costs, tolerance=0.01, slow_batches=ANY_BATCHES).best
    assert free.times.mean_ms <= found.best.times.mean_ms
    assert len(free.exits.cuts) > 2


def test_objectives_differ_and_each_wins_at_its_own() -> None:
    trace, costs = make_trace(4, exits=5, samples=800), make_costs(4, exits=5, head=0.2, batch_size=16)
    best = {
        name: search_jointly(trace, costs, tolerance=0.05, objective=name, slow_batches=ANY_BATCHES).best
        for name in OBJECTIVES
    }
    best = {name: price_of(trace, costs, plan.exits) for name, plan in best.items()}
    for mine, other in itertools.permutations(OBJECTIVES, 2):
        assert objective_ms(best[mine].times, mine) <= objective_ms(best[other].times, mine) * (1 + 1e-9)
    assert len({plan.exits for plan in best.values()}) > 1


def test_considered_plans_have_different_exits_and_hold_the_plan_without() -> None:
    trace, costs = make_trace(1, exits=5, samples=300), make_costs(1, exits=5, head=0.02)
    found = search_jointly(trace, costs, tolerance=0.05, slow_batches=ANY_BATCHES)
    times = [plan.priced.times.mean_ms for plan in found.considered]
    assert times == sorted(times)
    assert NO_EXITS in [plan.exits for plan in found.considered]
    subsets = [plan.exits.cuts for plan in found.considered if plan.exits != found.baseline]
    assert len(set(subsets)) == len(subsets) > 5
    assert [plan.path for plan in found.considered] == [True] + [False] * (len(times) - 1)
    sizes = {len(cuts) for cuts in subsets}
    assert sizes >= {0, 1, 2, 3}


def test_search_on_many_samples_prices_nearly_as_the_exact_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond ``_FINEST`` samples the survivors are rounded; the answer hardly changes."""
    trace, costs = make_trace(3, exits=4, samples=3000), make_costs(3, exits=4, head=0.05)
    exact = search_jointly(trace, costs, tolerance=0.03, slow_batches=ANY_BATCHES).best.times.mean_ms
    monkeypatch.setattr("planner.search.prices._FINEST", 500)
    assert search_jointly(trace, costs, tolerance=0.03, slow_batches=ANY_BATCHES).best.times.mean_ms == pytest.approx(
        exact, rel=2e-3
    )


def test_constant_confidences_and_one_sample() -> None:
    trace = make_trace(0)
    flat = replace(trace, confidence=np.full_like(trace.confidence, 0.5), metric=np.ones_like(trace.metric))
    best = search_jointly(flat, make_costs(0), tolerance=0.0, slow_batches=ANY_BATCHES).best
    assert best.exits == Exits(cuts=("cut0",), thresholds=(0.5,))
    single = Trace(
        exits=("cut0",), confidence=np.array([[0.4], [1]], np.float32), metric=np.ones((2, 1), np.float32),
        agreement=np.ones((2, 1), bool),
    )  # fmt: skip
    assert search_jointly(single, make_costs(0, exits=1), tolerance=0.0, slow_batches=ANY_BATCHES).best.exits.cuts == (
        "cut0",
    )


def test_useless_and_expensive_exits_are_not_taken() -> None:
    trace = make_trace(0)
    wrong = np.zeros_like(trace.metric)
    wrong[-1] = 1
    assert search_jointly(replace(trace, metric=wrong), make_costs(0), tolerance=0.01).best.exits == NO_EXITS
    assert search_jointly(trace, make_costs(0, head=100.0), tolerance=0.5).best.exits == NO_EXITS
    assert search_jointly(make_trace(0, exits=0), make_costs(0, exits=0), tolerance=0.01).best.exits == NO_EXITS


def test_no_tolerances_need_no_search() -> None:
    assert plan_joint(make_problem(make_trace(0), make_costs(0))) == ()


def test_what_cannot_be_asked_for_is_refused() -> None:
    trace, costs = make_trace(0), make_costs(0)
    with pytest.raises(UsageError, match="--tolerance"):
        search_jointly(trace, costs, tolerance=1.0)
    with pytest.raises(UsageError, match="Did you mean 'mean'"):
        search_jointly(trace, costs, tolerance=0.1, objective="men")
    with pytest.raises(UsageError, match="--max-exits"):
        search_jointly(trace, costs, tolerance=0.1, max_exits=-1)
    with pytest.raises(NoPlanError, match="metric 0"):
        search_jointly(replace(trace, metric=np.zeros_like(trace.metric)), costs, tolerance=0.1)
