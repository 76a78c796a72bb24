"""Plans whose tolerance holds on data that nobody tuned on: ``--certify ltt``. Pure.

1. The trace is split at random into two halves.
2. On the first, the search runs for a ladder of tolerances, from none at all to a little above the one asked for. A
   plan that is tuned to lose 1 % on these samples loses more on others, so it is usually a plan from the middle of
   the ladder that really keeps 1 %. A second ladder bounds the disagreement with the final head instead of the
   metric: a plan that wins as many samples as it loses keeps the metric by luck of the draw, one that agrees with the
   full network keeps it for sure. On the demo network these plans are the ones that pass first. For a set metric,
   which no search can add up, these two ladders stand in. Variants of these plans with other thresholds fill the gaps
   between them (``vary_plans``), so that the first plan that fails lies just behind the last that passed. A test more
   costs nothing in a fixed sequence, and plans with the same exits have nearly the same samples against them.
3. The plans are put in order from safe to bold by their p-values on the first half; what is not expected to be faster
   than a safer plan is dropped.
4. On the second half the plans are tested in this order until the first that fails
   (``calibration.certify.risk_tests`` has the theory). All that passed meet the tolerance together, except with
   probability ``delta``, so the fastest of them by any measure may be taken.
5. The plan without exits loses nothing and needs no test. When no other passes it is the answer, together with how
   many samples it would take, and which tolerance these samples can certify.

The search is an argument: anything that maps a trace and tolerances to plans. It sees the first half only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from artifacts import Certificate, NoPlanError, Trace
from calibration.certify.risk_tests import (
    Halves,
    RiskTest,
    count_needed,
    find_tolerance,
    least_samples,
    run_sequence,
    split_halves,
)
from planner.certify.evidence import evidence_under
from planner.certify.test_order import Ladder, Price, arrange, climb, rehearse, vary_plans
from planner.config import CertifyConfig, PlanConfig
from planner.predict.costs import NetworkCosts
from planner.predict.replay import NO_EXITS, ChosenExits, evaluate_plan
from planner.search.greedy import Considered, SearchResult, share_in_time
from planner.search.prices import P99, objective_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedPlan:
    """A plan of the tested sequence.

    Attributes:
        chosen: its exits.
        p_value: of "its risk is above the tolerance"; ``None`` when the sequence had ended before it.
        certificate: ``None`` when it failed or was not tested.
    """

    chosen: ChosenExits
    p_value: float | None
    certificate: Certificate | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CertifiedPlans:
    """What became of a ladder.

    Attributes:
        sequence: the tested plans from safe to bold.
        no_exits: the certificate of the plan without exits.
        halves: which samples were tuned on, which tested.
        shortage: what to say when no plan with exits passed; ``None`` otherwise.
    """

    sequence: tuple[TriedPlan, ...]
    no_exits: Certificate
    halves: Halves
    shortage: Shortage | None

    @property
    def certificates(self) -> dict[ChosenExits, Certificate]:
        """The plans that may be taken, each with its certificate; the boldest last, the one without exits first."""
        passed = {one.chosen: one.certificate for one in self.sequence if one.certificate is not None}
        return {NO_EXITS: self.no_exits, **passed}

    @property
    def boldest(self) -> ChosenExits:
        return list(self.certificates)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why no plan with exits could be certified.

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
    safest: ChosenExits | None
    observed: float | None

    def describe(self, *, tolerance: float, delta: float) -> str:
        """Returns the message for a person."""
        if self.safest is None:
            return "no exits that keep the tolerance on the samples for tuning make the network faster"
        said = [
            (
                f"no plan with exits can be certified to lose at most {tolerance:.4g} (delta {delta:g}) "
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


def plan_certified(
    trace: Trace, ladder: Ladder, price: Price, *, tolerance: float, settings: CertifyConfig
) -> CertifiedPlans:
    """Splits a trace, tunes a ladder of plans on one half and tests it on the other.

    Args:
        trace: with the metric that the risk is about, see ``risk_trace``.
        ladder: the search.
        price: decides which plans are worth testing.
        tolerance: allowed relative loss, in [0, 1).
        settings: risk, delta and seed.

    Raises:
        InputError: there are fewer than two samples.
        NoPlanError: the full network's metric is 0 on one of the halves.
    """
    halves = split_halves(trace.sample_count, seed=settings.seed)
    tuning = trace.select(halves.tuning)
    if 0 in (tuning.full_metric, trace.select(halves.certification).full_metric):
        raise NoPlanError(
            f"the full network answers none of one half of the {trace.sample_count} calibration samples correctly, so "
            "that a relative tolerance has no meaning there. Calibrate with more samples: python -m calibration --data"
        )
    plans = climb(tuning, ladder, tolerance=tolerance, risk=settings.risk)
    test, ordered = rehearse(tuning, plans, price, tolerance=tolerance, settings=settings)
    ordered = arrange(tuning, vary_plans(ordered), price, test, tolerance=tolerance)
    return certify_plans(trace, ordered, test, halves=halves, tolerance=tolerance)


def certify_plans(
    trace: Trace, plans: Sequence[ChosenExits], test: RiskTest, *, halves: Halves, tolerance: float
) -> CertifiedPlans:
    """Tests plans in a fixed sequence.

    Args:
        trace: with the metric that the risk is about.
        plans: from safe to bold; nothing about them may have been decided on ``halves.certification``.
        test: nor this.
        halves: of the trace.
        tolerance: allowed relative loss, in [0, 1).
    """
    held_out = trace.select(halves.certification)
    full = evidence_under(held_out, NO_EXITS, test.risk)
    found = (evidence_under(held_out, plan, test.risk) for plan in plans)
    p_values = run_sequence(test, full, found, tolerance=tolerance)
    sequence = []
    for position, (plan, p_value) in enumerate(itertools.zip_longest(plans, p_values), start=1):
        certificate = None
        if p_value is not None and p_value <= test.delta:
            observed = test.observe(full, evidence_under(held_out, plan, test.risk))
            certificate = _certificate(
                test, halves, bound=tolerance, p_value=p_value, observed=observed, position=position
            )
        sequence.append(TriedPlan(chosen=plan, p_value=p_value, certificate=certificate))
    short = not any(one.certificate for one in sequence)
    return CertifiedPlans(
        sequence=tuple(sequence),
        no_exits=_certificate(test, halves, bound=0.0, p_value=0.0, observed=0.0, position=0),
        halves=halves,
        shortage=_explain(test, held_out, plans[:1], trace.sample_count, tolerance) if short else None,
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
    test: RiskTest, held_out: Trace, safest: Sequence[ChosenExits], samples: int, tolerance: float
) -> Shortage:
    least = 2 * least_samples(tolerance=tolerance, delta=test.delta)
    if not safest:
        return Shortage(samples=samples, needed=None, least=least, offered=None, safest=None, observed=None)
    full, early = (evidence_under(held_out, plan, test.risk) for plan in (NO_EXITS, safest[0]))
    needed = count_needed(test, full, early, tolerance=tolerance)
    return Shortage(
        samples=samples,
        needed=None if needed is None else max(2 * needed, least),
        least=least,
        offered=find_tolerance(test, full, early, above=tolerance),
        safest=safest[0],
        observed=test.observe(full, early),
    )


def merge_certified(
    result: SearchResult, certified: CertifiedPlans, trace: Trace, costs: NetworkCosts, config: PlanConfig
) -> SearchResult:
    """Returns a search's result in which only plans with a certificate are allowed, the certified ones added.

    Args:
        result: of the search on the whole trace, without a certificate.
        certified: what was tested.
        trace: the whole trace, which all plans are evaluated on.
        costs: the prices of the stages.
        config: its tail rule and objective.
    """
    tried = {one.chosen: one for one in certified.sequence}
    considered = []
    reference = NO_EXITS if result.reference is None else result.reference
    for chosen in dict.fromkeys((NO_EXITS, *tried, reference)):
        figures = evaluate_plan(
            trace, chosen, costs.plan_costs(chosen.cuts), full_ms=costs.full_ms, load=costs.load,
            percentile=config.objective == P99,
        )  # fmt: skip
        certificate = certified.certificates.get(chosen)
        share = 1.0
        if chosen.cuts:
            share = share_in_time(costs, chosen.cuts[0], figures.outcome.survival[1], allowance=config.tail.allowance)
        considered.append(
            Considered(
                figures=figures, step=len(chosen.cuts), in_time_share=share, allowed=certificate is not None,
                path=False, p_value=tried[chosen].p_value if chosen in tried else None, certificate=certificate,
            )
        )  # fmt: skip
    known = {one.figures.chosen for one in considered}
    considered += [replace(one, allowed=False) for one in result.considered if one.figures.chosen not in known]
    considered.sort(key=lambda one: (not one.allowed, objective_ms(one.figures.times, config.objective), one.step))
    return replace(result, considered=tuple(considered))


def describe_certified(certified: CertifiedPlans, *, tolerance: float) -> dict[str, Any]:
    """Returns the tested sequence and the shortage as plain data, as in ``certification.json``."""
    shortage, delta = certified.shortage, certified.no_exits.delta
    return {
        "tolerance": tolerance,
        "delta": delta,
        "risk": certified.no_exits.risk,
        "sequence": [
            {
                "exits": list(one.chosen.cuts),
                "thresholds": list(one.chosen.thresholds),
                "p_value": one.p_value,
                "certified": one.certificate is not None,
            }
            for one in certified.sequence
        ],
        "samples_needed": None if shortage is None else shortage.needed,
        "tolerance_offered": None if shortage is None else shortage.offered,
        "note": None if shortage is None else shortage.describe(tolerance=tolerance, delta=delta),
    }
