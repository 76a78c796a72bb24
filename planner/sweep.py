"""Tolerance against latency over the whole range: one search per tolerance, with what it found as an operating point.

A plan that keeps ``1 - t`` of the metric keeps every larger tolerance as well. So the operating point at a tolerance
is the best of the plans that the search found at this tolerance *or at a smaller one*: a larger tolerance never
gives a worse expected plan, even where the search itself would (the paper's greedy search spends its budget at the
first exit, and then may end worse with more of it). ``found_at`` says which tolerance a point's plan was found at, and
``searched_mean_ms`` what the search by itself answers there.

A point is *efficient* (non-dominated, on the Pareto front) when no other point keeps at least as much of the metric in
at most as much time, with one of the two strictly better.

Pure: the search is a callable, and nothing is merged, compiled or timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from artifacts import InputError, NoPlanError, Trace
from planner.evaluate import PlanFigures
from planner.greedy import SearchResult

LEVELS = (
    0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
)  # fmt: skip

SearchAt = Callable[[float], SearchResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """What to run at one tolerance; times are expected ones, in milliseconds, metrics those of the trace.

    Attributes:
        tolerance: allowed relative loss of the metric.
        exits: cuts, in the order of the data flow; none for the plan without exits.
        thresholds: theirs.
        leaving_shares: share of all samples that leaves at each exit, last at the final head.
        metric: mean metric of the plan.
        metric_ratio: of the full network's.
        mean_ms: of the mean query.
        batch_ms: until the last answer of a batch.
        speedup: mean latency of the full network over ``mean_ms``.
        found_at: the tolerance whose search found this plan; never above ``tolerance``.
        searched_mean_ms: ``mean_ms`` of what the search at this tolerance answers by itself.
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
    speedup: float
    found_at: float
    searched_mean_ms: float
    efficient: bool

    @property
    def label(self) -> str:
        """The exits and thresholds in words."""
        pairs = zip(self.exits, self.thresholds, strict=True)
        return ", ".join(f"{cut} >= {threshold:.3g}" for cut, threshold in pairs) or "no exits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A tolerance at which the search gave no plan, and why."""

    tolerance: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The operating points of one search, by ascending tolerance.

    Attributes:
        full_metric: mean metric of the full network on the trace.
        full_ms: the full network, whose every query waits for the whole batch.
        points: one per tolerance at which there is a plan.
        refused: the other tolerances.
    """

    full_metric: float
    full_ms: float
    points: tuple[OperatingPoint, ...]
    refused: tuple[Refusal, ...] = ()


def sweep_levels(trace: Trace, levels: Sequence[float] = LEVELS) -> tuple[float, ...]:
    """Returns the tolerances of the whole range: from 0 to the first at which everybody may leave anywhere.

    Args:
        trace: says how much is lost at most, when all samples leave at the worst candidate.
        levels: ascending, what to choose from.
    """
    if not trace.exits or trace.full_metric == 0:
        return tuple(levels[:1])
    most = 1 - float(trace.metric[:-1].mean(axis=1, dtype="float64").min()) / trace.full_metric
    enough = next((index for index, level in enumerate(levels) if level >= most), len(levels) - 1)
    return tuple(levels[: enough + 1])


def sweep_tolerances(search: SearchAt, tolerances: Iterable[float], *, full_metric: float) -> Sweep:
    """Searches at every tolerance.

    Args:
        search: tolerance -> what the search found; the first considered plan is its answer.
        tolerances: strictly ascending, in [0, 1).
        full_metric: mean metric of the full network, above 0.

    Raises:
        InputError: the tolerances do not ascend, or there are none.
        NoPlanError: no tolerance has a plan; the reason is that of the largest.
    """
    found: list[OperatingPoint] = []
    refused: list[Refusal] = []
    full_ms, before = 0.0, -math.inf
    for tolerance in tolerances:
        if not (0 <= tolerance < 1 and before < tolerance):
            raise InputError(f"tolerances of a sweep must ascend within [0, 1); {tolerance:g} does not")
        before = tolerance
        try:
            best = search(tolerance).best
        except NoPlanError as error:
            refused.append(Refusal(tolerance=tolerance, reason=str(error)))
            continue
        full_ms = best.full_ms
        point = describe_point(best, tolerance, full_metric=full_metric)
        if found and found[-1].mean_ms < point.mean_ms:
            point = replace(found[-1], tolerance=tolerance, searched_mean_ms=point.mean_ms)
        found.append(point)
    if not found:
        raise NoPlanError(refused[-1].reason) if refused else InputError("a sweep needs at least one tolerance")
    return Sweep(full_metric=full_metric, full_ms=full_ms, points=mark_efficient(found), refused=tuple(refused))


def describe_point(figures: PlanFigures, tolerance: float, *, full_metric: float) -> OperatingPoint:
    """Returns the operating point for the plan that a search found at a tolerance; not yet marked as efficient."""
    return OperatingPoint(
        tolerance=tolerance,
        exits=figures.chosen.cuts,
        thresholds=figures.chosen.thresholds,
        leaving_shares=figures.outcome.shares,
        metric=figures.outcome.metric,
        metric_ratio=figures.outcome.metric / full_metric,
        mean_ms=figures.times.mean_ms,
        batch_ms=figures.times.batch_ms,
        speedup=figures.full_ms / figures.times.mean_ms,
        found_at=tolerance,
        searched_mean_ms=figures.times.mean_ms,
        efficient=False,
    )


def mark_efficient(points: Sequence[OperatingPoint]) -> tuple[OperatingPoint, ...]:
    """Returns the points with ``efficient`` set on those that no other dominates."""
    return tuple(replace(one, efficient=not any(_dominates(other, one) for other in points)) for one in points)


def _dominates(one: OperatingPoint, other: OperatingPoint) -> bool:
    at_least = one.metric >= other.metric and one.mean_ms <= other.mean_ms
    return at_least and (one.metric > other.metric or one.mean_ms < other.mean_ms)
