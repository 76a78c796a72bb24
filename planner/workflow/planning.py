"""The whole of planning for one run: what is missing upstream is made, what is unchanged is reused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    EXIT_PLAN_JSON,
    Artifact,
    ArtifactError,
    ExitPlan,
    Manifest,
    Model,
    RunFolder,
    Trace,
    check_precision,
    is_current,
    new_artifact,
    open_artifact,
    open_model,
    read_json,
    to_plain,
    write_json,
)
from artifacts.console import say
from calibration import DataSource, load_run_data
from planner.certify.certified import CertifiedPlans, describe_certified, merge_certified, plan_certified
from planner.certify.evidence import risk_trace
from planner.certify.ladders import make_ladder, make_price
from planner.commit.committing import Commitment, PlanningCase, commit_plan
from planner.commit.engine_sizes import check_limits
from planner.commit.stages import publish_bundle
from planner.config import PlanConfig
from planner.measure.timing import ensure_itm
from planner.predict.costs import NetworkCosts
from planner.search.greedy import SearchResult, plan_greedy
from planner.search.joint import plan_joint
from planner.search.prices import objective_ms
from planner.search.threshold_grids import KeptGrids, threshold_grid

BPM_NPZ = "bpm.npz"
GRID_NPZ = "grid.npz"
CONSIDERED_JSON = "considered.json"
STAGES_JSON = "stage_itm.json"
_REMEDY = "python -m planner --tolerance 0.01"

CERTIFICATION_JSON = "certification.json"
Search = Callable[[Trace, NetworkCosts, PlanConfig, KeptGrids], SearchResult]


def _search_greedily(trace: Trace, costs: NetworkCosts, config: PlanConfig, kept: KeptGrids) -> SearchResult:
    return plan_greedy(trace, costs, tolerance=config.tolerance, kept=kept, tail=config.tail)


def _search_jointly(trace: Trace, costs: NetworkCosts, config: PlanConfig, kept: KeptGrids) -> SearchResult:
    return plan_joint(
        trace, costs, tolerance=config.tolerance, objective=config.objective, max_exits=config.max_exits,
        tail=config.tail, kept=kept,
    )  # fmt: skip


_SEARCHES: Mapping[str, Search] = {"joint": _search_jointly, "greedy": _search_greedily}


def find_search(config: PlanConfig) -> Search:
    """Returns the search that a config names."""
    return _SEARCHES[config.search]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningResult:
    """The committed plan and what it was chosen from.

    Attributes:
        plan: the exit plan that the bundle carries.
        considered: every plan that was looked at, the committed one first, the measured ones before the others; plain
            data as in ``considered.json``.
        plan_digest: of ``plan/``.
        bundle: the bundle's folder; ``None`` for an imported run, which has none.
        reused: True when nothing had changed since the last time.
        certification: how the tolerance was certified, as in ``certification.json``; ``None`` without.
    """

    plan: ExitPlan
    considered: tuple[Mapping[str, Any], ...]
    plan_digest: str
    bundle: Path | None
    reused: bool
    certification: Mapping[str, Any] | None


def ensure_plan(
    run: RunFolder, config: PlanConfig, *, data: DataSource | None = None, precision: str | None = None
) -> PlanningResult:
    """Plans for a run and publishes ``plan/`` and ``bundle/``.

    Args:
        run: its model and trace are made where they are missing.
        config: what to plan for.
        data: ``--data``; ``None``: what the run used before.
        precision: what the network must be of; ``None``: any.

    Raises:
        UsageError: the network is of another precision, or the risk needs labels that the data has none of.
        NoPlanError: the trace allows no relative tolerance.
        PameError: something upstream cannot be made; the message says what.
    """
    from calibration import CalibrationOptions, EngineChoice, ensure_trace

    trace_artifact, trace = ensure_trace(
        run, EngineChoice(backend=config.backend, threads=config.threads), data=data, risk=config.certify.risk,
        options=CalibrationOptions(report=say),
    )  # fmt: skip
    model = open_model(run.model, remedy="python -m export resnet --segments")
    check_precision(model.spec, precision, run=run.root)
    itm_artifact, itm = ensure_itm(
        run, model, config.timing, backend=config.backend, profiles=config.profiles, threads=config.threads
    )
    check_limits(config, itm)
    inputs = {"model": model.digest, "trace": trace_artifact.digest, "itm": itm_artifact.digest}
    parameters = {"config": to_plain(config)}
    origin = BundleOrigin.of(model, trace_artifact)
    found = _reuse(run, inputs, parameters, origin)
    if found is not None:
        say(f"nothing has changed: the plan in {run.plan} and the bundle in {run.bundle} stand")
        return found
    trace = risk_trace(trace, config.certify.risk)
    case = PlanningCase(run=run, model=model, trace=trace, trace_digest=trace_artifact.digest, config=config)
    kept = kept_grids(run, trace_artifact, config)
    cuts = tuple(cut.name for cut in model.spec.cuts)
    costs = NetworkCosts(itm=itm, cuts=cuts, batch_size=config.batch_size, mixture=config.load)
    result, certified = search_plans(trace, costs, config, kept)
    with commit_plan(case, result, load_run_data(run, data)) as commitment:
        _publish_plan(run, result, certified, commitment, kept, inputs=inputs, parameters=parameters)
        plan = open_artifact(run.plan, kind="plan", remedy=_REMEDY)
        publish_bundle(commitment.winner.bundle, run.bundle, inputs=origin.inputs(plan), parameters=origin.parameters())
    return read_result(plan, reused=False, bundle=run.bundle)


def search_plans(
    trace: Trace, costs: NetworkCosts, config: PlanConfig, kept: KeptGrids
) -> tuple[SearchResult, CertifiedPlans | None]:
    """Searches, and certifies where that is asked for, telling a person what came of it.

    Args:
        trace: with the metric that the risk is about.
        costs: the prices of the stages.
        config: what to plan for.
        kept: the grids of this trace.

    Returns:
        The plans; with a certificate only certified ones are allowed to win. And how they were certified.

    Raises:
        NoPlanError: the trace allows no relative tolerance.
    """
    search, known = find_search(config), len(kept.grids)
    result = search(trace, costs, config, kept)
    say(
        f"{config.search} search: {len(result.considered)} plans over {len(trace.exits)} candidates and "
        f"{trace.sample_count} samples; {kept.evaluations} grids evaluated, {known} kept from before"
    )
    if result.reference is not None:
        found, paper = (
            next(
                objective_ms(one.figures.times, config.objective)
                for one in result.considered
                if one.figures.chosen == plan
            )
            for plan in (result.best.chosen, result.reference)
        )
        say(f"{config.objective} latency expected: {found:.3f} ms, by the greedy search {paper:.3f} ms")
    if config.certify.method == "none":
        return result, None

    certified = _certify(config.search, trace, costs, config)
    tried = [one for one in certified.sequence if one.p_value is not None]
    say(
        f"certificate: {len(certified.certificates) - 1} of {len(certified.sequence)} plans passed, {len(tried)} tested"
    )
    if certified.shortage is not None:
        say(f"note: {certified.shortage.describe(tolerance=config.tolerance, delta=config.certify.delta)}")
    if config.search != "greedy":
        result = replace(result, reference=_certify("greedy", trace, costs, config).boldest)
    return merge_certified(result, certified, trace, costs, config), certified


def _certify(search: str, trace: Trace, costs: NetworkCosts, config: PlanConfig) -> CertifiedPlans:
    objective = config.objective
    ladder = make_ladder(
        search, costs, step=config.grid_step, tail=config.tail, objective=objective, max_exits=config.max_exits
    )
    price = make_price(costs, objective=objective)
    return plan_certified(trace, ladder, price, tolerance=config.tolerance, settings=config.certify)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOrigin:
    """What a bundle's manifest tells of where it came from, the data that it was calibrated on included."""

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


