"""Data of a report: the artifacts of one planned run, and what is worked out from them; pure numpy.

``ReportData`` holds the artifacts as they are. The functions below turn them into what a figure or a sentence needs, so
that figures and text show the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from artifacts import (
    FINAL_HEAD_GRAPH,
    FINAL_HEAD_LABEL,
    ExitPlan,
    InferenceTimeMatrix,
    InputError,
    ModelSpec,
    Trace,
)
from calibration import binomial_pmf
from planner.certify.evidence import metric_word
from planner.predict.costs import FULL, SERVING, NetworkCosts, gather_row, head_row, price_staying, segment_row
from planner.predict.replay import Exits, Outcome, evaluate_exits
from planner.predict.survivors import BatchingPatternMatrix, count_survivors
from planner.report.answers import Examples
from planner.search.threshold_grids import evaluate_grid
from planner.sweep.points import Sweep
from planner.workflow.record import ConsideredPlan

CURVE_THRESHOLDS = np.linspace(0, 1, 201).astype(np.float32)
FEW = 0.002  # a smaller share of leaving samples says nothing about how often they are right
_TAIL = 0.99


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportData:
    """A planned run.

    Attributes:
        spec: the network.
        plan: the exit plan.
        considered: the plans that the planner considered, the committed one first (``considered.json``).
        trace: the calibration data, with the metric that the plan's risk is about.
        costs: the prices of the stages for the plan's load, with the times that they come from.
        patterns: the BPM of the candidates.
        sweep: the operating points.
        bench: the JSON object of ``runtime.bench`` for the plan's bundle, or ``None``.
        bench_note: without ``bench``: why there is none, and what to do.
        environment: the machine and the packages that the times were taken with.
        commands: the command lines that make it all again, in order.
        digests: name -> digest of the artifacts.
        task: the name of the task by which the trace was judged; ``None``: the network's.
        examples: a few answers to be drawn; ``None`` where answers are no pictures.
    """

    spec: ModelSpec
    plan: ExitPlan
    considered: Sequence[ConsideredPlan]
    trace: Trace
    costs: NetworkCosts
    patterns: BatchingPatternMatrix
    sweep: Sweep
    bench: Mapping[str, Any] | None = None
    bench_note: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    task: str | None = None
    examples: Examples | None = None

    @property
    def chosen(self) -> Exits:
        """The exits and thresholds of the plan."""
        return Exits(
            cuts=tuple(exit_.cut for exit_ in self.plan.exits),
            thresholds=tuple(exit_.threshold for exit_ in self.plan.exits),
        )

    @property
    def itm(self) -> InferenceTimeMatrix:
        """The times of segments, heads and gathers."""
        return self.costs.itm

    @property
    def task_word(self) -> str:
        """The name of the task's metric, e.g. ``accuracy``, or of the quality of a sample where the metric is no mean
        over samples; ``metric`` for a task that is not in our table."""
        return metric_word("metric", self.task or self.spec.task)

    @property
    def metric_word(self) -> str:
        """The name of what plan and trace call metric: the task's, or the agreement where that is the risk."""
        return "agreement with the full network" if self.plan.risk == "agreement" else self.task_word


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """One candidate taken by itself: all samples leave there.

    Attributes:
        name: the cut, or ``final head``.
        metric: mean metric.
        agreement: mean agreement with the final head.
        share_of_time: the time until its answers are ready, as a share of the full network's; both for the plan's load.
        chosen: whether the plan uses it.
    """

    name: str
    metric: float
    agreement: float
    share_of_time: float
    chosen: bool


def depths(data: ReportData) -> tuple[Depth, ...]:
    """Returns all candidates by depth, the final head last."""
    trace = data.trace
    metric = trace.metric.mean(axis=1, dtype=np.float64)
    agreement = trace.agreement.mean(axis=1, dtype=np.float64)
    ready = [reach_share(data, name) for name in trace.exits]
    return tuple(
        Depth(
            name=name,
            metric=float(metric[row]),
            agreement=float(agreement[row]),
            share_of_time=share,
            chosen=name in data.chosen.cuts,
        )
        for row, (name, share) in enumerate(zip((*trace.exits, FINAL_HEAD_LABEL), (*ready, 1.0), strict=True))
    )


def reach_share(data: ReportData, cut: str) -> float:
    """Returns the time until all rows of a batch have the answer of a cut's exit, as a share of the full network's."""
    costs = data.costs
    return price_staying([costs.stage_cost(None, cut)], costs.load) / costs.full_ms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ThresholdCurves:
    """Every candidate taken by itself at every threshold.

    Attributes:
        thresholds: (T,) float32, ascending.
        leaving: (E, T) share of all samples that leaves.
        precision: (E, T) mean metric of those that leave; NaN where hardly any do.
        at: exit name -> the plan's threshold.
    """

    thresholds: np.ndarray
    leaving: np.ndarray
    precision: np.ndarray
    at: Mapping[str, float]


