"""What a choice of exits and thresholds does on a trace, and how long it takes by an inference time matrix. Pure.

A sample leaves at the first chosen exit whose confidence is at least the threshold. Both are float32 there, as in the
runtime: a threshold is rounded to float32 before it is compared, and stored as the rounded value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import InputError, PlannedExit, PredictedLatency, Trace, unknown_name
from planner.predict.costs import ChainTimes, expect_mean_ms, expect_times, record_times
from planner.predict.survivors import count_survivors
from planner.predict.traffic import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenExits:
    """Exits in the order of the data flow, with their thresholds; none of them for the plan without exits.

    Thresholds are rounded to float32 on the way in.
    """

    cuts: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.cuts) != len(self.thresholds) or len(set(self.cuts)) != len(self.cuts):
            raise InputError(f"chosen exits: {self.cuts} with thresholds {self.thresholds} do not belong together")
        object.__setattr__(self, "thresholds", tuple(float(np.float32(t)) for t in self.thresholds))

    def extended(self, cut: str, threshold: float) -> ChosenExits:
        """Returns these exits and one more behind them."""
        return ChosenExits(cuts=(*self.cuts, cut), thresholds=(*self.thresholds, threshold))


NO_EXITS = ChosenExits()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Who leaves where, and how well.

    Attributes:
        leaves_at: (N,) int64, position of the exit among the chosen ones; K for the final head.
        shares: K + 1 shares of all samples, last the final head's.
        metrics: K + 1 mean metrics of those that leave there; ``None`` where nobody does.
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


def evaluate_exits(trace: Trace, chosen: ChosenExits) -> Outcome:
    """Sends every sample of a trace through the chosen exits."""
    rows = exit_rows(trace, chosen.cuts)
    leaves = trace.confidence[rows] >= np.array(chosen.thresholds, np.float32)[:, None]
    return _outcome(trace, rows, _first_true(leaves))


def evaluate_oracle(trace: Trace, chosen: ChosenExits) -> Outcome:
    """Sends every sample out at the first chosen exit that answers as the final head does, whatever its confidence."""
    rows = exit_rows(trace, chosen.cuts)
    return _outcome(trace, rows, _first_true(trace.agrees[rows]))


def _first_true(leaves: np.ndarray) -> np.ndarray:
    """Returns for each column the first true row of (K, N), K where there is none."""
    first = np.full(leaves.shape[1], len(leaves), np.int64)
    for row in range(len(leaves) - 1, -1, -1):
        first[leaves[row]] = row
    return first


def _outcome(trace: Trace, rows: list[int], leaves_at: np.ndarray) -> Outcome:
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
class PlanFigures:
    """A choice of exits with everything that is known about it.

    Attributes:
        chosen: the exits.
        outcome: on the trace.
        times: expected for batches drawn at random.
        recorded: the same for the trace's own batches in order, all of the largest size.
        oracle_mean_ms: mean latency if every query left at the first chosen exit that agrees with the final head.
        full_ms: the mean query of the whole network.
    """

    chosen: ChosenExits
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
                self.chosen.cuts, self.chosen.thresholds, self.outcome.shares, self.outcome.metrics,
                self.times.arrival_ms, strict=False,
            )
        )  # fmt: skip

    def predicted_latency(self) -> PredictedLatency:
        """Returns the times as an exit plan lists them."""
        return PredictedLatency(
            full_ms=self.full_ms, mean_ms=self.times.mean_ms, batch_ms=self.times.batch_ms,
            oracle_mean_ms=self.oracle_mean_ms, p99_ms=self.times.p99_ms,
        )  # fmt: skip


def evaluate_plan(
    trace: Trace, chosen: ChosenExits, costs: Sequence[np.ndarray], *, full_ms: float, load: Load | None = None,
    percentile: bool = False,
) -> PlanFigures:  # fmt: skip
    """Evaluates a choice of exits on a trace and prices it.

    Args:
        trace: the samples.
        chosen: K exits.
        costs: K + 1 arrays (B + 1,), the milliseconds of each stage for 0..B rows.
        full_ms: the mean query of the whole network.
        load: the batches that enter; when left out, all have B queries.
        percentile: work out the 99th percentile too, which takes longer than all else.
    """
    outcome = evaluate_exits(trace, chosen)
    survivors = count_survivors(outcome.leaves_at, exit_count=len(chosen.cuts), batch_size=len(costs[0]) - 1)
    return PlanFigures(
        chosen=chosen,
        outcome=outcome,
        times=expect_times(costs, outcome.survival, load, percentile=percentile),
        recorded=record_times(costs, survivors),
        oracle_mean_ms=expect_mean_ms(costs, evaluate_oracle(trace, chosen).survival, load),
        full_ms=full_ms,
    )
