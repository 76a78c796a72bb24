"""Planning for a system that is not ours: from an imported trace and imported times to an exit plan, and no further.

Without a model there is nothing to merge, to build or to measure: the plan with the best expectation is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from artifacts import ExitPlan, RunFolder, UsageError, is_current, to_plain
from planner.certify.evidence import risk_trace
from planner.commit.exit_plan import PlanOrigin, make_exit_plan
from planner.config import LEARNED, PlanConfig
from planner.flags import planner_command
from planner.search.greedy import draw_candidate_patterns
from planner.search.problem import SearchedPlan
from planner.search.threshold_grids import KeptGrids, threshold_grid
from planner.workflow.inputs import PlanningInputs, read_inputs
from planner.workflow.record import (
    PlanningResult,
    PlanRecord,
    describe_considered,
    open_plan,
    publish_plan,
    read_result,
)
from planner.workflow.searching import make_problem, search_plans


def plan_imported(
    run: RunFolder, config: PlanConfig, report: Callable[[str], None], *, command: str | None = None
) -> PlanningResult:
    """Plans for an imported run and publishes ``plan/``; there is no bundle.

    Args:
        run: as ``python -m planner import-trace`` made it.
        config: what to plan for; its backend, threads, timing and measurement do not matter.
        report: takes lines about the progress.
        command: the command line to record; ``None``: the planner's with this config.

    Raises:
        UsageError: the batch size was not timed, or the risk needs labels that there are none of.
        NoPlanError: the trace allows no relative tolerance.
    """
    inputs = read_inputs(run, risk=config.certify.risk)
    largest = inputs.itm.batch_sizes[-1]
    if config.batch_size > largest:
        raise UsageError(
            f"--batch-size {config.batch_size}: the imported times go up to {largest} rows; plan for no more, or "
            "import times of larger batches"
        )
    if config.confidence == LEARNED:
        raise UsageError(
            f"--confidence learned: {run.root} is an imported run, and its heads are not ours to change; leave the "
            "flag out"
        )
    parameters: dict[str, Any] = {"config": to_plain(config), "imported": True}
    if is_current(run.plan, kind="plan", inputs=inputs.digests, parameters=parameters):
        report(f"nothing has changed: the plan in {run.plan} stands")
        return read_result(open_plan(run), reused=True, bundle=None)
    trace, grids = risk_trace(inputs.trace, config.certify.risk), KeptGrids(thresholds=threshold_grid(config.grid_step))
    problem = make_problem(trace, inputs.costs(batch_size=config.batch_size, load=config.load), config, grids)
    result, certified = search_plans(problem, config.search, config.certify, report)
    record = PlanRecord(
        plan=_describe_best(result.considered[0], inputs, config, full_metric=trace.full_metric),
        considered=describe_considered(result, None),
        patterns=draw_candidate_patterns(problem, config.tolerance),
        certified=certified,
    )
    command = command or planner_command(run.root, config)
    plan = publish_plan(run, record, inputs=inputs.digests, parameters=parameters, command=command)
    return read_result(plan, reused=False, bundle=None)


def _describe_best(best: SearchedPlan, inputs: PlanningInputs, config: PlanConfig, *, full_metric: float) -> ExitPlan:
    origin = PlanOrigin(
        model_digest="",
        trace_digest=inputs.trace_artifact.digest,
        full_metric=full_metric,
        backend=inputs.itm.backend,
        threads=inputs.itm.threads,
    )
    return make_exit_plan(best.priced, config, origin, best.certificate)
