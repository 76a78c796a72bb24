"""Choosing between plans by measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts import ExitPlan, UsageError
from planner import (
    NO_EXITS,
    Exits,
    KeptGrids,
    Load,
    MeasureConfig,
    PlanConfig,
    SlowBatchRule,
    TimingConfig,
    evaluate_plan,
    threshold_grid,
)
from planner.commit.contenders import NOISE, Contender, pick_contenders, rank_contenders, warn_of_staying
from planner.commit.measuring import draw_batches, measure_plans
from planner.predict.objectives import BATCH, MEAN, P99
from tests.planner.planning_worlds import make_costs, make_trace, search_greedily, search_jointly


def search(**options: object):
    kept = KeptGrids(thresholds=threshold_grid())
    return search_greedily(
        make_trace(3, exits=4, samples=200), make_costs(3, exits=4, head=0.05), tolerance=0.1, grids=kept, **options
    )


def test_contenders_are_the_best_allowed_plans_and_the_one_without_exits() -> None:
    result = search(slow_batches=SlowBatchRule(share=0.0, stay_allowance=None))
    allowed = [plan.exits for plan in result.considered if plan.allowed and plan.exits.cuts]
    assert len(allowed) > 2
    found = pick_contenders(result, 2)
    fewest = min(len(chosen.cuts) for chosen in allowed[:2])
    fewer = {next(plan for plan in allowed if len(plan.cuts) == exits) for exits in range(1, fewest)}
    assert fewer
    assert set(found) == {*allowed[:2], *fewer, NO_EXITS}
    assert list(found) == sorted(found, key=[plan.exits for plan in result.considered].index)


def test_of_plans_with_the_same_exits_the_best_is_measured() -> None:
    result = search(slow_batches=SlowBatchRule(share=0.0, stay_allowance=None))
    best, *_ = result.considered
    chosen = replace(best.exits, thresholds=(0.99,) * best.exit_count)
    slower = replace(best, priced=replace(best.priced, exits=chosen))
    crowded = replace(result, considered=(best, slower, *result.considered[1:]))
    assert pick_contenders(crowded, 2) == pick_contenders(result, 2)


def test_plans_that_the_slow_batch_rule_forbids_do_not_run() -> None:
    result = search(slow_batches=SlowBatchRule(share=1.0, allowance=0.0, stay_allowance=None))
    forbidden = {plan.exits for plan in result.considered if not plan.allowed}
    assert forbidden
    assert not forbidden & set(pick_contenders(result, 3))


def test_measurement_takes_turns_and_medians() -> None:
    log: list[tuple[int, float]] = []
    spike = iter([1.0, 1.0, 1.0, 50.0, 1.0, 1.0, 1.0, 1.0])

    def serve(plan: int):
        def run(batch: np.ndarray) -> np.ndarray:
            log.append((plan, float(batch[0])))
            return np.array([plan + batch[0], plan + batch[0] + 2]) * (next(spike, 1.0) if plan == 1 else 1.0)

        return run

    batches = [np.array([10.0]), np.array([20.0])]
    stays = iter([1.0, 9.0, 1.5, 1.5, 1.5, 1.5])

    def stay(batch: np.ndarray) -> np.ndarray:
        return batch * next(stays, 1.5)

    serves = [(serve(0), lambda batch: batch), (serve(1), stay)]
    times, rounds = measure_plans(serves, batches, MeasureConfig(rounds=3), without_exits=0, clock=lambda: 0.0)
    assert rounds == 3
    assert log == [(0, 10.0), (1, 10.0)] + [(0, 10.0), (1, 10.0), (0, 20.0), (1, 20.0)] * 3
    np.testing.assert_allclose(times, [[16.0, 17.0, 22.0, 1.0], [17.0, 18.0, 23.0, 1.5]])


def test_queries_count_alike_in_batches_of_several_sizes() -> None:
    batches = [np.full(1, 10.0), np.full(3, 2.0)]
    serves = [(lambda batch: batch, lambda batch: batch)]
    times, _ = measure_plans(serves, batches, MeasureConfig(rounds=2), without_exits=0, clock=lambda: 0.0)
    np.testing.assert_allclose(times, [[4.0, 6.0, 10.0, 1.0]])


def test_measurement_stops_with_its_budget() -> None:
    now = iter(range(0, 1000, 10))
    _, rounds = measure_plans(
        [(lambda batch: batch, lambda batch: batch)], [np.ones(2)], MeasureConfig(rounds=50, budget_s=25.0),
        without_exits=0, clock=lambda: float(next(now)),
    )  # fmt: skip
    assert rounds == 3


def test_batches_hold_each_query_at_most_once() -> None:
    drawn = draw_batches(np.arange(50), load=Load.of(8), count=32)
    assert [len(batch) for batch in drawn] == [8] * 4
    assert len(np.unique(np.concatenate(drawn))) == 32
    np.testing.assert_array_equal(drawn, draw_batches(np.arange(50), load=Load.of(8), count=32))
    assert len(draw_batches(np.arange(50), load=Load.of(8), count=1000)) == 6


def test_few_queries_still_fill_a_batch() -> None:
    (drawn,) = draw_batches(np.arange(3), load=Load.of(8), count=32)
    assert sorted(set(drawn.tolist())) == [0, 1, 2]
    assert len(drawn) == 8


def test_batches_follow_the_load() -> None:
    load = Load(batch_sizes=(1, 4), shares=(0.75, 0.25))
    drawn = draw_batches(np.arange(1000), load=load, count=70)
    assert [len(batch) for batch in drawn] == [1] * 30 + [4] * 10
    assert len(np.unique(np.concatenate(drawn))) == 70


def contender(exits: int, ms: float, *, stay_ratio: float = 1.0, allowed: bool = True, p99: float = 1.0) -> Contender:
    cuts = tuple(f"cut{i}" for i in range(exits))
    trace, costs = make_trace(0, exits=4), make_costs(0, exits=4)
    chosen = Exits(cuts=cuts, thresholds=(0.5,) * exits)
    priced = evaluate_plan(trace, chosen, costs.plan_costs(cuts), full_ms=costs.full_ms)
    plan = ExitPlan(
        model_digest="", trace_digest="", search="joint", tolerance=0, delta=None, batch_size=8, backend="fake",
        threads=1, exits=priced.planned_exits(), full_metric=1, predicted_metric=1,
        predicted=priced.predicted_latency(),
    )  # fmt: skip
    return Contender(
        priced=priced, plan=plan, bundle=Path(), measured_mean_ms=ms, measured_batch_ms=2 * ms,
        measured_p99_ms=p99, stay_ratio=stay_ratio, allowed=allowed,
    )  # fmt: skip


def test_of_twins_the_one_with_fewer_exits_wins_then_the_one_that_costs_less_when_no_row_leaves() -> None:
    many, few, other = contender(4, 5.00), contender(2, 5.09, stay_ratio=1.1), contender(2, 5.08, stay_ratio=1.2)
    slower, none = contender(1, 5.2), contender(0, 9.0)
    assert rank_contenders([none, many, slower, other, few], MEAN) == (few, many, other, slower, none)


def test_a_plan_that_is_measured_for_comparison_never_wins() -> None:
    fastest, mine = contender(1, 4.0, allowed=False), contender(2, 5.0)
    assert rank_contenders([fastest, mine, contender(0, 9.0)], MEAN)[:2] == (mine, fastest)


def test_objective_decides_what_is_compared() -> None:
    even, spiky = contender(1, 5.0, p99=6.0), contender(1, 4.0, p99=9.0)
    assert rank_contenders([even, spiky], P99)[0] is even
    assert rank_contenders([even, spiky], BATCH)[0] is spiky


def test_a_cost_of_hard_batches_beyond_the_allowance_is_reported() -> None:
    assert warn_of_staying(contender(2, 5.0, stay_ratio=1.049), 0.03) is None
    assert warn_of_staying(contender(2, 5.0, stay_ratio=1.3), None) is None
    said = warn_of_staying(contender(2, 5.0, stay_ratio=1.08), 0.03)
    assert said is not None
    assert "1.080" in said
    assert "--max-exits" in said


def test_contenders_are_the_best_plan_then_simpler_twins_and_the_baseline() -> None:
    trace, costs = make_trace(3, exits=5, samples=2000), make_costs(3, exits=5, head=0.02)
    result = search_jointly(trace, costs, tolerance=0.05, slow_batches=SlowBatchRule(share=0.0, stay_allowance=None))
    best = result.considered[0]
    assert best.exit_count > 2
    allowed = [plan for plan in result.considered if plan.allowed and plan.exits.cuts]
    best_by_count = {plan.exit_count: plan.exits for plan in reversed(allowed)}
    simplest = min(
        plan.exit_count for plan in result.considered
        if plan.exits.cuts and plan.priced.times.mean_ms <= (1 + NOISE) * best.priced.times.mean_ms
    )  # fmt: skip
    assert simplest < best.exit_count
    always = {NO_EXITS, result.baseline}
    fewer = {best_by_count[step] for step in range(1, simplest) if step in best_by_count}
    assert set(pick_contenders(result, 2)) == {best.exits, best_by_count[simplest], *fewer, *always}
    fewer = {best_by_count[step] for step in range(1, best.exit_count) if step in best_by_count}
    assert set(pick_contenders(result, 1)) == {best.exits, *fewer, *always}


@pytest.mark.parametrize(
    "wrong",
    [
        {"tolerance": 1.0},
        {"tolerance": float("nan")},
        {"batch_size": 0},
        {"threads": 0},
        {"search": "greedi"},
        {"objective": "median"},
        {"max_exits": -1},
        {"search": "greedy", "objective": "p99"},
        {"search": "greedy", "max_exits": 2},
        {"load": Load.of(16)},
        {"timing": TimingConfig(batch_sizes=(1, 2))},
    ],
)
def test_config_checks_itself(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        PlanConfig(**wrong)
