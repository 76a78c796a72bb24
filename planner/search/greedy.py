"""Greedy search of the PAME paper (ICS'22), complete: ``--search greedy``, the baseline.

1. *Precision-aware candidate configuration.* Per candidate, every threshold of a grid is tried. Those that keep the
   overall metric at ``(1 - tolerance) * full`` or above are allowed; of them the one with the lowest move-on ratio is
   taken (the higher, more careful threshold where two are equal). The grid is kept
   (``planner.search.threshold_grids``).
2. *First exit*: the candidate with the least expected time (BPM x ITM, ``planner.predict.costs``; the time of the mean
   query), subject to the slow-batch rule.
3. *Slow-batch rule*. The break-even of an exit is the largest survivor count ``n`` at which the batch, exit taken, is
   done within ``(1 + allowance)`` of the full network's time: ``c_1(B) + c_2(m) <= (1 + allowance) * full`` for every
   ``m <= n``. The share of batches whose survivor count does not exceed it, by the BPM, must reach ``share``. (The
   paper's own rule has no allowance; without one no row may ever leave a batch of 1, where any query that stays pays
   for the exit's head.)
4. *Further exits.* The chosen ones stay. With ``M`` the metric to keep, ``moveon`` the share that went on and
   ``acc_exit`` the metric of the samples that left, those that move on have the residual budget

       M' = (M * (1 - tolerance) - acc_exit * (1 - moveon)) / moveon,

   and the later candidates are configured on these samples against it. The one with the least expected time is added,
   and so on until none lowers the expected time. The slow-batch rule binds the first exit, as in the paper.

One rule is ours: a plan whose batches cost more than ``(1 + stay_allowance)`` times the full network when *no row*
leaves is not allowed, so that hard batches never pay for the heads and gathers on their way by more than that.

The plan without exits competes: no plan is returned above it that is not expected to be faster. The paper's own known
fault, that the first exit takes the boldest threshold and spends the whole budget, is kept on purpose: this is the
baseline.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.predict.objectives import MEAN
from planner.predict.replay import NO_EXITS, Exits, price_exits
from planner.predict.survivors import BatchingPatternMatrix, draw_patterns
from planner.search.problem import ROUNDING, SearchedPlan, SearchProblem, SearchResult, rank_plans
from planner.search.threshold_grids import ThresholdGrid

EvaluatedPlans = dict[Exits, SearchedPlan]  # they do not depend on the tolerance


def plan_greedy(problem: SearchProblem) -> tuple[SearchResult, ...]:
    """Searches exits and thresholds as the paper does: for the mean latency, with any number of exits.

    Args:
        problem: its objective and its limit on the exits do not count.

    Returns:
        One result per tolerance, in the order of the problem's.
    """
    evaluated: EvaluatedPlans = {}
    return tuple(_search(problem, tolerance, evaluated) for tolerance in problem.tolerances)


def _search(problem: SearchProblem, tolerance: float, evaluated: EvaluatedPlans) -> SearchResult:
    best = price_exits(problem.trace, NO_EXITS, problem.costs)
    considered = [SearchedPlan(priced=best, path=True)]
    while True:
        step = _consider_next(problem, best.exits, tolerance, evaluated)
        faster = [plan for plan in step if plan.allowed and plan.priced.times.mean_ms < best.times.mean_ms]
        taken = min(faster, key=lambda plan: plan.priced.times.mean_ms, default=None)
        considered += [replace(plan, path=plan is taken) for plan in step]
        if taken is None:
            break
        best = taken.priced
    return SearchResult(considered=tuple(rank_plans(considered, MEAN)))


def configure_candidates(grid: ThresholdGrid, required: float) -> list[int]:
    """Returns for each candidate the threshold to take: (E,) positions in the grid, -1 where none is allowed or useful.

    Args:
        grid: candidate x threshold over the samples that come this far.
        required: the mean metric that these samples must keep.
    """
    allowed = (grid.overall_metric >= required - ROUNDING) & (grid.leaving > 0)
    move_on = np.where(allowed, grid.move_on, np.inf)
    lowest = grid.thresholds.size - 1 - move_on[:, ::-1].argmin(axis=1)
    return [int(t) if allowed[row, t] else -1 for row, t in enumerate(lowest)]


def residual_budget(required: float, *, leaver_metric: float, move_on: float) -> float:
    """Returns the mean metric that the samples that move on must keep, the paper's M'.

    Args:
        required: the mean metric that all that arrived must keep.
        leaver_metric: of those that leave.
        move_on: share of those that arrived and go on; above 0.
    """
    return (required - leaver_metric * (1 - move_on)) / move_on


def _required_metric(problem: SearchProblem, exits: Exits, tolerance: float) -> float | None:
    """Applies the residual budget exit by exit; ``None`` when no sample comes past the chosen exits."""
    required, prefix = problem.trace.full_metric * (1 - tolerance), NO_EXITS
    for cut, threshold in zip(exits.cuts, exits.thresholds, strict=True):
        grid = problem.grids.grid(problem.trace, prefix)
        row = problem.trace.exits.index(cut)
        column = int(np.searchsorted(grid.thresholds, np.float32(threshold)))
        move_on, leaver_metric = float(grid.move_on[row, column]), float(grid.leaver_metric[row, column])
        if move_on == 0:
            return None
        required = residual_budget(required, leaver_metric=leaver_metric, move_on=move_on)
        prefix = prefix.extended(cut, threshold)
    return required


def _consider_next(
    problem: SearchProblem, chosen: Exits, tolerance: float, evaluated: EvaluatedPlans
) -> list[SearchedPlan]:
    """Returns the plans with one more exit behind the chosen ones, one per candidate that keeps the budget."""
    required = _required_metric(problem, chosen, tolerance)
    if required is None:
        return []
    grid = problem.grids.grid(problem.trace, chosen)
    found = []
    for cut, column in zip(problem.trace.exits, configure_candidates(grid, required), strict=True):
        if column < 0:
            continue
        plan = chosen.extended(cut, float(grid.thresholds[column]))
        if plan not in evaluated:
            evaluated[plan] = _evaluate(problem, plan)
        found.append(evaluated[plan])
    return found


def _evaluate(problem: SearchProblem, exits: Exits) -> SearchedPlan:
    priced = price_exits(problem.trace, exits, problem.costs)
    share = problem.share_in_time(priced)
    allowed = problem.keeps_time(share) and problem.allows_staying(exits.cuts)
    return SearchedPlan(priced=priced, in_time_share=share, allowed=allowed)


def draw_candidate_patterns(problem: SearchProblem, tolerance: float) -> BatchingPatternMatrix:
    """Returns the BPM of the candidates, each by itself, as configured for the first exit at a tolerance."""
    trace, grid = problem.trace, problem.grids.grid(problem.trace, NO_EXITS)
    columns = configure_candidates(grid, trace.full_metric * (1 - tolerance))
    rows = [row for row, column in enumerate(columns) if column >= 0]
    thresholds = grid.thresholds[[columns[row] for row in rows]]
    return draw_patterns(
        trace.confidence[rows] >= thresholds[:, None], exits=tuple(trace.exits[row] for row in rows),
        thresholds=thresholds, batch_size=problem.costs.batch_size,
    )  # fmt: skip
