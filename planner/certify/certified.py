"""Certified plans: their tolerance holds on samples that were not used for tuning. ``--certify ltt``. Pure.

1. The trace is split at random into two halves.
2. On the first, the search runs for several tolerances, from none at all to a little above the one asked for. A plan
   that is tuned to lose 1 % on these samples loses more on others, so it is usually a plan for a smaller tolerance
   that really keeps 1 %. More searches bound the disagreement with the final head instead of the metric: a plan that
   wins as many samples as it loses keeps the metric by luck of the draw, one that agrees with the full network keeps
   it for sure. On the demo network these plans are the ones that pass first. For a set metric, which no search can add
   up, both kinds stand in. Variants of these plans with other thresholds fill the gaps between them (``vary_plans``),
   so that the first plan that fails lies just behind the last that passed. One more test costs nothing in a fixed
   sequence, and plans with the same exits have nearly the same samples against them.
3. The plans are put in order from safe to bold by their p-values on the first half; plans that are not expected to be
   faster than a safer one are dropped.
4. On the second half the plans are tested in this order until the first that fails
   (``calibration.certify.risk_tests`` has the theory). All that passed meet the tolerance together, except with
   probability ``delta``, so the fastest of them by any measure may be taken.
5. The plan without exits loses nothing and needs no test. When no other passes it is the answer, together with how
   many samples it would take, and which tolerance these samples can certify. Where the tolerance refers to another
   network, in float32 while a quantised one is planned for, the plan without exits is tested like any other, so that
   one certificate covers quantisation and exits together.

The search is an argument: anything that maps a ``SearchProblem`` to plans. It sees the first half only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from artifacts import Certificate, NoPlanError
from calibration import (
    Halves,
    RiskTest,
    count_needed,
    find_tolerance,
    least_samples,
    run_sequence,
    split_halves,
)
from planner.certify.evidence import Evidence, collect_evidence
from planner.certify.test_order import choose_order, find_plans, order_plans, vary_plans
from planner.config import CertifyConfig
from planner.predict.replay import NO_EXITS, Exits
from planner.search.problem import Search, SearchedPlan, SearchProblem, SearchResult, rank_plans


@dataclass(frozen=True, slots=True, kw_only=True)
class TestedPlan:
    """A plan of the fixed sequence.

    Attributes:
        exits: cuts and thresholds.
        p_value: of "its risk is above the tolerance"; ``None`` when the sequence had ended before it.
        certificate: ``None`` when it failed or was not tested.
    """

    exits: Exits
    p_value: float | None
    certificate: Certificate | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CertifiedPlans:
    """The plans that were tested, and which of them are certified.

    Attributes:
        sequence: the tested plans from safe to bold.
        no_exits: the certificate of the plan without exits.
        halves: the samples for tuning and those for the test.
        shortage: the message when no plan of the sequence passed; ``None`` otherwise.
        lossless: the plan without exits loses nothing, since the tolerance refers to the network itself. Otherwise it
            is tested like any other.
    """

    sequence: tuple[TestedPlan, ...]
    no_exits: Certificate
    halves: Halves
    shortage: Shortage | None
    lossless: bool = True

    @property
    def certificates(self) -> dict[Exits, Certificate]:
        """The plans that may be taken, each with its certificate; the boldest last, the one without exits first."""
        passed = {plan.exits: plan.certificate for plan in self.sequence if plan.certificate is not None}
        return {NO_EXITS: self.no_exits, **passed} if self.lossless else passed

    @property
    def boldest(self) -> Exits:
        """The last plan that passed; the one without exits when no other did."""
        return list(self.certificates)[-1] if self.certificates else NO_EXITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why no plan of the sequence could be certified.

    Attributes:
        samples: in the trace, both halves.
        needed: about how many it takes, both halves; ``None`` when the safest plan loses too much for any number.
        least: no plan can be certified with fewer.
        offered: the smallest tolerance that the safest plan passes at; ``None`` when there is none.
        safest: the plan that this is about; ``None`` when the search found no exits worth having.
        observed: its risk on the samples of the test; ``None`` without it.
    """

    samples: int
    needed: int | None
    least: int
    offered: float | None
    safest: Exits | None
    observed: float | None

    def describe(self, *, tolerance: float, delta: float) -> str:
        """Returns the message for a person."""
        if self.safest is None:
            return "no exits that keep the tolerance on the samples for tuning make the network faster"
        said = [
            (
                f"no plan{' with exits' if self.safest.cuts else ''} can be certified to lose at most {tolerance:.4g} "
                f"(delta {delta:g}) "
                f"with {self.samples} samples, half of them for the test: the safest one lost {self.observed:.4g} there"
            )
        ]
        if self.needed is not None:
            said.append(f"about {self.needed} samples would be needed (never fewer than {self.least})")
        else:
            said.append("more samples alone would hardly help")
        if self.offered is not None:
            said.append(f"these samples certify --tolerance {_round_up(self.offered)}")
        said.append("or take the plan as the paper does, without a guarantee: --certify none")
        return "; ".join(said)


def _round_up(tolerance: float) -> str:
    digits = 2 - int(np.floor(np.log10(tolerance)))
    return f"{np.ceil(tolerance * 10**digits) / 10**digits:.{max(digits, 0)}g}"


