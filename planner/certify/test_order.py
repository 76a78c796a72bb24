"""Test order: the fixed sequence of plans that a certificate tests, from safe to bold, by the tuning half alone. Pure.

``planner.certify.certified`` says why it has this form.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from calibration import RiskTest, choose_test
from planner.certify.evidence import collect_evidence, risk_trace
from planner.predict.replay import NO_EXITS, Exits
from planner.search.problem import Search, SearchProblem

STEPS = tuple(step / 6 for step in range(8))  # tolerances to search, of the one asked for, by the metric
AGREEMENT_STEPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # and by the agreement
BETWEEN = (0.25, 0.5, 0.75)  # of the way from one plan of the sequence to the next
STRETCHED = (0.6, 0.7, 0.8, 0.9, 1.1, 1.2)  # distance of the thresholds from 1
_LARGEST = 0.999  # tolerance to search


def find_plans(tuning: SearchProblem, search: Search, risk: str) -> tuple[Exits, ...]:
    """Returns the plans that a search finds for tolerances around the one asked for, each once.

    Args:
        tuning: the problem on the tuning half, with the tolerance that was asked for.
        search: sees this half only.
        risk: unless it is the agreement, plans that bound the disagreement with the final head are added.
    """
    found = list(search(tuning.on(tuning.trace, _tolerances(STEPS, tuning.tolerance))))
    if risk != "agreement":
        agreeing = tuning.on(risk_trace(tuning.trace, "agreement"), _tolerances(AGREEMENT_STEPS, tuning.tolerance))
        found += search(agreeing)
    return tuple(dict.fromkeys(result.best.exits for result in found if result.best.exits.cuts))


def _tolerances(steps: Sequence[float], tolerance: float) -> tuple[float, ...]:
    return tuple(sorted({min(step * tolerance, _LARGEST) for step in steps}))


def vary_plans(plans: Sequence[Exits]) -> tuple[Exits, ...]:
    """Returns plans with variants of them that have the same exits, each once.

    Around every plan are safer and bolder ones, all of whose thresholds are further from or closer to certainty by the
    same factor; and between neighbours with the same exits those with thresholds on the way.
    """
    varied = list(plans)
    for plan in plans:
        doubt = 1 - np.array(plan.thresholds)
        varied += [_with_thresholds(plan, np.maximum(1 - factor * doubt, 0)) for factor in STRETCHED]
    for plan, following in itertools.pairwise(plans):
        if plan.cuts == following.cuts:
            start, end = np.array(plan.thresholds), np.array(following.thresholds)
            varied += [_with_thresholds(plan, start + way * (end - start)) for way in BETWEEN]
    return tuple(dict.fromkeys(varied))


def _with_thresholds(plan: Exits, thresholds: np.ndarray) -> Exits:
    return Exits(cuts=plan.cuts, thresholds=tuple(thresholds.tolist()))


def choose_order(
    tuning: SearchProblem, plans: Sequence[Exits], *, risk: str, delta: float
) -> tuple[RiskTest, tuple[Exits, ...]]:
    """Chooses the test by the tuning half alone, and puts the plans that are worth it in order, see ``order_plans``.

    Args:
        tuning: the problem on the tuning half, with the metric that the risk is about.
        plans: in any order.
        risk: one of ``calibration.RISKS``.
        delta: in (0, 1).
    """
    evidence = collect_evidence(tuning.trace, plans, risk)
    test, p_values = choose_test(evidence.full, evidence.plans, tolerance=tuning.tolerance, risk=risk, delta=delta)
    return test, _keep_faster(tuning, plans, p_values)


def order_plans(tuning: SearchProblem, plans: Sequence[Exits], test: RiskTest) -> tuple[Exits, ...]:
    """Returns plans from safe to bold by a test of the tuning half.

    Those are left out that are not expected to be faster than all before them and than no exits.
    """
    evidence = collect_evidence(tuning.trace, plans, test.risk)
    p_values = [test.p_value(evidence.full, early, tolerance=tuning.tolerance) for early in evidence.plans]
    return _keep_faster(tuning, plans, p_values)


def _keep_faster(tuning: SearchProblem, plans: Sequence[Exits], p_values: Sequence[float]) -> tuple[Exits, ...]:
    expected_ms = [tuning.expect_ms(plan) for plan in plans]
    order = sorted(range(len(plans)), key=lambda index: (p_values[index], -expected_ms[index]))
    faster: list[Exits] = []
    best_ms = tuning.expect_ms(NO_EXITS) if tuning.trace.reference is None else float("inf")
    for index in order:
        if expected_ms[index] < best_ms:
            faster.append(plans[index])
            best_ms = expected_ms[index]
    return tuple(faster)
