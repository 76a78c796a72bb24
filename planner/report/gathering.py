"""Gathering of a report's data: the artifacts of a planned run, checked to belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from artifacts import (
    EXIT_PLAN_JSON,
    MANIFEST,
    TRACE_NPZ,
    ExitPlan,
    InferenceTimeMatrix,
    Manifest,
    Model,
    RunFolder,
    StaleArtifactError,
    Trace,
    digest_of,
    open_artifact,
    open_model,
    read_json,
    read_manifest,
)
from planner.certify.evidence import refer_to, risk_trace
from planner.config import SELF
from planner.measure.timing import ITM_JSON
from planner.report.answers import collect_examples
from planner.report.benchmark import read_bench
from planner.report.commands import RunRecord, reproduce_run
from planner.report.data import ReportData
from planner.sweep.sweeping import ensure_sweep
from planner.workflow.inputs import PlanningInputs
from planner.workflow.record import open_plan, read_considered, read_patterns, read_plan_config


def gather_report(
    run: RunFolder, bench: Path | None = None, *, report: Callable[[str], None] = lambda _: None
) -> ReportData:
    """Reads everything that a report shows; sweeps the tolerances unless that was done.

    Args:
        run: a planned run.
        bench: ``--bench``; ``None``: the run's own, where there is one.
        report: receives lines on the progress.

    Raises:
        MissingArtifactError: the run has no plan yet; the message says the command.
        StaleArtifactError: plan and measurements do not belong together any more.
    """
    planned, inputs = open_plan(run), open_inputs(run)
    model = inputs.require_model()
    check_origin(run, planned.manifest, inputs.digests)
    config = read_plan_config(planned.manifest, run.remedy("planner"))
    plan = read_json(planned.path(EXIT_PLAN_JSON), ExitPlan)
    sweep, _ = ensure_sweep(inputs, config, report=report)
    measured = read_bench(run, bench)
    record = RunRecord(
        run=run.root,
        spec=model.spec,
        model=model.artifact.manifest,
        trace=inputs.trace_artifact.manifest,
        training=find_training(run, model),
        config=config,
        bench=measured.result,
    )
    return ReportData(
        spec=model.spec,
        plan=plan,
        considered=read_considered(planned),
        trace=risk_trace(refer_to(inputs.trace, plan.against or SELF), plan.risk).with_confidences(plan.confidences),
        costs=inputs.referring_to(config.certify.reference).costs(batch_size=config.batch_size, load=config.load),
        sweep=sweep,
        patterns=read_patterns(planned),
        bench=measured.result,
        bench_note=measured.note,
        environment=describe_environment(inputs.itm, measured.result),
        commands=reproduce_run(record),
        digests={**inputs.digests, "plan": planned.digest},
        task=inputs.trace_artifact.manifest.parameters.get("task"),
        examples=collect_examples(run, model, plan, report=report),
    )


def open_inputs(run: RunFolder) -> PlanningInputs:
    """Opens model, trace and times as they are; unlike ``read_inputs`` it makes nothing that is missing.

    Raises:
        MissingArtifactError: one of them does not exist; the message says the command.
    """
    model = open_model(run.model, remedy=run.remedy("export"))
    traced = open_artifact(run.trace, kind="trace", remedy=run.remedy("calibration"))
    timed = open_artifact(run.itm, kind="itm", remedy=run.remedy("planner"))
    return PlanningInputs(
        run=run,
        model=model,
        trace=Trace.load(traced.path(TRACE_NPZ)),
        itm=read_json(timed.path(ITM_JSON), InferenceTimeMatrix),
        trace_artifact=traced,
        itm_artifact=timed,
    ).as_variant()


def check_origin(run: RunFolder, plan: Manifest, digests: Mapping[str, str]) -> None:
    """Makes sure that the plan was made from the model, the trace and the times that lie in the run.

    Raises:
        StaleArtifactError: it was made from others.
    """
    stale = [name for name, digest in digests.items() if plan.inputs.get(name) != digest]
    if stale:
        raise StaleArtifactError(
            f"{run.plan} was made from another {' and '.join(stale)} than the run holds now. Plan it again with: "
            f"{run.remedy('planner')}"
        )


def find_training(run: RunFolder, model: Model) -> Manifest | None:
    """Returns the record of the training that the model holds the result of; ``None`` where there is none."""
    for folder in (run.training / "result", run.training / "weights"):
        if (folder / MANIFEST).is_file():
            record = read_manifest(folder)
            if digest_of(record.parameters) == model.artifact.manifest.inputs.get("training"):
                return record
    return None


def describe_environment(itm: InferenceTimeMatrix, bench: Mapping[str, Any] | None) -> dict[str, str]:
    """Returns what the engines were timed on, and where the benchmark ran on something else."""
    timed = {"backend": itm.backend, "threads": str(itm.threads), **itm.environment}
    other = {} if bench is None else {**bench.get("environment", {}), "threads": str(bench.get("threads", itm.threads))}
    differing = {f"{name} (benchmark)": str(value) for name, value in other.items() if timed.get(name) != value}
    return {**timed, **differing}
