"""Sweep of a run over tolerances: its operating points, searched on its trace and its measured times.

Nothing is merged, compiled or bundled, and engines are timed only where the run has no times yet; an imported run has
everything that a sweep needs. The result is in ``runs/<name>/sweep/``, with the grids that were evaluated for it; both
are reused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from artifacts import (
    COMMAND,
    ArtifactError,
    is_current,
    new_artifact,
    open_artifact,
    read_json,
    to_plain,
    write_json,
)
from artifacts.console import track
from planner.certify.evidence import risk_trace
from planner.confidence.choosing import settle_confidence
from planner.config import PlanConfig
from planner.flags import planner_command
from planner.search.problem import SearchResult
from planner.search.searches import find_search
from planner.search.threshold_grids import KeptGrids
from planner.sweep.points import Sweep, sweep_levels, sweep_tolerances
from planner.workflow.inputs import PlanningInputs
from planner.workflow.record import GRID_NPZ, fresh_grids, read_grids, reusable_grids, share_grids, write_grids
from planner.workflow.searching import bound_no_exits, check_allowed, make_problem

SWEEP_JSON = "sweep.json"
_FORM = 2  # of ``sweep.json``
_DECIDED_AT = 0.01  # the tolerance at which the confidence of all points is chosen


def ensure_sweep(
    inputs: PlanningInputs,
    config: PlanConfig,
    tolerances: Sequence[float] | None = None,
    *,
    command: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[Sweep, bool]:
    """Returns the operating points and whether they were there already; publishes ``sweep/`` otherwise.

    Args:
        inputs: the trace and the times of the run.
        config: the configuration of the search; its tolerance does not count.
        tolerances: strictly ascending, in [0, 1); ``None``: the whole range.
        command: the command line to record; ``None``: the planner's with this config.
        report: takes lines about the progress.

    Raises:
        NoPlanError: no tolerance has a plan.
        ArtifactError: nothing can be written to the run.
    """
    inputs = inputs.referring_to(config.certify.reference)
    run, trace = inputs.run, risk_trace(inputs.trace, config.certify.risk)
    levels = sweep_levels(trace) if tolerances is None else tuple(tolerances)
    parameters = _list_parameters(config, levels)
    if is_current(run.sweep, kind="sweep", inputs=inputs.digests, parameters=parameters):
        artifact = open_artifact(run.sweep, kind="sweep", remedy=run.remedy("sweep"))
        return read_json(artifact.path(SWEEP_JSON), Sweep), True
    run.check_writable()
    costs = inputs.costs(batch_size=config.batch_size, load=config.load)
    settled = settle_confidence(trace, costs, replace(config, tolerance=_DECIDED_AT), report)
    trace = settled.trace
    grids = fresh_grids(config) if settled.learned else _find_grids(inputs, config)
    found = len(grids.grids)

    def search(tolerance: float) -> SearchResult:
        problem = make_problem(trace, costs, replace(config, tolerance=tolerance), grids)
        (result,) = find_search(config.search)(problem)
        result = bound_no_exits(problem, result)
        check_allowed(problem, result)
        return result

    tracked = track(levels, description="sweeping tolerances", total=len(levels))
    sweep = sweep_tolerances(search, tracked, full_metric=trace.full_metric, objective=config.objective)
    report(
        f"{config.search} search at {len(levels)} tolerances: {grids.evaluations} grids evaluated, "
        f"{found} kept from before"
    )
    notes = {COMMAND: command or planner_command(run.root, config, sweep=tolerances or ())}
    with new_artifact(run.sweep, kind="sweep", inputs=inputs.digests, parameters=parameters, notes=notes) as staging:
        write_json(staging / SWEEP_JSON, sweep)
        if not settled.learned:  # kept ones are of the trace's own confidences
            write_grids(staging / GRID_NPZ, grids)
    return sweep, False


def _list_parameters(config: PlanConfig, tolerances: Sequence[float]) -> dict[str, Any]:
    """Returns the settings that decide the result of a sweep."""
    used = {name: value for name, value in to_plain(config).items() if name not in ("tolerance", "measure")}
    return {"config": used, "tolerances": list(tolerances), "form": _FORM}


def _find_grids(inputs: PlanningInputs, config: PlanConfig) -> KeptGrids:
    """Returns the grids that the last planning and the last sweep stored for this trace at these thresholds."""
    run = inputs.run
    grids = reusable_grids(run, inputs.trace_artifact, config)
    try:
        swept = open_artifact(run.sweep, kind="sweep", remedy=run.remedy("sweep"))
        if share_grids(swept.manifest, inputs.trace_artifact, config):
            earlier = read_grids(swept.path(GRID_NPZ))
            if earlier.thresholds.tolist() == grids.thresholds.tolist():
                grids.grids.update(earlier.grids)
    except ArtifactError:
        return grids
    return grids
