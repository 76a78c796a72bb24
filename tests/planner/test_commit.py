"""Choosing between plans by measurement."""

from __future__ import annotations

import numpy as np
import pytest
from planning_worlds import make_costs, make_trace

from artifacts import UsageError
from planner import NO_EXITS, KeptGrids, MeasureConfig, PlanConfig, TailRule, TimingConfig, plan_greedy, threshold_grid
from planner.commit import draw_batches, measure_plans, pick_contenders


def search(**options: object):
    kept = KeptGrids(thresholds=threshold_grid())
    return plan_greedy(
        make_trace(3, exits=4, samples=200), make_costs(3, exits=4, head=0.05), tolerance=0.1, kept=kept, **options
    )


def test_contenders_are_the_best_allowed_plans_and_the_one_without_exits() -> None:
    result = search(tail=TailRule(share=0.0, stay_allowance=None))
    allowed = [one.figures.chosen for one in result.considered if one.allowed and one.figures.chosen.cuts]
    assert len(allowed) > 2
    found = pick_contenders(result, 2)
    fewest = min(len(chosen.cuts) for chosen in allowed[:2])
    fewer = {next(one for one in allowed if len(one.cuts) == exits) for exits in range(1, fewest)}
    assert fewer
    assert set(found) == {*allowed[:2], *fewer, NO_EXITS}
    assert list(found) == sorted(found, key=[one.figures.chosen for one in result.considered].index)


def test_plans_that_the_tail_rule_forbids_do_not_run() -> None:
    result = search(tail=TailRule(share=1.0, allowance=0.0, stay_allowance=None))
    forbidden = {one.figures.chosen for one in result.considered if not one.allowed}
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
    times, rounds = measure_plans(serves, batches, MeasureConfig(rounds=3), reference=0, clock=lambda: 0.0)
    assert rounds == 3
    assert log == [(0, 10.0), (1, 10.0)] + [(0, 10.0), (1, 10.0), (0, 20.0), (1, 20.0)] * 3
    np.testing.assert_allclose(times, [[16.0, 17.0, 1.0], [17.0, 18.0, 1.5]])


def test_measurement_stops_with_its_budget() -> None:
    now = iter(range(0, 1000, 10))
    _, rounds = measure_plans(
        [(lambda batch: batch, lambda batch: batch)], [np.ones(2)], MeasureConfig(rounds=50, budget_s=25.0),
        reference=0, clock=lambda: float(next(now)),
    )  # fmt: skip
    assert rounds == 3


def test_batches_hold_each_query_at_most_once() -> None:
    drawn = draw_batches(np.arange(50), batch_size=8, count=4)
    assert [len(batch) for batch in drawn] == [8] * 4
    assert len(np.unique(np.concatenate(drawn))) == 32
    np.testing.assert_array_equal(drawn, draw_batches(np.arange(50), batch_size=8, count=4))


def test_few_queries_still_fill_a_batch() -> None:
    (drawn,) = draw_batches(np.arange(3), batch_size=8, count=4)
    assert sorted(set(drawn.tolist())) == [0, 1, 2]
    assert len(drawn) == 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"tolerance": 1.0},
        {"tolerance": float("nan")},
        {"batch_size": 0},
        {"threads": 0},
        {"search": "greedi"},
        {"timing": TimingConfig(batch_sizes=(1, 2))},
    ],
)
def test_config_checks_itself(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        PlanConfig(**wrong)
