"""The search of the PAME paper (ICS'22), complete: ``--search greedy``.

1. *Precision-aware candidate configuration.* Per candidate, every threshold of a grid is tried. Those that keep the
   overall metric at ``(1 - tolerance) * full`` or above are allowed; of them the one with the lowest move-on ratio is
   taken (the higher, more careful threshold where two are equal). The grid is kept
   (``planner.search.threshold_grids``).
2. *First exit*: the candidate with the least expected time (BPM x ITM, ``planner.predict.costs``; the time of the mean
   query), subject to the tail rule.
3. *Tail rule*. The break-even of an exit is the largest survivor count ``n`` at which the batch, exit taken, is done
   within ``(1 + allowance)`` of the full network's time: ``c_1(B) + c_2(m) <= (1 + allowance) * full`` for every ``m
   <= n``. The share of batches whose survivor count does not exceed it, by the BPM, must reach ``share``. (The
   paper's own rule has no allowance; without one nothing may ever leave a batch of 1, where any query that stays pays
   for the exit's head.)
4. *Further exits.* The chosen ones stay. With ``M`` the metric to keep, ``moveon`` the share that went on and
   ``acc_exit`` the metric of those that left, the samples that move on have the residual budget

       M' = (M * (1 - tolerance) - acc_exit * (1 - moveon)) / moveon,

   and the later candidates are configured on these samples against it. The one with the least expected time is added,
   and so on until none lowers the expected time. The tail rule binds the first exit, as in the paper.

One rule is ours: a plan whose batches cost more than ``(1 + stay_allowance)`` times the full network when *nobody*
leaves is not allowed, so that hard batches never pay for the heads and gathers on their way by more than that.

The plan without exits competes: nothing is returned above it that is not expected to be faster. The paper's own known
fault, that the first exit takes the boldest threshold and eats the whole budget, is kept on purpose: this is the
baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from artifacts import Certificate, NoPlanError, Trace, UsageError
from planner.predict.costs import NetworkCosts
from planner.predict.replay import NO_EXITS, ChosenExits, PlanFigures, evaluate_plan
from planner.predict.survivors import BatchingPatternMatrix, binomial_pmf, draw_patterns
from planner.search.threshold_grids import KeptGrids, ThresholdGrid

ROUNDING = 1e-9  # of a mean metric or a share that is compared with a bound


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRule:
    """How many batches must not be slower than the full network.

    Attributes:
        share: of the batches, in [0, 1].
        allowance: relative excess over the full network's time that counts as not slower.
        stay_allowance: relative excess over the full network's time that a batch may cost which nobody leaves;
            ``None``: any, as in the paper.
    """

    share: float = 0.99
    allowance: float = 0.05
    stay_allowance: float | None = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"--tail-share {self.share}: expected a share of batches from 0 to 1")
        if not self.allowance >= 0:
            raise UsageError(f"--tail-allowance {self.allowance}: expected a number from 0, e.g. 0.05 for 5 %")
        if self.stay_allowance is not None and not 0 <= self.stay_allowance < np.inf:
            raise UsageError(f"--stay-allowance {self.stay_allowance}: expected a number from 0, e.g. 0.05 for 5 %")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Considered:
    """A plan that the search looked at.

    Attributes:
        figures: the plan and its numbers.
        step: how many exits it has.
        in_time_share: share of batches at or under the first exit's break-even; 1 without exits.
        allowed: whether the tail rule and the stay allowance let it win.
        path: whether it lies on the search's own way (a prefix of its result).
        p_value: of "its risk is above the tolerance"; ``None`` where that was not tested.
        certificate: what is guaranteed; ``None`` without.
    """

    figures: PlanFigures
    step: int
    in_time_share: float
    allowed: bool
    path: bool
    p_value: float | None = None
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchResult:
    """What a search found.

    Attributes:
        considered: all plans that it looked at, allowed ones first, then by expected mean latency; the first is the
            answer.
        patterns: the BPM of the candidates as configured for the first exit.
        reference: a plan to measure beside the best ones: the greedy search's, when another search was asked.
    """

    considered: tuple[Considered, ...]
    patterns: BatchingPatternMatrix
    reference: ChosenExits | None = None

    @property
    def best(self) -> PlanFigures:
        return self.considered[0].figures


KnownPlans = dict[ChosenExits, Considered]


def plan_greedy(
    trace: Trace,
    costs: NetworkCosts,
    *,
    tolerance: float,
    kept: KeptGrids,
    tail: TailRule | None = None,
    known: KnownPlans | None = None,
) -> SearchResult:
    """Searches exits and thresholds as the paper does.

    Args:
        trace: the calibration data.
        costs: the stages' prices; its batch size is planned for.
        tolerance: allowed relative loss of the metric, in [0, 1).
        kept: the grids of this trace; what is missing is evaluated and added.
        tail: the tail rule; ``TailRule()`` when left out.
        known: plans that were evaluated before on this trace, by these costs and this rule, at other tolerances; new
            ones are added.

    Raises:
        UsageError: the tolerance lies outside [0, 1).
        NoPlanError: the full network's metric is 0, so that no loss can be related to it.
    """
    tail, known = tail or TailRule(), {} if known is None else known
    check_tolerance(tolerance, trace)
    none = evaluate_plan(trace, NO_EXITS, costs.plan_costs(()), full_ms=costs.full_ms, load=costs.load)
    chosen, best = NO_EXITS, none
    considered = [Considered(figures=none, step=0, in_time_share=1.0, allowed=True, path=True)]
    while True:
        step = _consider_next(trace, costs, chosen, tolerance=tolerance, kept=kept, tail=tail, known=known)
        faster = [one for one in step if one.allowed and one.figures.times.mean_ms < best.times.mean_ms]
        taken = min(faster, key=lambda one: one.figures.times.mean_ms, default=None)
        considered += [replace(one, path=one is taken) for one in step]
        if taken is None:
            break
        chosen, best = taken.figures.chosen, taken.figures
    ranked = sorted(considered, key=lambda one: (not one.allowed, one.figures.times.mean_ms, one.step))
    return SearchResult(considered=tuple(ranked), patterns=_candidate_patterns(trace, costs, tolerance, kept))


def check_tolerance(tolerance: float, trace: Trace) -> None:
    """Refuses a tolerance outside [0, 1) and a trace on which no relative loss is defined."""
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance {tolerance}: expected a relative loss from 0 to below 1, e.g. 0.01 to keep 99 %")
    if trace.full_metric == 0:
        raise NoPlanError(
            "the full network answers none of the calibration samples correctly (metric 0), so that a relative "
            "tolerance has no meaning. Check the weights and the data: python -m calibration --verbose"
        )


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
    """Returns the mean metric that those who move on must keep, the paper's M'.

    Args:
        required: the mean metric that all who arrived must keep.
        leaver_metric: of those that leave.
        move_on: share of those that arrived and go on; above 0.
    """
    return (required - leaver_metric * (1 - move_on)) / move_on


def _required_metric(trace: Trace, chosen: ChosenExits, tolerance: float, kept: KeptGrids) -> float | None:
    """Applies the residual budget exit by exit; ``None`` when nobody comes past the chosen exits."""
    required, prefix = trace.full_metric * (1 - tolerance), NO_EXITS
    for cut, threshold in zip(chosen.cuts, chosen.thresholds, strict=True):
        grid = kept.grid(trace, prefix)
        row = trace.exits.index(cut)
        column = int(np.searchsorted(grid.thresholds, np.float32(threshold)))
        move_on, leaver_metric = float(grid.move_on[row, column]), float(grid.leaver_metric[row, column])
        if move_on == 0:
            return None
        required = residual_budget(required, leaver_metric=leaver_metric, move_on=move_on)
        prefix = prefix.extended(cut, threshold)
    return required


def _consider_next(
    trace: Trace,
    costs: NetworkCosts,
    chosen: ChosenExits,
    *,
    tolerance: float,
    kept: KeptGrids,
    tail: TailRule,
    known: KnownPlans,
) -> list[Considered]:
    required = _required_metric(trace, chosen, tolerance, kept)
    if required is None:
        return []
    grid = kept.grid(trace, chosen)
    found = []
    for cut, column in zip(trace.exits, configure_candidates(grid, required), strict=True):
        if column < 0:
            continue
        plan = chosen.extended(cut, float(grid.thresholds[column]))
        if plan not in known:
            known[plan] = _consider(trace, costs, plan, tail)
        found.append(known[plan])
    return found


def _consider(trace: Trace, costs: NetworkCosts, plan: ChosenExits, tail: TailRule) -> Considered:
    figures = evaluate_plan(trace, plan, costs.plan_costs(plan.cuts), full_ms=costs.full_ms, load=costs.load)
    share = share_in_time(costs, plan.cuts[0], figures.outcome.survival[1], allowance=tail.allowance)
    allowed = share >= tail.share - ROUNDING and staying_allowed(costs, plan.cuts, tail)
    return Considered(figures=figures, step=len(plan.cuts), in_time_share=share, allowed=allowed, path=False)


def staying_allowed(costs: NetworkCosts, exits: Sequence[str], tail: TailRule) -> bool:
    """Tells whether batches that nobody leaves cost no more than the stay allowance lets them."""
    return tail.stay_allowance is None or costs.stay_ms(exits) <= (1 + tail.stay_allowance) * costs.full_ms


def share_in_time(costs: NetworkCosts, first: str, survival: float, *, allowance: float) -> float:
    """Returns the share of batches whose survivor count does not exceed the break-even of their first exit."""
    head, rest = costs.plan_costs((first,))
    full = costs.stage_cost(None, None)
    total = 0.0
    for size, share in zip(costs.load.batch_sizes, costs.load.shares, strict=True):
        late = head[size] + rest[: size + 1] > (1 + allowance) * full[size]
        within = int(late.argmax()) if late.any() else len(late)
        total += share * float(binomial_pmf(size, survival)[:within].sum())
    return total


def _candidate_patterns(trace: Trace, costs: NetworkCosts, tolerance: float, kept: KeptGrids) -> BatchingPatternMatrix:
    grid = kept.grid(trace, NO_EXITS)
    columns = configure_candidates(grid, trace.full_metric * (1 - tolerance))
    rows = [row for row, column in enumerate(columns) if column >= 0]
    thresholds = grid.thresholds[[columns[row] for row in rows]]
    return draw_patterns(
        trace.confidence[rows] >= thresholds[:, None], exits=tuple(trace.exits[row] for row in rows),
        thresholds=thresholds, batch_size=costs.batch_size,
    )  # fmt: skip