def _reuse(
    run: RunFolder, inputs: Mapping[str, str], parameters: Mapping[str, Any], origin: BundleOrigin
) -> PlanningResult | None:
    if not is_current(run.plan, kind="plan", inputs=inputs, parameters=parameters):
        return None
    plan = open_artifact(run.plan, kind="plan", remedy=_REMEDY)
    if not is_current(run.bundle, kind="bundle", inputs=origin.inputs(plan), parameters=origin.parameters()):
        return None
    return read_result(plan, reused=True, bundle=run.bundle)


def kept_grids(run: RunFolder, trace: Artifact, config: PlanConfig) -> KeptGrids:
    """Returns the grids that the last planning left, if they are of this trace, this risk and these thresholds."""
    fresh = KeptGrids(thresholds=threshold_grid(config.grid_step))
    try:
        plan = open_artifact(run.plan, kind="plan", remedy=_REMEDY)
        if not share_grids(plan.manifest, trace, config):
            return fresh
        kept = KeptGrids.load(plan.path(GRID_NPZ))
    except ArtifactError:
        return fresh
    return kept if np.array_equal(kept.thresholds, fresh.thresholds) else fresh


def share_grids(earlier: Manifest, trace: Artifact, config: PlanConfig) -> bool:
    """Tells whether the grids of an earlier planning or sweep hold the sums of the metric that a config asks for."""
    risk = earlier.parameters.get("config", {}).get("certify", {}).get("risk")
    agreement = "agreement" in (risk, config.certify.risk) and risk != config.certify.risk
    return earlier.inputs.get("trace") == trace.digest and not agreement