def plan_certified(problem: SearchProblem, search: Search, settings: CertifyConfig) -> CertifiedPlans:
    """Splits a trace, searches plans on one half and tests them on the other.

    Args:
        problem: its trace has the metric that the risk is about, see ``risk_trace``; with one tolerance.
        search: sees the tuning half only.
        settings: risk, delta and seed.

    Raises:
        InputError: there are fewer than two samples.
        NoPlanError: the full network's metric is 0 on one of the halves.
    """
    trace, tolerance = problem.trace, problem.tolerance
    halves = split_halves(trace.sample_count, seed=settings.seed)
    tuning, held_out = trace.select(halves.tuning), trace.select(halves.certification)
    if 0 in (tuning.full_metric, held_out.full_metric):
        raise NoPlanError(
            f"the full network answers none of one half of the {trace.sample_count} calibration samples correctly, so "
            "that a relative tolerance has no meaning there. Calibrate with more samples: python -m calibration --data"
        )
    part = problem.on(tuning, (tolerance,))
    plans = find_plans(part, search, settings.risk)
    if trace.reference is not None:  # then the network itself may lose something, with no exits at all
        plans = (NO_EXITS, *plans)
    test, ordered = choose_order(part, plans, risk=settings.risk, delta=settings.delta)
    ordered = order_plans(part, vary_plans(ordered), test)
    evidence = collect_evidence(held_out, ordered, test.risk)
    certified = certify_plans(ordered, evidence, test, halves=halves, tolerance=tolerance)
    return certified if trace.reference is None else replace(certified, lossless=False)


def certify_plans(
    plans: Sequence[Exits], evidence: Evidence, test: RiskTest, *, halves: Halves, tolerance: float
) -> CertifiedPlans:
    """Tests plans in a fixed sequence.

    Args:
        plans: from safe to bold; must not have been chosen using the certification half.
        evidence: of these plans on the certification half.
        test: must not have been chosen using the certification half either.
        halves: of the trace.
        tolerance: allowed relative loss, in [0, 1).
    """
    p_values = run_sequence(test, evidence.full, evidence.plans, tolerance=tolerance)
    sequence = []
    tested = itertools.zip_longest(plans, p_values)
    for position, ((plan, p_value), early) in enumerate(zip(tested, evidence.plans, strict=True), start=1):
        certificate = None
        if p_value is not None and p_value <= test.delta:
            certificate = _certificate(
                test, halves, bound=tolerance, p_value=p_value, observed=test.observe(evidence.full, early),
                position=position,
            )  # fmt: skip
        sequence.append(TestedPlan(exits=plan, p_value=p_value, certificate=certificate))
    short = not any(plan.certificate for plan in sequence)
    return CertifiedPlans(
        sequence=tuple(sequence),
        no_exits=_certificate(test, halves, bound=0.0, p_value=0.0, observed=0.0, position=0),
        halves=halves,
        shortage=_explain(test, evidence, plans[:1], halves=halves, tolerance=tolerance) if short else None,
    )


def _certificate(
    test: RiskTest, halves: Halves, *, bound: float, p_value: float, observed: float, position: int
) -> Certificate:
    return Certificate(
        risk=test.risk, bound=bound, delta=test.delta, finite_sample=test.finite_sample,
        method=test.name if position else "no exits", p_value=p_value, observed=observed,
        samples=len(halves.certification), tuning_samples=len(halves.tuning), position=position, seed=halves.seed,
        tuning_digest=halves.tuning_digest, certification_digest=halves.certification_digest,
    )  # fmt: skip


def _explain(
    test: RiskTest, evidence: Evidence, safest: Sequence[Exits], *, halves: Halves, tolerance: float
) -> Shortage:
    least = 2 * least_samples(tolerance=tolerance, delta=test.delta)
    samples = len(halves.tuning) + len(halves.certification)
    if not safest:
        return Shortage(samples=samples, needed=None, least=least, offered=None, safest=None, observed=None)
    full, early = evidence.full, evidence.plans[0]
    needed = count_needed(test, full, early, tolerance=tolerance)
    return Shortage(
        samples=samples,
        needed=None if needed is None else max(2 * needed, least),
        least=least,
        offered=find_tolerance(test, full, early, above=tolerance),
        safest=safest[0],
        observed=test.observe(full, early),
    )


def merge_certified(problem: SearchProblem, result: SearchResult, certified: CertifiedPlans) -> SearchResult:
    """Returns a search's result in which only plans with a certificate are allowed, the certified ones added.

    Args:
        problem: on the whole trace, by which all plans are evaluated.
        result: of the search on it, without a certificate.
        certified: the plans that were tested.
    """
    tested = {plan.exits: plan.p_value for plan in certified.sequence}
    baseline = NO_EXITS if result.baseline is None else result.baseline
    considered = []
    for exits in dict.fromkeys((NO_EXITS, *tested, baseline)):
        priced, certificate = problem.price(exits), certified.certificates.get(exits)
        considered.append(
            SearchedPlan(
                priced=priced, in_time_share=problem.share_in_time(priced), allowed=certificate is not None,
                p_value=tested.get(exits), certificate=certificate,
            )
        )  # fmt: skip
    evaluated = {plan.exits for plan in considered}
    considered += [replace(plan, allowed=False) for plan in result.considered if plan.exits not in evaluated]
    return replace(result, considered=tuple(rank_plans(considered, problem.rules.objective)))


def describe_certified(certified: CertifiedPlans, *, tolerance: float) -> dict[str, Any]:
    """Returns the fixed sequence and the shortage as plain data, as in ``certification.json``."""
    shortage, delta = certified.shortage, certified.no_exits.delta
    return {
        "tolerance": tolerance,
        "delta": delta,
        "risk": certified.no_exits.risk,
        "sequence": [
            {
                "exits": list(plan.exits.cuts),
                "thresholds": list(plan.exits.thresholds),
                "p_value": plan.p_value,
                "certified": plan.certificate is not None,
            }
            for plan in certified.sequence
        ],
        "samples_needed": None if shortage is None else shortage.needed,
        "tolerance_offered": None if shortage is None else shortage.offered,
        "note": None if shortage is None else shortage.describe(tolerance=tolerance, delta=delta),
    }
