"""Retiming: the committed plan beside the fastest one, by times from before and from now."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner import Exits, NetworkCosts, SearchProblem, SlowBatchRule, plan_joint
from planner.predict.costs import head_row
from planner.predict.matrices import scale_times
from planner.search.problem import SearchResult
from planner.workflow.retiming import Retiming, compare_plans
from tests.planner.planning_worlds import make_costs, make_problem, make_trace

FREE = SlowBatchRule(share=0.0, stay_allowance=None)


def problem(costs: NetworkCosts) -> SearchProblem:
    return make_problem(make_trace(0, samples=200), costs, 0.1, slow_batches=FREE)


def with_heads(costs: NetworkCosts, factor: float) -> NetworkCosts:
    heads = {head_row(f"cut{index}") for index in range(3)}
    rows = {name: tuple(ms * (factor if name in heads else 1) for ms in row) for name, row in
            costs.itm.median_ms.items()}  # fmt: skip
    return replace(costs, itm=replace(costs.itm, median_ms=rows))


def search(costs: NetworkCosts) -> SearchResult:
    (result,) = plan_joint(problem(costs))
    return result


def retime(then: NetworkCosts, now: NetworkCosts, committed: Exits | None = None) -> Retiming:
    there = search(then).best.exits if committed is None else committed
    return compare_plans(problem(then), problem(now), there, search(now).best.exits, changes={})


def test_a_machine_that_is_slower_in_everything_keeps_the_plan() -> None:
    costs = make_costs(0, exits=3, head=0.01)
    found = retime(costs, replace(costs, itm=scale_times(costs.itm, 7.0)))
    assert found.still_fastest
    assert found.committed.exits
    assert found.committed.now_ms == pytest.approx(7 * found.committed.planned_ms)
    assert found.fastest == found.committed


def test_slow_heads_make_another_plan_the_fastest() -> None:
    costs = make_costs(0, exits=3, head=0.01)
    found = retime(costs, with_heads(costs, 1000.0))
    assert not found.still_fastest
    assert found.fastest.exits == ()
    assert found.fastest.now_ms == pytest.approx(found.no_exits.now_ms)
    assert found.committed.now_ms > found.no_exits.now_ms


def test_a_plan_that_was_behind_by_its_parts_when_it_was_committed_is_not_called_slow_for_it() -> None:
    costs = make_costs(0, exits=3, head=0.01)
    behind = Exits(cuts=(), thresholds=())  # which was faster end to end, say
    assert retime(costs, replace(costs, itm=scale_times(costs.itm, 0.5)), behind).still_fastest
    slower = with_heads(make_costs(0, exits=3, head=0.01), 20.0)
    assert retime(costs, slower, behind).still_fastest
    assert not retime(slower, costs, behind).still_fastest
