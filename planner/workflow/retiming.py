"""Retiming: whether a plan is still the fastest where its engines run now, by times that are taken again.

Another processor, other versions of the engines or other neighbours make other times, and with them another plan may be
the fastest. Thresholds do not come from times: the plan keeps what it was certified for wherever it runs. So the
engines are timed again, the search goes over the kept trace with the new times, and its best plan is set beside the
committed one. Nothing of the run changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from artifacts import EXIT_PLAN_JSON, ExitPlan, InferenceTimeMatrix, RunFolder, read_json
from planner.certify.evidence import risk_trace
from planner.commit.contenders import NOISE
from planner.measure.timing import Clock, EngineSettings, model_graphs, time_graphs
from planner.predict.replay import NO_EXITS, Exits
from planner.search.problem import SearchProblem
from planner.workflow.inputs import read_inputs
from planner.workflow.record import fresh_grids, open_plan, read_plan_config
from planner.workflow.searching import make_problem, search_plans

Change = tuple[str, ...]
"""What something was, and what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTimes:
    """What a plan is expected to take, in milliseconds by the objective.

    Attributes:
        exits, thresholds: of the plan.
        planned_ms: by the times of the run.
        now_ms: by the times that were taken now.
    """

    exits: tuple[str, ...]
    thresholds: tuple[float, ...]
    planned_ms: float
    now_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retiming:
    """The committed plan beside the one that is the fastest now.

    Attributes:
        objective: what is minimised.
        changes: what of the machine and the packages is not as it was when the run was timed: name -> (then, now).
        no_exits, committed, fastest: their times; ``fastest`` may be the committed one.
        still_fastest: whether the committed plan is within ``contenders.NOISE`` of the fastest, or no further behind it
            than it was by the times of the run: then it was the faster one when both were measured end to end.
    """

    objective: str
    changes: dict[str, Change]
    no_exits: PlanTimes
    committed: PlanTimes
    fastest: PlanTimes
    still_fastest: bool


def retime_run(run: RunFolder, report: Callable[[str], None], *, clock: Clock = time.perf_counter) -> Retiming:
    """Times a run's engines again, as its plan was asked for, and searches with these times.

    Args:
        run: planned; its trace is used as it is. Engines that are not for this machine are built again in its cache.
        report: takes lines about the progress.
        clock: seconds.

    Raises:
        UsageError: the run is an imported one.
        MissingArtifactError: it has no plan.
        SchemaError: another version of PAME planned it.
    """
    planned = open_plan(run)
    config = read_plan_config(planned.manifest, run.remedy("planner"))
    plan = read_json(planned.path(EXIT_PLAN_JSON), ExitPlan)
    inputs = read_inputs(run)
    model, graphs = inputs.require_model(), model_graphs(inputs.require_model())
    report(f"timing {len(graphs)} engines of {model.spec.name} on {config.backend} again, {config.threads} threads")
    itm = time_graphs(graphs, model.spec, run.engines, config.timing, EngineSettings.of(config), clock=clock)
    retimed = replace(inputs, itm=itm, reference=None).as_variant(report)
    then, now = (found.referring_to(config.certify.reference) for found in (inputs, retimed))
    trace = risk_trace(now.trace, config.certify.risk).with_confidences(plan.confidences)
    before, after = (
        make_problem(trace, found.costs(batch_size=config.batch_size, load=config.load), config, fresh_grids(config))
        for found in (then, now)
    )
    result, _ = search_plans(after, config.search, config.certify, report)
    committed = Exits(
        cuts=tuple(exit_.cut for exit_ in plan.exits), thresholds=tuple(exit_.threshold for exit_ in plan.exits)
    )
    return compare_plans(before, after, committed, result.best.exits, changes=_list_changes(inputs.itm, itm))


def compare_plans(
    before: SearchProblem, after: SearchProblem, committed: Exits, fastest: Exits, *, changes: Mapping[str, Change]
) -> Retiming:
    """Sets the committed plan beside the fastest one of now. Pure.

    Args:
        before, after: one problem, with the times of the run and with those of now.
        committed, fastest: the plans.
        changes: as in ``Retiming``.
    """
    none, there, best = (
        PlanTimes(
            exits=exits.cuts, thresholds=exits.thresholds, planned_ms=before.expect_ms(exits),
            now_ms=after.expect_ms(exits),
        )
        for exits in (NO_EXITS, committed, fastest)
    )  # fmt: skip
    best = min(there, best, key=lambda plan: plan.now_ms)
    behind_then, behind_now = there.planned_ms / best.planned_ms, there.now_ms / best.now_ms
    return Retiming(
        objective=after.rules.objective, changes=dict(changes), no_exits=none, committed=there, fastest=best,
        still_fastest=behind_now <= (1 + NOISE) * max(1.0, behind_then),
    )  # fmt: skip


def _list_changes(then: InferenceTimeMatrix, now: InferenceTimeMatrix) -> dict[str, Change]:
    before, after = ({**itm.environment, "engine": itm.backend} for itm in (then, now))
    names = sorted((set(before) | set(after)) - {"timing_rounds"})
    pairs = {name: (before.get(name, "-"), after.get(name, "-")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
