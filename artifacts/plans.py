"""Exit plans: the planner's answer, with its predicted times and its certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from artifacts.codec import OPTIONAL
from artifacts.confidences import LearnedConfidence

EXIT_PLAN_JSON = "exit_plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedExit:
    """One exit of a plan.

    Attributes:
        cut: the cut at which it answers.
        threshold: a sample leaves when its confidence is at least this.
        leaving_share: predicted share of all samples that leave here.
        metric: mean metric of the samples that leave here, on the calibration data; ``None`` when none does.
        arrival_ms: predicted mean time from the start of a batch until the answers of this exit are ready.
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
        batch_ms: mean time until the last answer of the batch.
        oracle_mean_ms: ``mean_ms`` if every query left at the first planned exit that agrees with the final head.
        p99_ms: 99th percentile over the queries, without the noise of the machine; ``None`` where unknown.
    """

    full_ms: float
    mean_ms: float
    batch_ms: float
    oracle_mean_ms: float
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReference:
    """The exits and confidences of the calibration samples under a plan; a live stream is compared with them.

    Attributes:
        samples: number of samples.
        confidence_counts: per exit and last for the final head: a histogram of the confidences of the samples that left
            there, in bins of equal width over [0, 1], the same number of bins for all.
        agreements: per exit and for the final head: how many of the samples that left there have the final head's
            answer.
    """

    samples: int
    confidence_counts: tuple[tuple[int, ...], ...]
    agreements: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certified bound on a plan's risk, from samples that the plan was not tuned on.

    Attributes:
        risk: ``metric`` (relative loss of the task metric), ``agreement`` (disagreement with the final head), or the
            name of a set metric, e.g. ``f1``.
        bound: the risk is at most this, except with probability ``delta``.
        delta: see ``bound``.
        finite_sample: True when the bound holds at this very number of samples, for any distribution; False for set
            metrics, whose bootstrap is valid only asymptotically.
        method: the test: ``paired-exact``, ``betting``, ``hoeffding-bentkus``, ``binomial``, ``bootstrap``, or
            ``no exits`` for the plan without exits, which cannot lose anything.
        p_value: of the hypothesis that the risk is above ``bound``.
        observed: the risk on the samples of the test.
        samples: number of samples of the test.
        tuning_samples: number of the other samples, on which exits and thresholds were tuned.
        position: position of the plan in the tested sequence, from 1; 0 for the plan without exits.
        seed: of the split into tuning and test samples.
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
class BatchForm:
    """How a whole batch goes through the stages of a plan, chosen by measurement where the objective is ``batch``.

    Attributes:
        form: ``stages``: stage by stage; ``no rows`` or ``If``: as one graph, in which a stage that no row comes to
            runs on no rows or not at all.
        batch_ms: form -> measured time of a batch, the same batches in turns; a form that could not be had is missing.
    """

    form: str
    batch_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPlan:
    """An exit plan: its exits with their thresholds, and the latency and metric to expect.

    Attributes:
        model_digest: of the model that it was planned for.
        trace_digest: of the trace that it was planned on.
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
        certificate: the guarantee on the tolerance; ``None`` for an uncertified plan.
        reference: the reference for live streams; ``None`` in plans of 0.1.0, whose streams cannot be tested.
        objective: the latency that the search minimised: ``mean``, ``p99`` or ``batch``.
        load: batch size -> share of the batches that was planned for; empty: all have ``batch_size`` queries.
        risk: the risk that the tolerance bounds, see ``Certificate``. For ``agreement``, which needs no labels,
            all metrics of the plan are the agreement with the full network.
        confidences: cut -> the learned confidence of its exit; exits without one have that of their head.
        against: the network that ``tolerance`` and ``full_metric`` are about, where that is another one than the
            planned: ``fp32``, the same in float32.
        batch_form: how the runtime runs whole batches; ``None`` where that was not measured: stage by stage.
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
    confidences: Mapping[str, LearnedConfidence] = field(default_factory=dict)
    against: str = field(default="", metadata=OPTIONAL)
    batch_form: BatchForm | None = field(default=None, metadata=OPTIONAL)
