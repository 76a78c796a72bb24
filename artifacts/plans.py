"""The exit plan: the planner's answer, with its predicted times and its certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EXIT_PLAN_JSON = "exit_plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedExit:
    """One exit of a plan.

    Attributes:
        cut: the cut where it sits.
        threshold: a sample leaves when its confidence is at least this.
        leaving_share: predicted share of all samples that leave here.
        metric: mean metric of those who leave here, on the calibration data; ``None`` when nobody leaves.
        arrival_ms: predicted mean time from the start of a batch until the answers of this exit are there.
    """

    cut: str
    threshold: float
    leaving_share: float
    metric: float | None
    arrival_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedLatency:
    """Times of a batch of ``ExitPlan.batch_size`` queries, or of the mixture in ``ExitPlan.load``, in milliseconds.

    Attributes:
        full_ms: the whole network without exits.
        mean_ms: the mean query: a query's latency runs from the start of its batch to its own answer.
        batch_ms: until the last answer of the batch, in the mean.
        oracle_mean_ms: ``mean_ms`` if every query left at the first planned exit that agrees with the final head.
        p99_ms: what 99 % of the queries do not exceed, the noise of the machine left out; ``None`` where unknown.
    """

    full_ms: float
    mean_ms: float
    batch_ms: float
    oracle_mean_ms: float
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReference:
    """What the calibration samples did under a plan; a live stream is compared with it.

    Attributes:
        samples: how many there were.
        confidence_counts: per exit, and last the final head: how many left there, by their confidence, in bins of equal
            width over [0, 1], the same number of bins for all.
        agreements: per exit and for the final head: how many of those that left there have the final head's answer.
    """

    samples: int
    confidence_counts: tuple[tuple[int, ...], ...]
    agreements: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What is known about a plan's risk, from samples that it was not tuned on.

    Attributes:
        risk: ``metric`` (relative loss of the task metric), ``agreement`` (disagreement with the final head), or the
            name of a set metric, e.g. ``f1``.
        bound: the risk is at most this, except with probability ``delta``.
        delta: see ``bound``.
        finite_sample: True when the bound holds at this very number of samples, for any distribution; False for set
            metrics, whose bootstrap is right in the limit only.
        method: the test: ``paired-exact``, ``betting``, ``hoeffding-bentkus``, ``binomial``, ``bootstrap``, or
            ``no exits`` for the plan that cannot lose anything.
        p_value: of the hypothesis that the risk is above ``bound``.
        observed: the risk on the samples of the test.
        samples: how many there were.
        tuning_samples: how many others exits and thresholds were tuned on.
        position: where the plan stood in the tested sequence, from 1; 0 for the plan without exits.
        seed: of the split into the two.
        tuning_digest: of the indices of the samples that were tuned on.
        certification_digest: of the indices of the samples that were tested on.
    """

    risk: str
    bound: float
    delta: float
    finite_sample: bool
    method: str
    p_value: float
    observed: float
    samples: int
    tuning_samples: int
    position: int
    seed: int
    tuning_digest: str
    certification_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPlan:
    """Which exits, with which thresholds, and what that is expected to give.

    Attributes:
        model_digest: the model that it was planned for.
        trace_digest: the trace that it was planned on.
        search: ``greedy`` or ``joint``.
        tolerance: allowed relative loss of the metric.
        delta: probability that the certificate fails; ``None`` without a certificate.
        batch_size: the largest batch that enters the network.
        backend: the engine backend that was timed.
        threads: the thread count that was timed.
        exits: in the order of the data flow; empty for the plan without exits.
        full_metric: mean metric of the full network on the calibration data; 1 where ``risk`` is ``agreement``.
        predicted_metric: mean metric of the plan on the calibration data; its agreement where that is the risk.
        predicted: expected times.
        certificate: what is guaranteed of the tolerance; ``None`` without.
        reference: what a live stream is compared with; ``None`` in plans of 0.1.0, whose streams cannot be tested.
        objective: what the search made small: ``mean``, ``p99`` or ``batch``.
        load: batch size -> share of the batches that was planned for; empty: all have ``batch_size`` queries.
        risk: what the tolerance bounds, see ``Certificate``. For ``agreement``, which needs no labels, all metrics of
            the plan are the agreement with the full network.
    """

    model_digest: str
    trace_digest: str
    search: str
    tolerance: float
    delta: float | None
    batch_size: int
    backend: str
    threads: int
    exits: tuple[PlannedExit, ...]
    full_metric: float
    predicted_metric: float
    predicted: PredictedLatency
    certificate: Certificate | None = None
    reference: StreamReference | None = None
    objective: str = "mean"
    load: Mapping[str, float] = field(default_factory=dict)
    risk: str = "metric"
