"""Certified plans: their tolerance holds on samples that were not used for tuning. ``--certify ltt``. Pure.

1. The trace is split at random: a fifth of the samples, at most 20,000, to tune on, the others for the test.
2. On the first, the search runs for several tolerances, from none at all to a little above the one asked for. More
   searches bound the disagreement with the final head instead of the metric: a plan that wins as many samples as it
   loses keeps the metric by luck of the draw, one that agrees with the full network keeps it for sure. For a set
   metric, which no search can add up, both kinds stand in.
3. Through each of these plans goes a *path* from safe to bold: the same exits, all thresholds at the same multiple of
   their distance from 1. The tuning samples tell roughly how far a path can be followed until the test fails; the one
   that is the fastest there is taken. Along a path more and more samples leave early, and none later. So its plans
   have nearly the same samples against them, and one more test costs next to nothing. Steps are of 1 %, coarser where
   a plan is sure to pass.
4. On the other samples the plans of the path are tested until the first that fails (``calibration.certify.risk_tests``
   has the theory). All that passed meet the tolerance together, except with probability ``delta``, so the fastest of
   them by any measure may be taken.
5. The plan without exits loses nothing and needs no test. When no other passes it is the answer, together with how
   many samples it would take, and which tolerance these samples can certify. Where the tolerance refers to another
   network, in float32 while a quantised one is planned for, the plan without exits is tested like any other, so that
   one certificate covers quantisation and exits together.

The search is an argument: anything that maps a ``SearchProblem`` to plans. It sees the samples for tuning only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from artifacts import Certificate, NoPlanError, Trace
from calibration import (
    RiskTest,
    TuningSplit,
    count_in_all,
    count_needed,
    find_tolerance,
    least_samples,
    run_sequence,
    split_for_tuning,
)
from planner.certify.evidence import evidence_reader, reference_evidence
from planner.certify.test_order import choose_order, find_plans
from planner.config import CertifyConfig
from planner.predict.replay import NO_EXITS, Exits
from planner.search.problem import Search, SearchedPlan, SearchProblem, SearchResult, rank_plans

_SHOWN = 12  # tested plans that are considered further: the boldest; safer ones are slower


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
        split: the samples for tuning and those for the test.
        shortage: the message when no plan of the sequence passed; ``None`` otherwise.
        lossless: the plan without exits loses nothing, since the tolerance refers to the network itself. Otherwise it
            is tested like any other, first of all.
    """

    sequence: tuple[TestedPlan, ...]
    no_exits: Certificate
    split: TuningSplit
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
        samples: in the trace, those for tuning and those of the test.
        tested: those of the test.
        needed: about how many it takes in all; ``None`` when the safest plan loses too much for any number.
        least: no plan can be certified with fewer.
        offered: the smallest tolerance that the safest plan passes at; ``None`` when there is none.
        safest: the plan that this is about; ``None`` when the search found no exits worth having.
        observed: its risk on the samples of the test; ``None`` without it.
    """

    samples: int
    tested: int
    needed: int | None
    least: int
    offered: float | None
    safest: Exits | None
    observed: float | None

    def describe(self, *, tolerance: float, delta: float) -> str:
        """Returns the message for a person."""
        if self.safest is None:
            return "no exits that may be chosen keep the tolerance on the samples for tuning and save time"
        said = [
            (
                f"no plan{' with exits' if self.safest.cuts else ''} can be certified to lose at most {tolerance:.4g} "
                f"(delta {delta:g}) with {self.samples} samples, {self.tested} of them for the test: the safest one "
                f"lost {self.observed:.4g} there"
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
    """Splits a trace, searches plans on one part and tests them on the other.

    Args:
        problem: its trace has the metric that the risk is about, see ``risk_trace``; with one tolerance.
        search: sees the samples for tuning only.
        settings: risk, delta and seed.

    Raises:
        InputError: there are fewer than two samples.
        NoPlanError: the full network's metric is 0 on one of the split.
    """
    trace, tolerance = problem.trace, problem.tolerance
    split = split_for_tuning(trace.sample_count, seed=settings.seed)
    tuning, held_out = trace.select(split.tuning), trace.select(split.certification)
    if 0 in (tuning.full_metric, held_out.full_metric):
        raise NoPlanError(
            f"the full network answers none of the samples for tuning, or of those for the test, of the "
            f"{trace.sample_count} calibration samples correctly, so that a relative tolerance has no meaning there. "
            "Calibrate with more samples: python -m calibration --data"
        )
    part = problem.on(tuning, (tolerance,))
    plans = find_plans(part, search, settings.risk)
    test, ordered = choose_order(
        part, plans, risk=settings.risk, delta=settings.delta, samples=held_out.sample_count
    )  # fmt: skip
    if trace.reference is not None:  # then the network itself may lose something, with no exits at all
        ordered = (NO_EXITS, *ordered)
    certified = certify_plans(ordered, held_out, test, split=split, tolerance=tolerance)
    return certified if trace.reference is None else replace(certified, lossless=False)


def certify_plans(
    plans: Sequence[Exits], held_out: Trace, test: RiskTest, *, split: TuningSplit, tolerance: float
) -> CertifiedPlans:
    """Tests plans in a fixed sequence.

    Args:
        plans: from safe to bold; must not have been chosen using the samples of the test.
        held_out: the trace of the samples of the test, with the metric that the risk is about.
        test: must not have been chosen using the samples of the test either.
        split: of the trace.
        tolerance: allowed relative loss, in [0, 1).
    """
    read, full = evidence_reader(held_out, test.risk), reference_evidence(held_out, test.risk)
    tested = run_sequence(test, full, map(read, plans), tolerance=tolerance)
    without = Certificate(
        risk=test.risk, bound=0.0, delta=test.delta, finite_sample=test.finite_sample, method="no exits", p_value=0.0,
        observed=0.0, samples=len(split.certification), tuning_samples=len(split.tuning), position=0, seed=split.seed,
        tuning_digest=split.tuning_digest, certification_digest=split.certification_digest,
    )  # fmt: skip
    sequence = [TestedPlan(exits=plan, p_value=None, certificate=None) for plan in plans]
    for place, (p_value, observed) in enumerate(tested):
        certificate = replace(
            without, bound=tolerance, method=test.name, p_value=p_value, observed=observed, position=place + 1
        )
        passed = p_value <= test.delta
        sequence[place] = replace(
            sequence[place], p_value=p_value, certificate=certificate if passed else None
        )  # fmt: skip
    short = not any(plan.certificate for plan in sequence)
    return CertifiedPlans(
        sequence=tuple(sequence),
        no_exits=without,
        split=split,
        shortage=_explain(test, held_out, plans[:1], split=split, tolerance=tolerance) if short else None,
    )


def _explain(
    test: RiskTest, held_out: Trace, safest: Sequence[Exits], *, split: TuningSplit, tolerance: float
) -> Shortage:
    tested = len(split.certification)
    samples = len(split.tuning) + tested
    least = count_in_all(least_samples(tolerance=tolerance, delta=test.delta))
    shortage = Shortage(
        samples=samples, tested=tested, needed=None, least=least, offered=None, safest=None, observed=None
    )  # fmt: skip
    if not safest:
        return shortage
    full, early = reference_evidence(held_out, test.risk), evidence_reader(held_out, test.risk)(safest[0])
    needed = count_needed(test, full, early, tolerance=tolerance)
    return replace(
        shortage,
        needed=None if needed is None else max(count_in_all(needed), least),
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
    tested = {plan.exits: plan.p_value for plan in certified.sequence if plan.p_value is not None}
    baseline = NO_EXITS if result.baseline is None else result.baseline
    considered = []
    for exits in dict.fromkeys((NO_EXITS, *list(tested)[-_SHOWN:], baseline)):
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
