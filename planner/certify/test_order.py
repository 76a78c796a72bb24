"""The fixed sequence of plans that a certificate tests, from safe to bold, by the tuning half alone. Pure.

``planner.certify.certified`` tells why it looks like this.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from artifacts import Trace
from calibration.certify.risk_tests import RiskTest, choose_test
from planner.certify.evidence import evidence_under, risk_trace
from planner.config import CertifyConfig
from planner.predict.replay import NO_EXITS, ChosenExits

RUNGS = tuple(step / 6 for step in range(8))  # of the tolerance that is asked for, for the metric
AGREEMENT_RUNGS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # and for the agreement
BETWEEN = (0.25, 0.5, 0.75)  # of the way from one plan of the sequence to the next
STRETCHED = (0.6, 0.7, 0.8, 0.9, 1.1, 1.2)  # distance of the thresholds from 1
Ladder = Callable[[Trace, Sequence[float]], Sequence[ChosenExits]]  # one plan per tolerance, tuned on the trace
Price = Callable[[Trace, ChosenExits], float]  # what the search makes small, expected on the trace, in milliseconds


def climb(tuning: Trace, ladder: Ladder, *, tolerance: float, risk: str) -> tuple[ChosenExits, ...]:
    """Returns the plans that the search finds for both ladders of tolerances, each once, in no order that matters."""
    found = list(ladder(tuning, _tolerances(RUNGS, tolerance)))
    if risk != "agreement":
        found += ladder(risk_trace(tuning, "agreement"), _tolerances(AGREEMENT_RUNGS, tolerance))
    return tuple(dict.fromkeys(plan for plan in found if plan.cuts))


def _tolerances(rungs: Sequence[float], tolerance: float) -> tuple[float, ...]:
    return tuple(sorted({min(rung * tolerance, 0.999) for rung in rungs}))


def vary_plans(plans: Sequence[ChosenExits]) -> tuple[ChosenExits, ...]:
    """Returns plans with variants of them that have the same exits, each once.

    Around every plan are safer and bolder ones, all of whose thresholds are further from or closer to certainty by the
    same factor; and between neighbours with the same exits those with thresholds on the way.
    """
    varied = list(plans)
    for plan in plans:
        doubt = 1 - np.array(plan.thresholds)
        varied += [_with_thresholds(plan, np.maximum(1 - factor * doubt, 0)) for factor in STRETCHED]
    for one, other in itertools.pairwise(plans):
        if one.cuts == other.cuts:
            start, end = np.array(one.thresholds), np.array(other.thresholds)
            varied += [_with_thresholds(one, start + way * (end - start)) for way in BETWEEN]
    return tuple(dict.fromkeys(varied))


def _with_thresholds(plan: ChosenExits, thresholds: np.ndarray) -> ChosenExits:
    return ChosenExits(cuts=plan.cuts, thresholds=tuple(thresholds.tolist()))


def rehearse(
    tuning: Trace, plans: Sequence[ChosenExits], price: Price, *, tolerance: float, settings: CertifyConfig
) -> tuple[RiskTest, tuple[ChosenExits, ...]]:
    """Chooses the test by the tuning half alone, and puts the plans that are worth it in order, see ``arrange``.

    Args:
        tuning: with the metric that the risk is about.
        plans: in any order.
        price: of a plan.
        tolerance: allowed relative loss, in [0, 1).
        settings: risk and delta.
    """
    test, p_values = choose_test(
        evidence_under(tuning, NO_EXITS, settings.risk),
        [evidence_under(tuning, plan, settings.risk) for plan in plans],
        tolerance=tolerance, risk=settings.risk, delta=settings.delta,
    )  # fmt: skip
    return test, _keep_faster(tuning, plans, p_values, price)


def arrange(
    tuning: Trace, plans: Sequence[ChosenExits], price: Price, test: RiskTest, *, tolerance: float
) -> tuple[ChosenExits, ...]:
    """Returns plans from safe to bold by a test of the tuning half; arguments as for ``rehearse``.

    Those are left out that are not expected to be faster than all before them and than no exits.
    """
    full = evidence_under(tuning, NO_EXITS, test.risk)
    p_values = [test.p_value(full, evidence_under(tuning, plan, test.risk), tolerance=tolerance) for plan in plans]
    return _keep_faster(tuning, plans, p_values, price)


def _keep_faster(
    tuning: Trace, plans: Sequence[ChosenExits], p_values: Sequence[float], price: Price
) -> tuple[ChosenExits, ...]:
    prices = [price(tuning, plan) for plan in plans]
    order = sorted(range(len(plans)), key=lambda index: (p_values[index], -prices[index]))
    kept: list[ChosenExits] = []
    best = price(tuning, NO_EXITS)
    for index in order:
        if prices[index] < best:
            kept.append(plans[index])
            best = prices[index]
    return tuple(kept)
