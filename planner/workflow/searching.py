"""Searching: from a planning configuration to the plans that may be committed, certified where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from artifacts import NoPlanError, Trace
from planner.certify.certified import CertifiedPlans, merge_certified, plan_certified
from planner.config import CertifyConfig, PlanConfig
from planner.predict.costs import NetworkCosts
from planner.predict.objectives import OBJECTIVE_WORDS
from planner.search.problem import SearchProblem, SearchResult, rank_plans
from planner.search.rules import GREEDY
from planner.search.searches import find_search
from planner.search.threshold_grids import KeptGrids

_MOST_SEARCHED = 50_000
_CLEARLY_FASTER = 0.9  # of the latency


def make_problem(trace: Trace, costs: NetworkCosts, config: PlanConfig, grids: KeptGrids) -> SearchProblem:
    """Returns the problem that a configuration poses.

    Args:
        trace: with the metric that the risk is about.
        costs: the stages' costs.
        config: tolerance and rules.
        grids: of this trace.

    Raises:
        NoPlanError: the trace allows no relative tolerance.
    """
    return SearchProblem(trace=trace, costs=costs, tolerances=(config.tolerance,), rules=config.rules, grids=grids)


def search_plans(
    problem: SearchProblem, search: str, certify: CertifyConfig, report: Callable[[str], None]
) -> tuple[SearchResult, CertifiedPlans | None]:
    """Searches, and certifies where that is asked for.

    Args:
        problem: with one tolerance.
        search: its name, one of ``searches.SEARCHES``.
        certify: whether and how to certify.
        report: takes lines about what was found.

    Returns:
        The plans; with a certificate only certified ones are allowed to win. And how they were certified.
    """
    searched = problem if certify.method == "none" else _limit_samples(problem)
    known = len(searched.grids.grids)
    (result,) = find_search(search)(searched)
    result = bound_no_exits(searched, result)
    report(
        f"{search} search: {len(result.considered)} plans over {len(searched.trace.exits)} candidates and "
        f"{searched.trace.sample_count} samples; {searched.grids.evaluations} grids evaluated, {known} kept from before"
    )
    objective = problem.rules.objective
    expected_ms = {plan.exits: plan.time_ms(objective) for plan in result.considered}
    if result.baseline is not None:
        report(
            f"{objective} latency expected: {expected_ms[result.best.exits]:.3f} ms, by the greedy search "
            f"{expected_ms[result.baseline]:.3f} ms"
        )
    if (hint := find_staying_hint(searched, search, result)) is not None:
        report(hint)
    if certify.method == "none":
        check_allowed(problem, result)
        return result, None
    certified = plan_certified(problem, find_search(search), certify)
    _report_certified(certified, problem.tolerance, report)
    if search != GREEDY:
        baseline = plan_certified(problem, find_search(GREEDY), certify).boldest
        result = replace(result, baseline=baseline)
    merged = merge_certified(problem, result, certified)
    check_allowed(problem, merged, certified)
    return merged, certified


def find_staying_hint(problem: SearchProblem, search: str, result: SearchResult) -> str | None:
    """Returns what the stay allowance costs where it keeps out an exit that would make the network clearly faster.

    Args:
        problem: with one tolerance.
        search: by which the plan with one exit and without that allowance is searched.
        result: of the same search with it.

    Returns:
        A note; ``None`` where no such exit takes a tenth off what the plan is expected to take.
    """
    rules = problem.rules
    allowance = rules.slow_batches.stay_allowance
    if allowance is None or problem.most_exits == 0:
        return None
    alone = replace(rules, max_exits=1, slow_batches=replace(rules.slow_batches, stay_allowance=None))
    (found,) = find_search(search)(replace(problem, rules=alone))
    if not (cuts := found.best.exits.cuts):
        return None
    excess = problem.costs.stay_ms(cuts) / problem.costs.slow_above.full_ms - 1
    before_ms, after_ms = problem.expect_ms(result.best.exits), problem.expect_ms(found.best.exits)
    if excess <= allowance or after_ms > _CLEARLY_FASTER * before_ms:
        return None
    keeps = "keeps out an exit" if result.best.exits.cuts else "lets no exit in"
    enough = np.ceil(excess * 100) / 100
    return (
        f"note: --stay-allowance {allowance:g} {keeps}. With --stay-allowance {enough:g} an exit at {cuts[0]} would "
        f"take the {OBJECTIVE_WORDS[rules.objective]} from {before_ms:.3f} to {after_ms:.3f} ms, as the samples say, "
        f"and a batch of which no row leaves would cost {excess:.1%} more"
    )


def bound_no_exits(problem: SearchProblem, result: SearchResult) -> SearchResult:
    """Returns the result in which the plan without exits is allowed only if the network itself keeps the metric."""
    if problem.trace.reference is None:  # it refers to itself
        return result
    considered = [
        replace(plan, allowed=plan.allowed and (bool(plan.exits.cuts) or problem.keeps_metric(plan.priced)))
        for plan in result.considered
    ]
    return replace(result, considered=tuple(rank_plans(considered, problem.rules.objective)))


def check_allowed(problem: SearchProblem, result: SearchResult, certified: CertifiedPlans | None = None) -> None:
    """Raises ``NoPlanError`` where not even the plan without exits may be taken."""
    if any(plan.allowed for plan in result.considered):
        return
    trace = problem.trace
    lost = 1 - float(trace.metric[-1].mean(dtype="float64")) / trace.full_metric
    why = "" if certified is None or certified.shortage is None else (
        f": {certified.shortage.describe(tolerance=problem.tolerance, delta=certified.no_exits.delta)}"
    )  # fmt: skip
    raise NoPlanError(
        f"no plan keeps the tolerance of {problem.tolerance:g} against the network in float32, not even without exits: "
        f"the network that is planned for loses {lost:.2%} on the samples by itself{why}. Allow more with --tolerance, "
        "name more samples, plan for the network in fp32, or let the tolerance refer to itself: --reference self"
    )


def _limit_samples(problem: SearchProblem) -> SearchProblem:
    """Returns the problem on some of the samples where there are very many.

    Certified plans are searched on the samples for tuning; this search only shows what could be had without a
    certificate, for which some of the samples are as good as all.
    """
    count = problem.trace.sample_count
    if count <= _MOST_SEARCHED:
        return problem
    drawn = np.random.default_rng(0).choice(count, _MOST_SEARCHED, replace=False)
    return problem.on(problem.trace.select(np.sort(drawn)), problem.tolerances)


def _report_certified(certified: CertifiedPlans, tolerance: float, report: Callable[[str], None]) -> None:
    tested = [plan for plan in certified.sequence if plan.p_value is not None]
    passed = sum(plan.certificate is not None for plan in certified.sequence)
    report(f"certificate: {passed} of {len(certified.sequence)} plans passed, {len(tested)} tested")
    if certified.shortage is not None:
        delta = certified.no_exits.delta
        report(f"note: {certified.shortage.describe(tolerance=tolerance, delta=delta)}")
