"""The result of a search before anything is measured: the plan, the baseline beside it, and the certificate."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from planner.config import CertifyConfig, PlanConfig, TimingConfig
from planner.predict.costs import head_row
from planner.search.rules import SlowBatchRule
from planner.search.threshold_grids import KeptGrids, threshold_grid
from planner.workflow.searching import make_problem, search_plans
from tests.planner.planning_worlds import make_costs, make_trace, search_greedily

SIZES = (1, 2, 4, 8)


@pytest.mark.parametrize("method", ["ltt", "none"])
def test_plan_of_the_greedy_search_stands_beside_one_with_fewer_exits(method: str) -> None:
    """The greedy search knows no limit on the exits: its plan is there to compare, and may not win."""
    trace, costs = make_trace(7, exits=4, samples=4000), make_costs(1, exits=4, head=0.02)
    rule = SlowBatchRule(share=0.0, stay_allowance=None)
    config = PlanConfig(
        tolerance=0.2, batch_size=8, max_exits=1, tail=rule, certify=CertifyConfig(method=method),
        timing=TimingConfig(batch_sizes=SIZES),
    )  # fmt: skip
    grids = KeptGrids(thresholds=threshold_grid())
    assert len(search_greedily(trace, costs, tolerance=0.2, grids=grids, slow_batches=rule).best.exits.cuts) > 1
    said: list[str] = []
    problem = make_problem(trace, costs, config, grids)
    result, certified = search_plans(problem, config.search, config.certify, said.append)
    assert (certified is None) == (method == "none")
    assert any("by the greedy search" in line for line in said)
    assert len(result.best.exits.cuts) == 1
    (beside,) = [plan for plan in result.considered if plan.exits == result.baseline]
    if method == "none":
        assert len(beside.exits.cuts) > 1
        assert not beside.allowed
    assert all(len(plan.exits.cuts) <= 1 for plan in result.considered if plan.allowed)


@pytest.mark.parametrize(("allowance", "words"), [(0.0, "lets no exit in"), (0.02, "keeps out an exit")])
def test_a_stay_allowance_that_keeps_a_good_exit_out_says_what_it_costs(allowance: float, words: str) -> None:
    trace, even = make_trace(7, exits=4, samples=4000), make_costs(1, exits=4, head=0.02, seam=0.0)
    dear = {head_row("cut0"): tuple(10 * ms for ms in even.itm.row_ms(head_row("cut0")))}
    costs = replace(even, itm=replace(even.itm, median_ms={**even.itm.median_ms, **dear}))

    def plan(allowance: float | None, tolerance: float = 0.3) -> tuple[tuple[str, ...], list[str]]:
        config = PlanConfig(
            tolerance=tolerance, batch_size=8, tail=SlowBatchRule(share=0.0, stay_allowance=allowance),
            certify=CertifyConfig(method="none"), timing=TimingConfig(batch_sizes=SIZES),
        )  # fmt: skip
        said: list[str] = []
        problem = make_problem(trace, costs, config, KeptGrids(thresholds=threshold_grid()))
        result, _ = search_plans(problem, config.search, config.certify, said.append)
        return result.best.exits.cuts, [line for line in said if "note: --stay-allowance" in line]

    cuts, (hint,) = plan(allowance)
    assert bool(cuts) == (words == "keeps out an exit")
    told = re.search(
        words + r"\. With --stay-allowance (\S+) an exit at (\S+) would take the mean latency from (\S+) to (\S+) ms",
        hint,
    )
    assert told is not None
    assert float(told[4]) < float(told[3])
    better, hints = plan(float(told[1]))
    assert told[2] in better
    assert told[2] not in cuts
    assert hints == []
    assert plan(0.0, tolerance=0.0) == ((), []), "no exit would help there, whatever it may cost"
