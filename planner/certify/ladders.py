"""Searches as ladders: one plan per tolerance, for certified planning and for validation. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from artifacts import Trace, unknown_name
from planner.certify.test_order import Ladder, Price
from planner.predict.costs import NetworkCosts, expect_mean_ms, expect_times
from planner.predict.replay import ChosenExits, evaluate_exits
from planner.search.greedy import KnownPlans, TailRule, plan_greedy
from planner.search.joint import plan_ladder, survey_ladder
from planner.search.prices import MEAN, P99, objective_ms
from planner.search.threshold_grids import KeptGrids, threshold_grid

LADDERS = ("joint", "joint survey", "greedy")


def make_ladder(
    search: str,
    costs: NetworkCosts,
    *,
    step: float,
    tail: TailRule,
    objective: str = MEAN,
    max_exits: int | None = None,
) -> Ladder:
    """Returns a search as a ladder.

    Args:
        search: one of ``LADDERS``; ``joint survey`` is the coarse part of the joint search alone.
        costs: the prices of the stages.
        step: distance of the greedy search's thresholds.
        tail: the tail rule.
        objective: what the joint search makes small.
        max_exits: the most exits of the joint search's plans.

    Raises:
        UsageError: there is no such search.
    """
    thresholds = threshold_grid(step)

    def greedily(trace: Trace, tolerances: Sequence[float]) -> list[ChosenExits]:
        kept, known = KeptGrids(thresholds=thresholds), KnownPlans()
        found = [plan_greedy(trace, costs, tolerance=one, kept=kept, tail=tail, known=known) for one in tolerances]
        return [one.best.chosen for one in found]

    def jointly(trace: Trace, tolerances: Sequence[float]) -> list[ChosenExits]:
        kept = KeptGrids(thresholds=thresholds)
        found = plan_ladder(trace, costs, tolerances, objective=objective, max_exits=max_exits, tail=tail, kept=kept)
        return [one.best.chosen for one in found]

    def by_survey(trace: Trace, tolerances: Sequence[float]) -> list[ChosenExits]:
        return survey_ladder(trace, costs, tolerances, most_exits=3 if max_exits is None else max_exits, tail=tail)

    ladders = dict(zip(LADDERS, (jointly, by_survey, greedily), strict=True))
    if search not in ladders:
        raise unknown_name("search", search, LADDERS)
    return ladders[search]


def make_price(costs: NetworkCosts, *, objective: str = MEAN) -> Price:
    """Returns what a plan is expected to cost on a trace by an objective, in milliseconds."""

    def price(trace: Trace, plan: ChosenExits) -> float:
        survival = evaluate_exits(trace, plan).survival
        if objective == MEAN:
            return expect_mean_ms(costs.plan_costs(plan.cuts), survival, costs.load)
        times = expect_times(costs.plan_costs(plan.cuts), survival, costs.load, percentile=objective == P99)
        return objective_ms(times, objective)

    return price