def threshold_curves(data: ReportData, thresholds: np.ndarray = CURVE_THRESHOLDS) -> ThresholdCurves:
    """Returns the curves of all candidates."""
    grid = evaluate_grid(data.trace, thresholds)
    leaving = grid.leaving / data.trace.sample_count
    return ThresholdCurves(
        thresholds=thresholds,
        leaving=leaving,
        precision=np.where(leaving >= FEW, grid.leaver_metric, np.nan),
        at=dict(zip(data.chosen.cuts, data.chosen.thresholds, strict=True)),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SurvivorChain:
    """The rows of a batch that enter each stage of the plan.

    Attributes:
        stages: where each stage ends, last at the final head.
        survival: share of all samples that enters it; the first is 1.
        leaving: share of all samples that leaves at its end.
        expected: mean number of rows.
        low, high: between them lie 98 of 100 batches drawn at random.
        recorded_low, recorded_high: the same for the trace's own batches in order.
        probability: (stages, B + 1) of each number of rows, for batches drawn at random.
    """

    stages: tuple[str, ...]
    survival: tuple[float, ...]
    leaving: tuple[float, ...]
    expected: np.ndarray
    low: np.ndarray
    high: np.ndarray
    recorded_low: np.ndarray
    recorded_high: np.ndarray
    probability: np.ndarray


def survivor_chain(data: ReportData) -> SurvivorChain:
    """Returns how many rows are left at each stage, as exact distributions."""
    outcome: Outcome = evaluate_exits(data.trace, data.chosen)
    batch_size, exits = data.plan.batch_size, data.chosen.cuts
    probability = binomial_pmf(batch_size, outcome.survival)
    reached = probability.cumsum(axis=1)
    survivors = count_survivors(outcome.leaves_at, exit_count=len(exits), batch_size=batch_size)
    entering = np.concatenate([np.full((len(survivors), 1), batch_size), survivors], axis=1)
    recorded = np.quantile(entering, (1 - _TAIL, _TAIL), axis=0, method="inverted_cdf")
    return SurvivorChain(
        stages=(*exits, FINAL_HEAD_LABEL),
        survival=outcome.survival,
        leaving=outcome.shares,
        expected=batch_size * np.array(outcome.survival),
        low=quantile_of(reached, 1 - _TAIL),
        high=quantile_of(reached, _TAIL),
        recorded_low=recorded[0],
        recorded_high=recorded[1],
        probability=probability,
    )


def quantile_of(reached: np.ndarray, share: float) -> np.ndarray:
    """Returns for each row of a cumulative distribution (K, B + 1) the smallest count that reaches ``share``."""
    found: np.ndarray = (reached >= share - 1e-9).argmax(axis=1)
    return found


def matrix_groups(data: ReportData) -> dict[str, tuple[str, ...]]:
    """Returns the rows of the inference time matrix in the order of the data flow, by their kind."""
    spec, timed = data.spec, data.itm.median_ms
    names = [cut.name for cut in spec.candidates]
    groups = {
        "network": (*(segment_row(index) for index in range(len(spec.segments))), FINAL_HEAD_GRAPH, FULL),
        "exit heads": tuple(head_row(name) for name in names),
        "host": (*(gather_row(name) for name in names), SERVING),
    }
    return {title: tuple(row for row in rows if row in timed) for title, rows in groups.items()}


def committed(data: ReportData) -> ConsideredPlan:
    """Returns the planner's record of the plan that was committed."""
    return data.considered[0]


def without_exits(data: ReportData) -> ConsideredPlan:
    """Returns the planner's record of the plan without exits."""
    return next(plan for plan in data.considered if not plan.exits)


def measured_mean_ms(plan: ConsideredPlan) -> float:
    """Returns the measured mean latency of a plan.

    Raises:
        InputError: the plan was not measured.
    """
    if plan.measured_mean_ms is None:
        raise InputError(f"the plan with {plan.label} was not measured end to end; plan the run again")
    return plan.measured_mean_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The result of the run in a few numbers.

    Attributes:
        source: ``bench`` (held-out data) or ``planner`` (its own measurement, metric on the calibration data).
        full_ms, early_ms: mean latency of a query.
        speedup: their ratio.
        metric_ratio: metric kept; ``None`` where the full network's is 0.
        agreement: True where the metric is the agreement with the full network, for lack of labels.
        speedup_p99: of the slowest 1 in 100; ``None`` where it was not measured.
    """

    source: str
    full_ms: float
    early_ms: float
    speedup: float
    metric_ratio: float | None
    agreement: bool
    speedup_p99: float | None


def headline(data: ReportData) -> Headline:
    """Returns the best measurement of the plan that there is."""
    if data.bench is not None:
        full, early = data.bench["full"], data.bench["early_exit"]
        unlabelled = full["metric"] is None
        return Headline(
            source="bench",
            full_ms=full["mean_latency_ms"],
            early_ms=early["mean_latency_ms"],
            speedup=data.bench["speedup_mean"],
            agreement=unlabelled,
            metric_ratio=data.bench["agreement" if unlabelled else "metric_ratio"],
            speedup_p99=data.bench["speedup_p99"],
        )
    full_ms, early_ms = measured_mean_ms(without_exits(data)), measured_mean_ms(committed(data))
    return Headline(
        source="planner",
        full_ms=full_ms,
        early_ms=early_ms,
        speedup=full_ms / early_ms,
        metric_ratio=data.plan.predicted_metric / data.plan.full_metric,
        agreement=data.plan.risk == "agreement",
        speedup_p99=None,
    )


def short_names(spec: ModelSpec, longest: int = 14) -> dict[str, str]:
    """Returns cut name -> a short name for a tick, all different, and ``final head`` as it is.

    Path components that all cuts share are left out; of what is still too long the end stays, with the number of the
    cut before it where ends are equal.
    """
    names = [cut.name for cut in spec.cuts]
    parts = [name.split("/") for name in names]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({tuple(part[:1]) for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({tuple(part[-1:]) for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    joined = ["/".join(part) for part in parts]
    short = [name if len(name) <= longest else f"…{name[1 - longest :]}" for name in joined]
    if len(set(short)) < len(short):
        short = [f"{index + 1}: {name[-(longest - 4) :]}" for index, name in enumerate(joined)]
    return {**dict(zip(names, short, strict=True)), FINAL_HEAD_LABEL: FINAL_HEAD_LABEL}
