"""Tolerances against a network in float32 while a quantised one is planned for: valid for both losses together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from artifacts import NoPlanError, Reference, Trace
from planner import NO_EXITS, Exits, evaluate_exits
from planner.certify.certified import plan_certified
from planner.certify.evidence import evidence_reader, metric_under, refer_to, reference_evidence, risk_trace
from planner.config import SELF, CertifyConfig
from planner.workflow.searching import search_plans
from tests.planner.certify.test_certified import ANY_BATCHES, COSTS, population, search_one_exit
from tests.planner.planning_worlds import make_costs, make_problem, search_by

DELTA, ROUNDS, DRAWN = 0.2, 25, 600


def quantised(seed: int, *, lost: float, samples: int = 4000) -> Trace:
    """A network whose final head loses a share of the metric against a reference, and two exits."""
    trace = population(seed, samples=samples)
    random = np.random.default_rng(seed + 100)
    better = ~trace.metric[-1].astype(bool) & (random.random(samples) < lost / (1 - 0.93))
    agreement = np.where(better, 0.0, trace.agreement).astype(np.float32)
    reference = Reference(metric=(trace.metric[-1].astype(bool) | better).astype(np.float32), agreement=agreement)
    return replace(trace, reference=reference)


def lost_under(trace: Trace, plan: Exits) -> float:
    return 1 - metric_under(trace, plan).mean(dtype=float) / trace.full_metric


@pytest.mark.parametrize("risk", ["metric", "agreement"])
def test_what_is_certified_loses_too_much_at_most_with_delta(risk: str) -> None:
    """Of the network itself and of plans with exits alike, on redrawn calibration sets."""
    whole = risk_trace(quantised(1, lost=0.03), risk)
    assert whole.full_metric == pytest.approx(1 if risk == "agreement" else 0.96, abs=0.02)
    assert lost_under(whole, NO_EXITS) > 0.02
    random, violations, answered = np.random.default_rng(2), 0, 0
    for seed in range(ROUNDS):
        drawn = whole.select(random.integers(0, whole.sample_count, DRAWN))
        problem = make_problem(drawn, COSTS, 0.05, slow_batches=ANY_BATCHES)
        found = plan_certified(problem, search_one_exit, CertifyConfig(delta=DELTA, seed=seed, risk=risk))
        assert not found.lossless
        violations += max((lost_under(whole, plan) for plan in found.certificates), default=0) > 0.05
        answered += bool(found.certificates)
    assert violations / ROUNDS <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / ROUNDS)
    assert answered / ROUNDS > 0.5, "the network itself keeps the tolerance, and mostly some plan is found"


def test_a_network_that_loses_too_much_by_itself_is_certified_at_most_with_delta() -> None:
    whole = quantised(3, lost=0.055)
    tolerance = lost_under(whole, NO_EXITS) - 0.001
    random, passed = np.random.default_rng(4), 0
    for seed in range(ROUNDS):
        drawn = whole.select(random.integers(0, whole.sample_count, DRAWN))
        problem = make_problem(drawn, COSTS, tolerance, slow_batches=ANY_BATCHES)
        found = plan_certified(
            problem, search_by(lambda _, tolerances: [NO_EXITS for _ in tolerances]),
            CertifyConfig(delta=DELTA, seed=seed),
        )  # fmt: skip
        passed += NO_EXITS in found.certificates
    assert passed / ROUNDS <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / ROUNDS)


@pytest.mark.parametrize("method", ["ltt", "none"])
def test_no_plan_is_the_answer_where_the_network_itself_loses_too_much(method: str) -> None:
    trace = quantised(5, lost=0.06)
    costs = make_costs(0, exits=2, head=5.0)  # so that exits do not pay
    said: list[str] = []
    settings = CertifyConfig(method=method)
    with pytest.raises(
        NoPlanError, match=r"not even without exits: the network that is planned for loses .*--reference self"
    ):
        search_plans(make_problem(trace, costs, 0.01), "joint", settings, said.append)
    alone = refer_to(trace, SELF)
    assert alone.reference is None
    found, _ = search_plans(make_problem(alone, costs, 0.01), "joint", settings, said.append)
    assert found.best.exits == NO_EXITS
    assert refer_to(trace, None) is trace


def test_budgets_of_a_search_count_what_the_network_itself_loses() -> None:
    trace = quantised(6, lost=0.03)
    problem = make_problem(trace, COSTS, 0.05, 0.0)
    own = float(trace.metric[-1].sum(dtype=float))
    wanted = [own - (1 - tolerance) * float(trace.reference_metric.sum(dtype=float)) for tolerance in (0.05, 0.0)]
    assert problem.budgets == pytest.approx(wanted, abs=1e-3)
    assert problem.budgets[1] < 0 < problem.budgets[0]


def test_evidence_is_paired_with_the_reference() -> None:
    trace = quantised(7, lost=0.03)
    plan = Exits(cuts=("cut0",), thresholds=(0.5,))
    np.testing.assert_array_equal(reference_evidence(trace, "metric"), trace.reference_metric)
    agreeing = risk_trace(trace, "agreement")
    assert reference_evidence(agreeing, "agreement").min() == 1
    left = evaluate_exits(trace, plan).leaves_at
    assert trace.reference is not None
    np.testing.assert_array_equal(
        evidence_reader(agreeing, "agreement")(plan),
        np.where(left == 0, trace.reference.agreement[0], trace.reference.agreement[-1]),
    )
