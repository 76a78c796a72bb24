"""Planning for a system that is not ours: from an imported trace and imported times to an exit plan, and no further.

Without a model there is nothing to merge, to build or to measure: the plan with the best expectation is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from artifacts import (
    COMMAND,
    EXIT_PLAN_JSON,
    ExitPlan,
    RunFolder,
    UsageError,
    is_current,
    new_artifact,
    open_artifact,
    to_plain,
    write_json,
)
from planner.certify.certified import describe_certified
from planner.certify.evidence import risk_trace
from planner.config import PlanConfig
from planner.flags import planner_command
from planner.predict.costs import NetworkCosts
from planner.search.greedy import SearchResult
from planner.search.threshold_grids import KeptGrids, threshold_grid
from planner.workflow.inputs import Recorded, read_recorded
from planner.workflow.planning import (
    BPM_NPZ,
    CERTIFICATION_JSON,
    CONSIDERED_JSON,
    PlanningResult,
    describe_considered,
    read_result,
    search_plans,
)


def plan_imported(
    run: RunFolder,
    config: PlanConfig,
    *,
    command: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> PlanningResult:
    """Plans for an imported run and publishes ``plan/``; there is no bundle.

    Args:
        run: as ``python -m planner import-trace`` made it.
        config: what to plan for; its backend, threads, timing and measurement do not matter.
        command: the command line to record; ``None``: the planner's with this config.
        report: receives lines on the progress.

    Raises:
        UsageError: the batch size was not timed, or the risk needs labels that there are none of.
        NoPlanError: the trace allows no relative tolerance.
    """
    recorded = read_recorded(run, risk=config.certify.risk)
    largest = recorded.itm.batch_sizes[-1]
    if config.batch_size > largest:
        raise UsageError(
            f"--batch-size {config.batch_size}: the imported times go up to {largest} rows; plan for no more, or "
            "import times of larger batches"
        )
    inputs = {"trace": recorded.trace_artifact.digest, "itm": recorded.itm_artifact.digest}
    parameters: dict[str, Any] = {"config": to_plain(config), "imported": True}
    if is_current(run.plan, kind="plan", inputs=inputs, parameters=parameters):
        report(f"nothing has changed: the plan in {run.plan} stands")
        return read_result(open_artifact(run.plan, kind="plan", remedy=run.remedy("planner")), reused=True, bundle=None)
    trace = risk_trace(recorded.trace, config.certify.risk)
    costs = NetworkCosts(itm=recorded.itm, cuts=recorded.cuts, batch_size=config.batch_size, mixture=config.load)
    result, certified = search_plans(trace, costs, config, KeptGrids(thresholds=threshold_grid(config.grid_step)))
    notes = {COMMAND: command or planner_command(run.root, config)}
    with new_artifact(run.plan, kind="plan", inputs=inputs, parameters=parameters, notes=notes) as staging:
        write_json(staging / EXIT_PLAN_JSON, _describe_best(result, recorded, config, full_metric=trace.full_metric))
        write_json(staging / CONSIDERED_JSON, describe_considered(result, None))
        if certified is not None:
            write_json(staging / CERTIFICATION_JSON, describe_certified(certified, tolerance=config.tolerance))
        result.patterns.save(staging / BPM_NPZ)
    return read_result(open_artifact(run.plan, kind="plan", remedy=run.remedy("planner")), reused=False, bundle=None)


def _describe_best(result: SearchResult, recorded: Recorded, config: PlanConfig, *, full_metric: float) -> ExitPlan:
    best = result.considered[0]
    certificate = best.certificate
    return ExitPlan(
        model_digest="",
        trace_digest=recorded.trace_artifact.digest,
        search=config.search,
        tolerance=config.tolerance,
        delta=None if certificate is None else certificate.delta,
        batch_size=config.batch_size,
        backend=recorded.itm.backend,
        threads=recorded.itm.threads,
        exits=best.figures.planned_exits(),
        full_metric=full_metric,
        predicted_metric=best.figures.outcome.metric,
        predicted=best.figures.predicted_latency(),
        certificate=certificate,
        objective=config.objective,
        load={} if config.load is None else config.load.to_plain(),
        risk=config.certify.risk,
    )
