"""Choice of the confidence: the largest probability, or a learned one where that saves time. Pure.

Everything is decided on the samples for tuning, so that a certificate, which is tested on the others, holds for plans
of either kind. To compare the two fairly, a sample's learned confidence comes from a fit to other samples of the
tuning samples (``cross_fit``); what ships is fitted to all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from artifacts import Trace, UsageError
from calibration import split_for_tuning
from planner.confidence.fitting import Learned, can_learn, cross_fit, fit_confidences
from planner.config import AUTO, LEARNED, PlanConfig
from planner.predict.costs import NetworkCosts
from planner.search.problem import SearchProblem
from planner.search.rules import COARSE, GREEDY
from planner.search.searches import find_search

LEAST_SAVING = 0.01
"""Of the expected time; a learned confidence that saves less does not ship: the simpler one is as good."""
_LEAST_SAMPLES = 50  # for tuning; of fewer nothing is learned by itself


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SettledConfidence:
    """The confidence that was chosen.

    Attributes:
        trace: with it.
        learned: per exit; empty where the exits keep the confidence that they have.
    """

    trace: Trace
    learned: Learned = field(default_factory=dict)


def settle_confidence(
    trace: Trace, costs: NetworkCosts, config: PlanConfig, report: Callable[[str], None] = lambda _: None
) -> SettledConfidence:
    """Chooses the confidence that plans are made with, and fits it to the samples for tuning.

    Args:
        trace: with the metric that the risk is about.
        costs: the stages' costs.
        config: which confidence, the tolerance, how plans are searched, and the split of the certificate.
        report: takes a line about the choice.

    Raises:
        UsageError: a learned one was asked for, and the trace does not hold what it is fitted to.
    """
    if config.confidence not in (AUTO, LEARNED):
        return SettledConfidence(trace=trace)
    if not can_learn(trace):
        if config.confidence == LEARNED:
            raise UsageError(
                "--confidence learned: the trace holds no features of the answers. They are there for a choice among "
                "classes, in traces of this release: remove the run's folder 'trace' and plan again"
            )
        return SettledConfidence(trace=trace)
    tuning = trace.select(tuning_samples(trace.sample_count, config))
    if config.confidence == AUTO and not _is_worth_it(tuning, costs, config, report):
        return SettledConfidence(trace=trace)
    learned = fit_confidences(tuning)
    return SettledConfidence(trace=trace.with_confidences(learned), learned=learned)


def tuning_samples(count: int, config: PlanConfig) -> np.ndarray:
    """Returns the samples for tuning among so many: those of the certificate; without one, all."""
    if config.certify.method == "none":
        return np.arange(count)
    return split_for_tuning(count, seed=config.certify.seed).tuning


def _is_worth_it(tuning: Trace, costs: NetworkCosts, config: PlanConfig, report: Callable[[str], None]) -> bool:
    """Compares the fastest plans with either confidence on the samples for tuning."""
    if tuning.sample_count < _LEAST_SAMPLES or tuning.full_metric == 0:
        return False
    given, learned = (
        _fastest_ms(candidate, costs, config) for candidate in (tuning, cross_fit(tuning, seed=config.certify.seed))
    )
    worth_it = learned < (1 - LEAST_SAVING) * given
    report(
        f"confidence: mean latency expected on the {tuning.sample_count} samples for tuning {given:.3f} ms by the "
        f"largest probability, {learned:.3f} ms by a learned confidence: the "
        f"{'learned one' if worth_it else 'largest probability'} is taken (--confidence)"
    )
    return worth_it


def _fastest_ms(trace: Trace, costs: NetworkCosts, config: PlanConfig) -> float:
    problem = SearchProblem(trace=trace, costs=costs, tolerances=(config.tolerance,), rules=config.rules)
    (result,) = find_search(GREEDY if config.search == GREEDY else COARSE)(problem)
    return result.best.times.mean_ms
