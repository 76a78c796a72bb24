"""Planning of a run, whole: what is missing upstream is made, what is unchanged is reused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import PRECISIONS, Artifact, Model, RunFolder, UsageError, is_current, to_plain, work_alone
from calibration import DataSource, Samples, load_run_data
from planner.certify.evidence import remark_on_risk, risk_trace
from planner.commit.committing import commit_plan
from planner.commit.engine_sizes import check_limits
from planner.commit.planning_case import PlanningCase
from planner.commit.stages import publish_bundle
from planner.confidence.choosing import SettledConfidence, settle_confidence
from planner.config import PlanConfig
from planner.flags import planner_command
from planner.search.greedy import draw_candidate_patterns
from planner.search.threshold_grids import KeptGrids
from planner.workflow.inputs import PlanningInputs, ensure_inputs
from planner.workflow.record import (
    PlanningResult,
    PlanRecord,
    describe_considered,
    fresh_grids,
    open_plan,
    publish_plan,
    read_result,
    reusable_grids,
)
from planner.workflow.searching import make_problem, search_plans


@work_alone
def ensure_plan(
    run: RunFolder,
    config: PlanConfig,
    report: Callable[[str], None],
    *,
    data: DataSource | None = None,
    precision: str | None = None,
    command: str | None = None,
) -> PlanningResult:
    """Plans for a run and publishes ``plan/`` and ``bundle/``.

    Args:
        run: its model and trace are made where they are missing.
        config: what to plan for.
        report: takes lines about the progress.
        data: ``--data``; ``None``: what the run used before.
        precision: the precision that the network must have; ``None``: any.
        command: the command line to record; ``None``: the planner's with this config.

    Raises:
        UsageError: the network is of another precision, or the risk needs labels that the data has none of.
        NoPlanError: the trace allows no relative tolerance.
        PameError: something upstream cannot be made, or nothing be written; the message says what.
    """
    command = command or planner_command(run.root, config, data=data if isinstance(data, str | Path) else None)
    inputs = ensure_inputs(run, config, data=data, precision=precision, command=command, report=report)
    return plan_inputs(run, inputs, config, report, data=data, command=command)


@work_alone
def plan_inputs(
    run: RunFolder,
    inputs: PlanningInputs,
    config: PlanConfig,
    report: Callable[[str], None],
    *,
    data: DataSource | None = None,
    command: str | None = None,
) -> PlanningResult:
    """Plans with the inputs of a run of ours and publishes ``plan/`` and ``bundle/``; arguments as ``ensure_plan``."""
    command = command or planner_command(run.root, config, data=data if isinstance(data, str | Path) else None)
    inputs = inputs.referring_to(config.certify.reference)
    _check_reference(inputs, config)
    check_limits(config, inputs.itm)
    found = find_plan(inputs, config)
    if found is not None:
        report(f"nothing has changed: the plan in {run.plan} and the bundle in {run.bundle} stand")
        return found
    run.check_writable()
    remark = remark_on_risk(inputs.require_model().spec.task, config.certify.risk)
    if remark is not None:
        report(remark)
    costs = inputs.costs(batch_size=config.batch_size, load=config.load)
    settled = settle_confidence(risk_trace(inputs.trace, config.certify.risk), costs, config, report)
    grids = fresh_grids(config) if settled.learned else reusable_grids(run, inputs.trace_artifact, config)
    asked = PlanningTask(inputs=inputs, config=config, settled=settled, grids=grids, command=command)
    return search_and_commit(asked, load_run_data(run, data), report)


def _check_reference(inputs: PlanningInputs, config: PlanConfig) -> None:
    """Refuses a tolerance against a network in float32 that the run does not hold."""
    precision = inputs.require_model().spec.precision
    if config.certify.reference == PRECISIONS[0] and inputs.trace.reference is None and precision != PRECISIONS[0]:
        raise UsageError(
            f"--reference fp32: {inputs.run.model} is in {precision} and does not hold the network in float32, so that "
            "nothing can be compared with it; omit the flag, and the tolerance refers to the network itself"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanningTask:
    """A search that is to be made and committed.

    Attributes:
        inputs: of a run of ours.
        config: what to plan for.
        settled: the trace with the confidences that plans are made with.
        grids: of this trace.
        command: the command line to record.
    """

    inputs: PlanningInputs
    config: PlanConfig
    settled: SettledConfidence
    grids: KeptGrids
    command: str


def search_and_commit(asked: PlanningTask, samples: Samples, report: Callable[[str], None]) -> PlanningResult:
    """Searches, certifies, measures the best plans end to end, and publishes ``plan/`` and ``bundle/``.

    Args:
        asked: what to search.
        samples: those of their calibrate part are drawn from for the measurement.
        report: takes lines about the progress.
    """
    inputs, config, settled = asked.inputs, asked.config, asked.settled
    run, model, trace = inputs.run, inputs.require_model(), settled.trace
    origin, parameters = BundleOrigin.of(model, inputs.trace_artifact), _plan_parameters(config)
    costs = inputs.costs(batch_size=config.batch_size, load=config.load)
    problem = make_problem(trace, costs, config, asked.grids)
    case = PlanningCase(
        run=run, model=model, trace=trace, trace_digest=inputs.trace_artifact.digest, config=config,
        learned=settled.learned, reference=inputs.compared_with(costs),
    )  # fmt: skip
    if case.reference is not None:
        report(
            f"slow batches are compared with {case.reference.label} without exits, {case.reference.full_ms:.3f} ms; "
            f"this network without exits takes {case.reference.own_ratio:.3f} of that"
        )
    result, certified = search_plans(problem, config.search, config.certify, report)
    with commit_plan(case, result, samples, report) as commitment:
        record = PlanRecord(
            plan=commitment.winner.plan, considered=describe_considered(result, commitment),
            patterns=draw_candidate_patterns(problem, config.tolerance), certified=certified,
            grids=None if settled.learned else problem.grids,  # kept ones are of the trace's own confidences
            stage_times=commitment.itm, reference=case.reference,
        )  # fmt: skip
        plan = publish_plan(run, record, inputs=inputs.digests, parameters=parameters, command=asked.command)
        publish_bundle(
            commitment.winner.bundle,
            run.bundle,
            inputs=origin.inputs(plan),
            parameters=origin.parameters(),
            command=asked.command,
        )
    return read_result(plan, reused=False, bundle=run.bundle)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOrigin:
    """Where a bundle came from, as in its manifest, the data that it was calibrated on included."""

    model: str
    trace: str
    data: Mapping[str, str]

    @classmethod
    def of(cls, model: Model, trace: Artifact) -> BundleOrigin:
        data = {name: digest for name, digest in trace.manifest.inputs.items() if name != "model"}
        return cls(model=model.digest, trace=trace.digest, data=data)

    def inputs(self, plan: Artifact) -> dict[str, str]:
        return {"model": self.model, "trace": self.trace, "plan": plan.digest}

    def parameters(self) -> dict[str, Any]:
        return {"data": dict(self.data)}


def find_plan(inputs: PlanningInputs, config: PlanConfig) -> PlanningResult | None:
    """Returns the plan of a run of ours if it was made from these inputs, and its bundle from it."""
    run, origin = inputs.run, BundleOrigin.of(inputs.require_model(), inputs.trace_artifact)
    if not is_current(run.plan, kind="plan", inputs=inputs.digests, parameters=_plan_parameters(config)):
        return None
    plan = open_plan(run)
    if not is_current(run.bundle, kind="bundle", inputs=origin.inputs(plan), parameters=origin.parameters()):
        return None
    return read_result(plan, reused=True, bundle=run.bundle)


def _plan_parameters(config: PlanConfig) -> dict[str, Any]:
    """Returns what, besides the inputs, decides a plan."""
    return {"config": to_plain(config)}
