"""Operating points of a search: tolerance against latency over the whole range, one search per tolerance.

Latency is the time that the objective minimises: of the mean query, its 99th percentile, or of a whole batch.

A plan that keeps ``1 - t`` of the metric keeps every larger tolerance as well. So the operating point at a tolerance
is the best of the plans that the search found at this tolerance *or at a smaller one*: a larger tolerance never
gives a worse expected plan, even where the search itself would (the paper's greedy search spends its budget at the
first exit, and may then end worse with more of it). ``found_at`` is the tolerance at which a point's plan was found,
and ``searched_ms`` the time of the plan that the search by itself gives at the point's tolerance.

A point is *efficient* (non-dominated, on the Pareto front) when no other point keeps at least as much of the metric in
at most as much time, with one of the two strictly better.

Pure: the search is a callable, and nothing is merged, compiled or timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from artifacts import InputError, NoPlanError, Trace
from planner.predict.objectives import MEAN, check_objective, objective_ms, time_ms
from planner.predict.replay import NO_EXITS, PricedExits
from planner.search.problem import SearchResult

LEVELS = (
    0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
)  # fmt: skip

SearchAt = Callable[[float], SearchResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """The plan to run at one tolerance; times are expected ones, in milliseconds, metrics those of the trace.

    Attributes:
        tolerance: allowed relative loss of the metric.
        exits: cuts, in the order of the data flow; none for the plan without exits.
        thresholds: one per exit.
        leaving_shares: share of all samples that leaves at each exit, last at the final head.
        metric: mean metric of the plan.
        metric_ratio: of the full network's.
        mean_ms: of the mean query.
        batch_ms: until the last answer of a batch.
        p99_ms: the time that 99 % of the queries do not exceed; ``None`` where that is not the objective.
        speedup: the full network's time over the plan's, by the objective.
        found_at: the tolerance whose search found this plan; never above ``tolerance``.
        searched_ms: the objective's time of the plan that the search at this tolerance gives by itself.
        efficient: whether no other point is better.
    """

    tolerance: float
    exits: tuple[str, ...]
    thresholds: tuple[float, ...]
    leaving_shares: tuple[float, ...]
    metric: float
    metric_ratio: float
    mean_ms: float
    batch_ms: float
    p99_ms: float | None
    speedup: float
    found_at: float
    searched_ms: float
    efficient: bool

    @property
    def label(self) -> str:
        """The exits and thresholds in words."""
        pairs = zip(self.exits, self.thresholds, strict=True)
        return ", ".join(f"{cut} >= {threshold:.3g}" for cut, threshold in pairs) or "no exits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A tolerance at which the search gave no plan, and the reason."""

    tolerance: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The operating points of one search, by ascending tolerance.

    Attributes:
        objective: one of ``OBJECTIVES``: the time by which points are compared.
        full_metric: mean metric of the full network on the trace.
        full_ms: the full network's time, by the objective.
        points: one per tolerance at which there is a plan.
        refused: the other tolerances.
    """

    objective: str
    full_metric: float
    full_ms: float
    points: tuple[OperatingPoint, ...]
    refused: tuple[Refusal, ...] = ()

    def time_ms(self, point: OperatingPoint) -> float:
        """Returns the objective's time of a point, in milliseconds."""
        return time_ms(point, self.objective)


def sweep_levels(trace: Trace, levels: Sequence[float] = LEVELS) -> tuple[float, ...]:
    """Returns the tolerances of the whole range: from 0 to the first at which all samples may leave anywhere.

    Args:
        trace: decides how much is lost at most, when all samples leave at the worst candidate.
        levels: the tolerances to choose from, ascending.
    """
    if not trace.exits or trace.full_metric == 0:
        return tuple(levels[:1])
    most = 1 - float(trace.metric[:-1].mean(axis=1, dtype="float64").min()) / trace.full_metric
    enough = next((index for index, level in enumerate(levels) if level >= most), len(levels) - 1)
    return tuple(levels[: enough + 1])


def sweep_tolerances(
    search: SearchAt, tolerances: Iterable[float], *, full_metric: float, objective: str = MEAN
) -> Sweep:
    """Searches at every tolerance.

    Args:
        search: tolerance -> the result of the search there; its first considered plan is the best one, and the one
            without exits is among the others.
        tolerances: strictly ascending, in [0, 1).
        full_metric: mean metric of the full network, above 0.
        objective: the time that the search minimises.

    Raises:
        InputError: the tolerances do not ascend, or there are none.
        UsageError: there is no such objective, or it is the percentile and the search did not compute it.
        NoPlanError: no tolerance has a plan; the reason is that of the largest.
    """
    check_objective(objective)
    found: list[OperatingPoint] = []
    refused: list[Refusal] = []
    full_ms, before = 0.0, -math.inf
    for tolerance in tolerances:
        if not (0 <= tolerance < 1 and before < tolerance):
            raise InputError(f"tolerances of a sweep must ascend within [0, 1); {tolerance:g} does not")
        before = tolerance
        try:
            result = search(tolerance)
        except NoPlanError as error:
            refused.append(Refusal(tolerance=tolerance, reason=str(error)))
            continue
        none = next(plan.priced for plan in result.considered if plan.exits == NO_EXITS)
        full_ms = time_ms(none.times, objective)
        point = describe_point(result.best, tolerance, full_metric=full_metric, full_ms=full_ms, objective=objective)
        if found and objective_ms(found[-1], objective) < objective_ms(point, objective):
            point = replace(found[-1], tolerance=tolerance, searched_ms=point.searched_ms)
        found.append(point)
    if not found:
        raise NoPlanError(refused[-1].reason) if refused else InputError("a sweep needs at least one tolerance")
    return Sweep(
        objective=objective,
        full_metric=full_metric,
        full_ms=full_ms,
        points=mark_efficient(found, objective),
        refused=tuple(refused),
    )


def describe_point(
    priced: PricedExits, tolerance: float, *, full_metric: float, full_ms: float, objective: str
) -> OperatingPoint:
    """Returns the operating point for the plan that a search found at a tolerance; not yet marked as efficient."""
    spent_ms = time_ms(priced.times, objective)
    return OperatingPoint(
        tolerance=tolerance,
        exits=priced.exits.cuts,
        thresholds=priced.exits.thresholds,
        leaving_shares=priced.outcome.shares,
        metric=priced.outcome.metric,
        metric_ratio=priced.outcome.metric / full_metric,
        mean_ms=priced.times.mean_ms,
        batch_ms=priced.times.batch_ms,
        p99_ms=priced.times.p99_ms,
        speedup=full_ms / spent_ms,
        found_at=tolerance,
        searched_ms=spent_ms,
        efficient=False,
    )


def mark_efficient(points: Sequence[OperatingPoint], objective: str) -> tuple[OperatingPoint, ...]:
    """Returns the points with ``efficient`` set on those that no other dominates by metric and objective."""
    return tuple(
        replace(point, efficient=not any(_dominates(other, point, objective) for other in points)) for point in points
    )


def _dominates(point: OperatingPoint, other: OperatingPoint, objective: str) -> bool:
    point_ms, other_ms = objective_ms(point, objective), objective_ms(other, objective)
    no_worse = point.metric >= other.metric and point_ms <= other_ms
    return no_worse and (point.metric > other.metric or point_ms < other_ms)
