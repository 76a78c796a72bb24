"""Record of a planning run: the files of ``plan/``, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    COMMAND,
    EXIT_PLAN_JSON,
    Artifact,
    ArtifactError,
    CorruptArtifactError,
    ExitPlan,
    InferenceTimeMatrix,
    Manifest,
    RunFolder,
    SchemaError,
    from_plain,
    load_arrays,
    new_artifact,
    open_artifact,
    read_json,
    save_arrays,
    write_json,
)
from planner.certify.certified import CertifiedPlans, describe_certified
from planner.commit.contenders import Commitment, Contender, SlowReference
from planner.config import PlanConfig
from planner.predict.objectives import BATCH, MEAN, P99
from planner.predict.replay import Exits
from planner.predict.survivors import BatchingPatternMatrix
from planner.search.problem import SearchedPlan, SearchResult
from planner.search.threshold_grids import KeptGrids, threshold_grid

BPM_NPZ = "bpm.npz"
GRID_NPZ = "grid.npz"
CONSIDERED_JSON = "considered.json"
STAGES_JSON = "stage_itm.json"
CERTIFICATION_JSON = "certification.json"
REFERENCE_JSON = "reference.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsideredPlan:
    """A plan that was considered, as in ``considered.json``; times in milliseconds.

    Attributes:
        exits: cuts, in the order of the data flow; none for the plan without exits.
        thresholds: one per exit.
        leaving_shares: share of all samples that leaves at each exit, last at the final head.
        metric: mean metric on the trace.
        arrival_ms: per exit and last the final head: the mean of the queries that leave there.
        predicted_full_ms: the mean query of the full network.
        predicted_mean_ms, predicted_batch_ms, predicted_p99_ms: expected of the stages as they were timed; where the
            plan was not assembled, as in the search.
        recorded_mean_ms, recorded_batch_ms: the same for the trace's own batches in order.
        oracle_mean_ms: mean latency if every query left at the first exit that agrees with the final head.
        searched_mean_ms, searched_batch_ms, searched_p99_ms: expected in the search, from the parts of the stages.
        measured_mean_ms, measured_batch_ms, measured_p99_ms: end to end; ``None`` where the plan was not measured.
        stay_ratio: time of a batch of which no row leaves, of that of the plan without exits; measured.
        in_time_share: share of batches at or under the first exit's break-even.
        allowed: whether the plan may win.
        path: whether it lies on the search's own way.
        reference: whether it is the baseline, the greedy search's plan beside that of another search.
        p_value: of "its risk is above the tolerance"; ``None`` where that was not tested.
        certified: whether it has a certificate.
    """

    exits: tuple[str, ...]
    thresholds: tuple[float, ...]
    leaving_shares: tuple[float, ...]
    metric: float
    arrival_ms: tuple[float, ...]
    predicted_full_ms: float
    predicted_mean_ms: float
    predicted_batch_ms: float
    predicted_p99_ms: float | None
    recorded_mean_ms: float
    recorded_batch_ms: float
    oracle_mean_ms: float
    searched_mean_ms: float
    searched_batch_ms: float
    searched_p99_ms: float | None
    measured_mean_ms: float | None
    measured_batch_ms: float | None
    measured_p99_ms: float | None
    stay_ratio: float | None
    in_time_share: float
    allowed: bool
    path: bool
    reference: bool
    p_value: float | None
    certified: bool

    @property
    def label(self) -> str:
        """The exits and thresholds in words."""
        pairs = zip(self.exits, self.thresholds, strict=True)
        return ", ".join(f"{cut} >= {threshold:.3g}" for cut, threshold in pairs) or "no exits"

    def searched_ms(self, objective: str) -> float | None:
        """Returns the time that an objective is about, as expected in the search."""
        return {MEAN: self.searched_mean_ms, BATCH: self.searched_batch_ms, P99: self.searched_p99_ms}[objective]

    def measured_ms(self, objective: str) -> float | None:
        """Returns the time that an objective is about, as measured."""
        return {MEAN: self.measured_mean_ms, BATCH: self.measured_batch_ms, P99: self.measured_p99_ms}[objective]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningResult:
    """The committed plan and what it was chosen from.

    Attributes:
        plan: the exit plan that the bundle carries.
        considered: every plan that was considered, the committed one first, the measured ones before the others.
        plan_digest: of ``plan/``.
        bundle: the bundle's folder; ``None`` for an imported run, which has none.
        reused: True when nothing had changed since the last time.
        certification: how the tolerance was certified, as in ``certification.json``; ``None`` without.
        reference: what slow batches were compared with; ``None``: the network without exits.
    """

    plan: ExitPlan
    considered: tuple[ConsideredPlan, ...]
    plan_digest: str
    bundle: Path | None
    reused: bool
    certification: Mapping[str, Any] | None
    reference: SlowReference | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanRecord:
    """Everything that ``plan/`` holds.

    Attributes:
        plan: the committed plan.
        considered: all plans, see ``describe_considered``.
        patterns: the BPM of the candidates.
        certified: how the tolerance was certified; ``None`` without.
        grids: for the next planning of this trace; ``None``: not kept.
        stage_times: of the stages that were timed; ``None`` where none was.
        reference: what slow batches were compared with; ``None``: the network without exits.
    """

    plan: ExitPlan
    considered: tuple[ConsideredPlan, ...]
    patterns: BatchingPatternMatrix
    certified: CertifiedPlans | None
    grids: KeptGrids | None = None
    stage_times: InferenceTimeMatrix | None = None
    reference: SlowReference | None = None


def publish_plan(
    run: RunFolder, record: PlanRecord, *, inputs: Mapping[str, str], parameters: Mapping[str, Any], command: str
) -> Artifact:
    """Publishes ``plan/``, with the command line that makes it again, and opens it."""
    notes = {COMMAND: command}
    with new_artifact(run.plan, kind="plan", inputs=inputs, parameters=parameters, notes=notes) as staging:
        write_json(staging / EXIT_PLAN_JSON, record.plan)
        write_json(staging / CONSIDERED_JSON, record.considered)
        if record.stage_times is not None:
            write_json(staging / STAGES_JSON, record.stage_times)
        if record.certified is not None:
            described = describe_certified(record.certified, tolerance=record.plan.tolerance)
            write_json(staging / CERTIFICATION_JSON, described)
        if record.reference is not None:
            write_json(staging / REFERENCE_JSON, record.reference)
        save_arrays(staging / BPM_NPZ, record.patterns.to_arrays())
        if record.grids is not None:
            write_grids(staging / GRID_NPZ, record.grids)
    return open_plan(run)


def open_plan(run: RunFolder) -> Artifact:
    """Opens ``plan/``; errors as ``artifacts.open_artifact``."""
    return open_artifact(run.plan, kind="plan", remedy=run.remedy("planner"))


def describe_considered(result: SearchResult, commitment: Commitment | None) -> tuple[ConsideredPlan, ...]:
    """Returns every plan that was considered: the committed one first, then those that were measured.

    Args:
        result: the plans.
        commitment: the measurements; ``None`` where nothing could be measured, the first plan is the answer then.
    """
    measured: dict[Exits, Contender] = {}
    if commitment is not None:
        measured = {contender.priced.exits: contender for contender in commitment.contenders}
    order = {exits: rank for rank, exits in enumerate(measured)}
    ranked = sorted(result.considered, key=lambda plan: order.get(plan.exits, len(order)))
    return tuple(
        _describe_plan(plan, measured.get(plan.exits), baseline=plan.exits == result.baseline) for plan in ranked
    )


def _describe_plan(plan: SearchedPlan, contender: Contender | None, *, baseline: bool) -> ConsideredPlan:
    priced = plan.priced if contender is None else contender.priced
    return ConsideredPlan(
        exits=priced.exits.cuts,
        thresholds=priced.exits.thresholds,
        leaving_shares=priced.outcome.shares,
        metric=priced.outcome.metric,
        arrival_ms=priced.times.arrival_ms,
        predicted_full_ms=priced.full_ms,
        predicted_mean_ms=priced.times.mean_ms,
        predicted_batch_ms=priced.times.batch_ms,
        predicted_p99_ms=priced.times.p99_ms,
        recorded_mean_ms=priced.recorded.mean_ms,
        recorded_batch_ms=priced.recorded.batch_ms,
        oracle_mean_ms=priced.oracle_mean_ms,
        searched_mean_ms=plan.priced.times.mean_ms,
        searched_batch_ms=plan.priced.times.batch_ms,
        searched_p99_ms=plan.priced.times.p99_ms,
        measured_mean_ms=None if contender is None else contender.measured_mean_ms,
        measured_batch_ms=None if contender is None else contender.measured_batch_ms,
        measured_p99_ms=None if contender is None else contender.measured_p99_ms,
        stay_ratio=None if contender is None else contender.stay_ratio,
        in_time_share=plan.in_time_share,
        allowed=plan.allowed and (contender is None or contender.allowed),
        path=plan.path,
        reference=baseline,
        p_value=plan.p_value,
        certified=plan.certificate is not None,
    )


def read_considered(plan: Artifact) -> tuple[ConsideredPlan, ...]:
    """Reads ``considered.json``; errors as ``artifacts.read_json``."""
    return read_json(plan.path(CONSIDERED_JSON), tuple[ConsideredPlan, ...])


def read_result(plan: Artifact, *, reused: bool, bundle: Path | None) -> PlanningResult:
    """Reads a published plan.

    Args:
        plan: the artifact.
        reused: True when nothing had changed.
        bundle: the bundle that was made from it.
    """
    there = {entry.path for entry in plan.manifest.files}
    return PlanningResult(
        plan=read_json(plan.path(EXIT_PLAN_JSON), ExitPlan),
        considered=read_considered(plan),
        plan_digest=plan.digest,
        bundle=bundle,
        reused=reused,
        certification=read_json(plan.path(CERTIFICATION_JSON), dict) if CERTIFICATION_JSON in there else None,
        reference=read_json(plan.path(REFERENCE_JSON), SlowReference) if REFERENCE_JSON in there else None,
    )


def read_plan_config(plan: Manifest, remedy: str) -> PlanConfig:
    """Returns what a plan was asked for.

    Raises:
        SchemaError: another version of PAME asked for it.
    """
    try:
        return from_plain(PlanConfig, plan.parameters.get("config"))
    except SchemaError as error:
        raise SchemaError(
            f"the plan was made by another version of PAME ({error}). Plan it again with: {remedy}"
        ) from error


def read_patterns(plan: Artifact) -> BatchingPatternMatrix:
    """Reads ``bpm.npz``.

    Raises:
        CorruptArtifactError: an array is missing.
    """
    path = plan.path(BPM_NPZ)
    arrays = load_arrays(path)
    try:
        return BatchingPatternMatrix.from_arrays(arrays)
    except CorruptArtifactError as error:
        raise CorruptArtifactError(f"{path}: {error}; run the planner again") from error


def write_grids(path: Path, grids: KeptGrids) -> None:
    """Writes threshold grids into one ``.npz``."""
    save_arrays(path, grids.to_arrays())


def read_grids(path: Path) -> KeptGrids:
    """Reads what ``write_grids`` wrote.

    Raises:
        CorruptArtifactError: an array is missing.
    """
    arrays = load_arrays(path)
    try:
        return KeptGrids.from_arrays(arrays)
    except CorruptArtifactError as error:
        raise CorruptArtifactError(f"{path}: {error}; run the planner again") from error


def reusable_grids(run: RunFolder, trace: Artifact, config: PlanConfig) -> KeptGrids:
    """Returns the grids that the last planning left, if they are of this trace, this risk and these thresholds."""
    fresh = fresh_grids(config)
    try:
        plan = open_plan(run)
        if not share_grids(plan.manifest, trace, config):
            return fresh
        grids = read_grids(plan.path(GRID_NPZ))
    except ArtifactError:
        return fresh
    return grids if np.array_equal(grids.thresholds, fresh.thresholds) else fresh


def fresh_grids(config: PlanConfig) -> KeptGrids:
    """Returns grids in which nothing is evaluated yet."""
    return KeptGrids(thresholds=threshold_grid(config.grid_step))


def share_grids(earlier: Manifest, trace: Artifact, config: PlanConfig) -> bool:
    """Tells whether the grids of an earlier planning or sweep hold the sums of the metric that a config asks for."""
    certify = earlier.parameters.get("config", {}).get("certify", {})
    before = _name_metric(certify.get("risk"), certify.get("reference"))
    now = _name_metric(config.certify.risk, config.certify.reference)
    return earlier.inputs.get("trace") == trace.digest and before == now


def _name_metric(risk: str | None, reference: str | None) -> tuple[str, str | None]:
    """Returns what tells the metrics of a trace apart: its own, and the agreement with either network."""
    return ("agreement", reference) if risk == "agreement" else ("metric", None)