def _publish_plan(
    run: RunFolder, result: SearchResult, certified: CertifiedPlans | None, commitment: Commitment, kept: KeptGrids,
    *, inputs: Mapping[str, str], parameters: Mapping[str, Any],
) -> None:  # fmt: skip
    with new_artifact(run.plan, kind="plan", inputs=inputs, parameters=parameters) as staging:
        write_json(staging / EXIT_PLAN_JSON, commitment.winner.plan)
        write_json(staging / CONSIDERED_JSON, describe_considered(result, commitment))
        write_json(staging / STAGES_JSON, commitment.itm)
        if certified is not None:
            plan = commitment.winner.plan
            write_json(staging / CERTIFICATION_JSON, describe_certified(certified, tolerance=plan.tolerance))
        result.patterns.save(staging / BPM_NPZ)
        kept.save(staging / GRID_NPZ)


def describe_considered(result: SearchResult, commitment: Commitment | None) -> list[dict[str, Any]]:
    """Returns every plan that was looked at as plain data: the committed one first, then those that were measured.

    Args:
        result: the plans.
        commitment: the measurements; ``None`` where nothing could be measured, the first plan is the answer then.
    """
    measured = {} if commitment is None else {one.figures.chosen: one for one in commitment.contenders}
    order = {chosen: rank for rank, chosen in enumerate(measured)}
    ranked = sorted(result.considered, key=lambda one: order.get(one.figures.chosen, len(order)))
    described = []
    for one in ranked:
        contender = measured.get(one.figures.chosen)
        figures = one.figures if contender is None else contender.figures
        described.append(
            {
                "exits": list(figures.chosen.cuts),
                "thresholds": list(figures.chosen.thresholds),
                "leaving_shares": list(figures.outcome.shares),
                "metric": figures.outcome.metric,
                "arrival_ms": list(figures.times.arrival_ms),
                "predicted_full_ms": figures.full_ms,
                "predicted_mean_ms": figures.times.mean_ms,
                "predicted_batch_ms": figures.times.batch_ms,
                "predicted_p99_ms": figures.times.p99_ms,
                "recorded_mean_ms": figures.recorded.mean_ms,
                "recorded_batch_ms": figures.recorded.batch_ms,
                "oracle_mean_ms": figures.oracle_mean_ms,
                "searched_mean_ms": one.figures.times.mean_ms,
                "searched_batch_ms": one.figures.times.batch_ms,
                "searched_p99_ms": one.figures.times.p99_ms,
                "measured_mean_ms": None if contender is None else contender.measured_mean_ms,
                "measured_batch_ms": None if contender is None else contender.measured_batch_ms,
                "stay_ratio": None if contender is None else contender.stay_ratio,
                "measured_p99_ms": None if contender is None else contender.measured_p99_ms,
                "in_time_share": one.in_time_share,
                "allowed": one.allowed and (contender is None or contender.allowed),
                "path": one.path,
                "reference": one.figures.chosen == result.reference,
                "p_value": one.p_value,
                "certified": one.certificate is not None,
            }
        )
    return described


def read_result(plan: Artifact, *, reused: bool, bundle: Path | None) -> PlanningResult:
    """Reads a published plan.

    Args:
        plan: the artifact.
        reused: True when nothing had changed.
        bundle: the bundle that was made from it.
    """
    certified = any(entry.path == CERTIFICATION_JSON for entry in plan.manifest.files)
    return PlanningResult(
        plan=read_json(plan.path(EXIT_PLAN_JSON), ExitPlan),
        considered=tuple(read_json(plan.path(CONSIDERED_JSON), list)),
        plan_digest=plan.digest,
        bundle=bundle,
        reused=reused,
        certification=read_json(plan.path(CERTIFICATION_JSON), dict) if certified else None,
    )
