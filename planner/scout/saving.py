"""Savings: the range of the time that exits would save, at several tolerances, from probes and measured times. Pure.

*At least.* Thresholds are tuned on one half of the samples and judged on the other, then the other way round, so that
every sample is judged once. They are tuned to lose half of the tolerance, a quarter of it, nothing; the boldest counts
whose judged answers pass the very test that certifies plans, at 95 %, and would pass it too on as few samples as the
planner will certify with, half of those that calibrate: of sets of that size that are drawn from the judged samples,
nine in ten must pass. With few of them only plans that lose next to nothing can be certified, whatever the tolerance;
where none is left, nothing is promised. From the mean latency of the judged samples come off a one-sided 95 % limit,
and what the heads and gathers of a plan may cost at most: the stay allowance, by which the planner refuses dearer ones.
Nor is anything promised where the data has too few samples to certify the tolerance.

*At most.* The oracle of the probes: every sample leaves at the first cut whose probe answers as well as the full
network, whatever its confidence, at no cost of heads and gathers; as much of the metric as the tolerance allows is lost
on the samples that would leave last. The other limit of the mean counts. Heads that are trained on much more data than
the probes may answer more, thresholds that know nothing of the answers will do less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import Trace, find_first_true
from calibration import RiskTest, count_tuning, least_samples
from planner.predict.costs import NetworkCosts, expect_times
from planner.predict.replay import NO_EXITS, Exits, price_exits
from planner.search.joint import plan_coarsely
from planner.search.problem import SearchProblem
from planner.search.rules import SearchRules, SlowBatchRule

TOLERANCES = (0.005, 0.01, 0.02, 0.05)
WORTHWHILE = 0.05
"""A smaller saving is called none."""
_LIMIT, _DOUBT = 1.645, 0.05  # standard errors of a one-sided 95 %, and what is left
_SPENT = (0.5, 0.25, 0.0)  # of the tolerance, on the samples that are tuned on
_MOST_EXITS = 2
_REDRAWN, _MOSTLY = 100, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """The range of the saving at one tolerance, as shares of the full network's mean latency.

    Attributes:
        tolerance: allowed relative loss.
        at_least, at_most: see above; 0.4 is a mean latency of 0.6 of the full network's.
        lost: relative loss on the judged samples under the thresholds of ``at_least``; the safest where none passed.
        certifiable: whether there are samples enough to calibrate with; ``None``: that was not asked.
    """

    tolerance: float
    at_least: float
    at_most: float
    lost: float
    certifiable: bool | None


def estimate_savings(
    trace: Trace,
    halves: np.ndarray,
    costs: NetworkCosts,
    *,
    tolerances: Sequence[float] = TOLERANCES,
    delta: float | None = None,
    calibrating: int = 0,
) -> tuple[Saving, ...]:
    """Returns the range of the saving at every tolerance.

    Args:
        trace: held-out answers of the probes and the full network's; its exits are the cuts that were probed.
        halves: (n,) bool, as the probes were fitted.
        costs: measured times; those of heads and gathers are 0.
        tolerances: in [0, 1).
        delta: of the certificate; ``None``: none is asked for.
        calibrating: how many samples there are to calibrate with.
    """
    found, tested = [], calibrating - count_tuning(calibrating)
    for tolerance in tolerances:
        certifiable = None if delta is None else tested >= least_samples(tolerance=tolerance, delta=delta)
        certificate = None if delta is None else (delta, tested)
        at_least, lost = _promise(trace, halves, costs, tolerance, certificate)
        at_least = 0.0 if certifiable is False else at_least
        at_most = max(at_least, _hope(trace, costs, tolerance))
        found.append(
            Saving(tolerance=tolerance, at_least=at_least, at_most=at_most, lost=lost, certifiable=certifiable)
        )
    return tuple(found)


def _promise(
    trace: Trace, halves: np.ndarray, costs: NetworkCosts, tolerance: float, certificate: tuple[float, int] | None
) -> tuple[float, float]:
    """Returns what is saved at least, and what is lost on the judged samples.

    Args:
        trace, halves, costs, tolerance: as for ``estimate_savings``.
        certificate: its delta, and how many samples it will be tested on; ``None``: none is asked for.
    """
    full = trace.metric[-1]
    test = RiskTest(name="paired-exact", risk="metric", delta=_DOUBT)
    if not trace.labelled:
        test = RiskTest(name="binomial", risk="agreement", delta=_DOUBT)
    lost = 0.0
    for spent in _SPENT:
        latency, metric = _judge(trace, halves, costs, spent * tolerance)
        if full.any():
            lost = test.observe(full, metric)
        if not full.any() or test.p_value(full, metric, tolerance=tolerance) > _DOUBT:
            continue
        if certificate is None or _would_certify(test, full, metric, tolerance, certificate):
            allowance = SlowBatchRule().stay_allowance or 0.0
            slowest = float(latency.mean()) + _LIMIT * _error_of(latency) + allowance * costs.full_ms
            return max(0.0, 1 - slowest / costs.full_ms), lost
    return 0.0, lost


def _would_certify(
    test: RiskTest, full: np.ndarray, metric: np.ndarray, tolerance: float, certificate: tuple[float, int]
) -> bool:
    """Tells whether sets of samples of the certificate's size, drawn from the judged ones, mostly pass its test."""
    delta, size = certificate
    random, passed = np.random.default_rng(0), 0
    for _ in range(_REDRAWN):
        drawn = random.integers(0, len(full), size)
        passed += bool(full[drawn].any()) and test.p_value(full[drawn], metric[drawn], tolerance=tolerance) <= delta
    return passed >= _MOSTLY * _REDRAWN


