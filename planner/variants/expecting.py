"""The time to expect of a variant, from its trace and its times, on the samples for tuning alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts import Trace
from planner.certify.evidence import refer_to, risk_trace
from planner.confidence.choosing import settle_confidence, tuning_samples
from planner.config import PlanConfig
from planner.predict.costs import NetworkCosts
from planner.search.problem import SearchProblem
from planner.search.searches import find_search
from planner.workflow.searching import bound_no_exits

ROOM = 0.5
"""The share of a tolerance that a certified plan uses, roughly; the rest is what the samples of the test vary by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a variant is expected to take, in milliseconds by the objective.

    Attributes:
        ms: of the fastest plan that keeps the tolerance; ``None`` where none does, not even without exits.
        exits: of that plan.
        full_metric: of the variant's own full network.
        reference_metric: of the network that the tolerance refers to.
    """

    ms: float | None
    exits: tuple[str, ...]
    full_metric: float
    reference_metric: float


def expect_variant(trace: Trace, costs: NetworkCosts, config: PlanConfig) -> Expected:
    """Searches the fastest plan of a variant on the samples for tuning, so that those of the test stay unseen.

    Args:
        trace: of the variant.
        costs: of its stages.
        config: as for planning. With a certificate the plan shall keep ``1 - ROOM`` of the tolerance in hand.
    """
    wanted = risk_trace(refer_to(trace, config.certify.reference), config.certify.risk)
    settled = settle_confidence(wanted, costs, config).trace
    tuning = settled.select(tuning_samples(settled.sample_count, config))
    tolerance = config.tolerance * (1.0 if config.certify.method == "none" else ROOM)
    problem = SearchProblem(trace=tuning, costs=costs, tolerances=(tolerance,), rules=config.rules)
    (result,) = find_search(config.search)(problem)
    best = bound_no_exits(problem, result).considered[0]
    return Expected(
        ms=best.time_ms(config.objective) if best.allowed else None,
        exits=best.exits.cuts,
        full_metric=float(wanted.metric[-1].mean(dtype="float64")),
        reference_metric=wanted.full_metric,
    )
