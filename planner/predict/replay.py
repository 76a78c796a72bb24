"""Replay: what exits and thresholds do on a trace, and how long that takes by an inference time matrix. Pure.

A sample leaves at the first exit of the plan whose confidence is at least the threshold. Both are float32 there, as in
the runtime: a threshold is rounded to float32 before it is compared, and stored as the rounded value.

A plan grows in three steps: ``Exits`` (cuts and thresholds), ``PricedExits`` (with what they do on a trace and how
long that takes), ``artifacts.ExitPlan`` (stored).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import InputError, PlannedExit, PredictedLatency, Trace, find_first_true, unknown_name
from planner.predict.costs import ChainTimes, NetworkCosts, expect_mixture, expect_times, record_times
from planner.predict.lengths import LengthCosts, batch_places, split_by_length
from planner.predict.objectives import MEAN, P99, objective_ms
from planner.predict.survivors import count_survivors
from planner.predict.traffic import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Exits:
    """Exits in the order of the data flow, with their thresholds; none of them for the plan without exits.

    Thresholds are rounded to float32 on the way in.
    """

    cuts: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.cuts) != len(self.thresholds) or len(set(self.cuts)) != len(self.cuts):
            raise InputError(f"exits: {self.cuts} with thresholds {self.thresholds} do not belong together")
        object.__setattr__(self, "thresholds", tuple(float(np.float32(t)) for t in self.thresholds))

    def extended(self, cut: str, threshold: float) -> Exits:
        """Returns these exits and one more behind them."""
        return Exits(cuts=(*self.cuts, cut), thresholds=(*self.thresholds, threshold))


NO_EXITS = Exits()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Where the samples of a trace leave under a plan of K exits, and how good the answers are.

    Attributes:
        leaves_at: (N,) int64, position of the exit in the plan; K for the final head.
        shares: K + 1 shares of all samples, last the final head's.
        metrics: K + 1 mean metrics of the samples that leave there; ``None`` where none does.
        survival: K + 1 shares of all samples that enter each stage; the first is 1.
        metric: mean metric of all samples.
    """

    leaves_at: np.ndarray
    shares: tuple[float, ...]
    metrics: tuple[float | None, ...]
    survival: tuple[float, ...]
    metric: float


def exit_rows(trace: Trace, cuts: Sequence[str]) -> list[int]:
    """Returns the rows of the trace for some exits.

    Raises:
        UsageError: the trace has no such exit.
        InputError: they are not in the order of the data flow.
    """
    for cut in cuts:
        if cut not in trace.exits:
            raise unknown_name("exit of the trace", cut, trace.exits)
    rows = [trace.exits.index(cut) for cut in cuts]
    if rows != sorted(set(rows)):
        raise InputError(f"exits {list(cuts)} are not in the order of the data flow: {list(trace.exits)}")
    return rows


def find_answers(trace: Trace, exits: Exits) -> np.ndarray:
    """Returns for each sample the row of the trace that answers it under a plan: (N,) int64."""
    rows = exit_rows(trace, exits.cuts)
    answers: np.ndarray = np.array([*rows, len(trace.exits)])[_leave(trace, rows, exits)]
    return answers


def evaluate_exits(trace: Trace, exits: Exits) -> Outcome:
    """Sends every sample of a trace through the exits of a plan."""
    rows = exit_rows(trace, exits.cuts)
    return _describe_outcome(trace, rows, _leave(trace, rows, exits))


def evaluate_oracle(trace: Trace, exits: Exits) -> Outcome:
    """Sends every sample out at the first exit that answers as the final head does, whatever its confidence."""
    rows = exit_rows(trace, exits.cuts)
    return _describe_outcome(trace, rows, find_first_true(trace.agrees[rows]))


def _leave(trace: Trace, rows: list[int], exits: Exits) -> np.ndarray:
    return find_first_true(trace.confidence[rows] >= np.array(exits.thresholds, np.float32)[:, None])