def _judge(
    trace: Trace, halves: np.ndarray, costs: NetworkCosts, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns latency and metric (n,) of every sample under thresholds that were tuned on the other half."""
    rules = SearchRules(max_exits=_MOST_EXITS, slow_batches=SlowBatchRule(stay_allowance=None))
    latency, metric = np.empty(trace.sample_count), np.empty(trace.sample_count, np.float32)
    for half in (False, True):
        tuned, judged = trace.select(np.flatnonzero(halves != half)), trace.select(np.flatnonzero(halves == half))
        exits = NO_EXITS
        if tuned.full_metric > 0:
            (result,) = plan_coarsely(SearchProblem(trace=tuned, costs=costs, tolerances=(tolerance,), rules=rules))
            exits = result.best.exits
        priced = price_exits(judged, exits, costs)
        leaves, rows = priced.outcome.leaves_at, [*(judged.exits.index(cut) for cut in exits.cuts), -1]
        latency[halves == half] = np.array(priced.times.arrival_ms)[leaves]
        metric[halves == half] = judged.metric[rows][leaves, np.arange(judged.sample_count)]
    return latency, metric


def _hope(trace: Trace, costs: NetworkCosts, tolerance: float) -> float:
    """Returns what is saved at most."""
    full = trace.metric[-1]
    leaves = find_first_true(trace.metric[:-1] >= full)
    allowed = int(tolerance * float(full.sum(dtype=np.float64)) + 1e-9)
    last = np.argsort(-leaves, kind="stable")[:allowed]
    leaves[last] = 0
    entering = [float((leaves >= stage).mean()) for stage in range(len(trace.exits) + 1)]
    every = Exits(cuts=trace.exits, thresholds=(0.0,) * len(trace.exits))
    arrival = np.array(expect_times(costs.plan_costs(every.cuts), entering, costs.load).arrival_ms)
    latency = arrival[leaves]
    fastest = float(latency.mean()) - _LIMIT * _error_of(latency)
    return float(np.clip(1 - fastest / costs.full_ms, 0.0, 1.0))


def _error_of(values: np.ndarray) -> float:
    """Returns the standard error of a mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def judge_savings(savings: Sequence[Saving]) -> str:
    """Returns ``yes``, ``perhaps`` or ``no``: whether exits are worth training, by the widest tolerance."""
    if max(saving.at_most for saving in savings) < WORTHWHILE:
        return "no"
    return "yes" if max(saving.at_least for saving in savings) >= WORTHWHILE else "perhaps"