def _describe_outcome(trace: Trace, rows: list[int], leaves_at: np.ndarray) -> Outcome:
    stages, samples = len(rows) + 1, trace.sample_count
    metric = trace.metric[[*rows, -1]][leaves_at, np.arange(samples)].astype(np.float64)
    counts = np.bincount(leaves_at, minlength=stages)
    sums = np.bincount(leaves_at, weights=metric, minlength=stages)
    entering = samples - np.concatenate([[0], np.cumsum(counts)[:-1]])
    return Outcome(
        leaves_at=leaves_at,
        shares=tuple((counts / samples).tolist()),
        metrics=tuple(float(total / n) if n else None for total, n in zip(sums, counts, strict=True)),
        survival=tuple((entering / samples).tolist()),
        metric=float(metric.mean()),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PricedExits:
    """The exits of a plan with what they do on a trace and how long that takes.

    Attributes:
        exits: cuts and thresholds.
        outcome: on the trace.
        times: expected for batches drawn at random.
        recorded: the same for the trace's own batches in order, all of the largest size.
        oracle_mean_ms: mean latency if every query left at the first exit that agrees with the final head.
        full_ms: the mean query of the whole network.
    """

    exits: Exits
    outcome: Outcome
    times: ChainTimes
    recorded: ChainTimes
    oracle_mean_ms: float
    full_ms: float

    def planned_exits(self) -> tuple[PlannedExit, ...]:
        """Returns the exits as an exit plan lists them."""
        return tuple(
            PlannedExit(cut=cut, threshold=threshold, leaving_share=share, metric=metric, arrival_ms=arrival)
            for cut, threshold, share, metric, arrival in zip(
                self.exits.cuts, self.exits.thresholds, self.outcome.shares, self.outcome.metrics,
                self.times.arrival_ms, strict=False,
            )
        )  # fmt: skip

    def predicted_latency(self) -> PredictedLatency:
        """Returns the times as an exit plan lists them."""
        return PredictedLatency(
            full_ms=self.full_ms, mean_ms=self.times.mean_ms, batch_ms=self.times.batch_ms,
            oracle_mean_ms=self.oracle_mean_ms, p99_ms=self.times.p99_ms,
        )  # fmt: skip


def price_exits(trace: Trace, exits: Exits, costs: NetworkCosts, *, percentile: bool = False) -> PricedExits:
    """Evaluates exits on a trace and prices them by the measured parts of the network.

    Args:
        trace: the samples.
        exits: of the plan.
        costs: the stages' costs; their load is planned for.
        percentile: work out the 99th percentile too, which takes longer than all else.
    """
    return evaluate_plan(
        trace, exits, costs.exact_costs(exits.cuts), full_ms=costs.full_ms, load=costs.load, percentile=percentile
    )


def evaluate_plan(
    trace: Trace, exits: Exits, costs: Sequence[np.ndarray] | LengthCosts, *, full_ms: float,
    load: Load | None = None, percentile: bool = False,
) -> PricedExits:  # fmt: skip
    """Evaluates K exits on a trace and prices them by the costs of their stages.

    Args:
        trace: the samples.
        exits: of the plan, K of them.
        costs: K + 1 arrays (B + 1,), the milliseconds of each stage for 0..B rows; of every length, where rows have
            several.
        full_ms: the mean query of the whole network.
        load: the batches that enter; when left out, all have B queries.
        percentile: work out the 99th percentile too, which takes longer than all else.
    """
    outcome, oracle = evaluate_exits(trace, exits), evaluate_oracle(trace, exits)
    batch_size = costs.batch_size if isinstance(costs, LengthCosts) else len(costs[0]) - 1
    load = load or Load.of(batch_size)
    survivors = count_survivors(outcome.leaves_at, exit_count=len(exits.cuts), batch_size=batch_size)
    if isinstance(costs, LengthCosts):
        recorded = record_times(costs.stacked(), survivors, batch_places(trace.lengths, costs.lengths, batch_size))
    else:
        recorded = record_times(costs, survivors)
    return PricedExits(
        exits=exits,
        outcome=outcome,
        times=_expect(trace, outcome, costs, load, percentile=percentile),
        recorded=recorded,
        oracle_mean_ms=_expect(trace, oracle, costs, load).mean_ms,
        full_ms=full_ms,
    )


def _expect(
    trace: Trace, outcome: Outcome, costs: Sequence[np.ndarray] | LengthCosts, load: Load, *, percentile: bool = False
) -> ChainTimes:
    if isinstance(costs, LengthCosts):
        parts = split_by_length(costs, outcome.leaves_at, trace.lengths, load)
        return expect_mixture(parts, load, percentile=percentile)
    return expect_times(costs, outcome.survival, load, percentile=percentile)


def expect_ms(trace: Trace, exits: Exits, costs: NetworkCosts, *, objective: str = MEAN) -> float:
    """Returns the value that an objective minimises, expected for exits on a trace, in milliseconds."""
    outcome = evaluate_exits(trace, exits)
    times = _expect(trace, outcome, costs.exact_costs(exits.cuts), costs.load, percentile=objective == P99)
    return objective_ms(times, objective)
