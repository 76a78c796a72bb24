"""Test order: the path of plans that a certificate tests, from safe to bold, chosen by the tuning samples. Pure.

``planner.certify.certified`` says why it has this form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from artifacts import Trace
from calibration import SET_METRICS, RiskTest, choose_test, tests_for
from planner.certify.evidence import evidence_reader, reference_evidence, risk_trace
from planner.predict.replay import NO_EXITS, Exits, exit_rows
from planner.search.problem import Search, SearchProblem

STEPS = tuple(step / 6 for step in range(8))  # tolerances to search, of the one asked for, by the metric
AGREEMENT_STEPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # and by the agreement
STRETCHED = np.geomspace(0.02, 2.0, 464)  # distances of the thresholds from 1, of a plan's own; 1 % a step
_COARSE = 8  # steps at a time where paths are compared
_LARGEST = 0.999  # tolerance to search
_SURE = -6.0  # standard errors from the tolerance at which a path may begin; as far beyond it may end
_NEAR = -2.5  # and up to which coarse steps do
_LEFT_TO_CHANCE = 0.5  # of the tolerance, where no standard error is known


def find_plans(tuning: SearchProblem, search: Search, risk: str) -> tuple[Exits, ...]:
    """Returns the plans that a search finds for tolerances around the one asked for, each once.

    Args:
        tuning: the problem on the tuning samples, with the tolerance that was asked for.
        search: sees these samples only.
        risk: unless it is the agreement, plans that bound the disagreement with the final head are added.
    """
    found = list(search(tuning.on(tuning.trace, _tolerances(STEPS, tuning.tolerance))))
    if risk != "agreement":
        agreeing = tuning.on(risk_trace(tuning.trace, "agreement"), _tolerances(AGREEMENT_STEPS, tuning.tolerance))
        found += search(agreeing)
    return tuple(dict.fromkeys(result.best.exits for result in found if result.best.exits.cuts))


def _tolerances(steps: Sequence[float], tolerance: float) -> tuple[float, ...]:
    return tuple(sorted({min(step * tolerance, _LARGEST) for step in steps}))


def make_path(plan: Exits) -> tuple[Exits, ...]:
    """Returns plans with the exits of a plan, from safe to bold: all thresholds come away from 1 by the same factor."""
    doubt = 1 - np.array(plan.thresholds)
    return tuple(
        dict.fromkeys(
            Exits(cuts=plan.cuts, thresholds=tuple(np.maximum(1 - factor * doubt, 0).tolist())) for factor in STRETCHED
        )
    )


def choose_order(
    tuning: SearchProblem, plans: Sequence[Exits], *, risk: str, delta: float, samples: int
) -> tuple[RiskTest, tuple[Exits, ...]]:
    """Chooses the path to test and the test, by the tuning samples alone.

    Of the paths through the plans it is the one whose boldest plan that is expected to pass is the fastest.

    Args:
        tuning: the problem on the tuning samples, with the metric that the risk is about.
        plans: in any order.
        risk: one of ``calibration.RISKS``.
        delta: in (0, 1).
        samples: of the test.

    Returns:
        The test, and the plans in their order, each expected to be faster than all before it and than no exits.
    """
    foresight = _Foresight.of(tuning, risk, delta=delta, samples=samples)
    path: tuple[Exits, ...] = ()
    around: Sequence[Exits] = ()
    least = (np.inf, np.inf)
    for plan in plans:
        tried = make_path(plan)
        excess = [foresight.excess(exits) for exits in tried[::_COARSE]]
        passing = next((place for place, value in enumerate(excess) if value > 0), len(excess))
        last = max(passing - 1, 0) * _COARSE
        rank = (tuning.expect_ms(tried[last] if passing else NO_EXITS), min(excess))
        if rank < least:
            least, path = rank, tried
            around = tried[max(last - 2 * _COARSE, 0) : last + _COARSE + 1 : _COARSE // 2]
    test = choose_test(
        foresight.full, [foresight.read(exits) for exits in around], tolerance=tuning.tolerance, risk=risk,
        delta=delta, samples=samples,
    )  # fmt: skip
    return test, _keep_faster(tuning, foresight.worth_testing(_drop_equal(tuning.trace, path)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Foresight:
    """What the tuning samples let expect of plans on the samples of the test, roughly: nothing is certified by it.

    Attributes:
        read: the evidence of a plan.
        full: the evidence of the network that the tolerance refers to.
        risk: test of it that tells how much is lost.
        tolerance: that was asked for.
        samples: of the test.
    """

    read: Callable[[Exits], np.ndarray]
    full: np.ndarray
    risk: RiskTest
    tolerance: float
    samples: int

    @classmethod
    def of(cls, tuning: SearchProblem, risk: str, *, delta: float, samples: int) -> _Foresight:
        read = evidence_reader(tuning.trace, risk)
        test = RiskTest(name=tests_for(risk)[0], risk=risk, delta=delta)
        full = reference_evidence(tuning.trace, risk)
        return cls(read=read, full=full, risk=test, tolerance=tuning.tolerance, samples=samples)

    def excess(self, exits: Exits) -> float:
        """Returns by how much of the metric a plan is too bold to be expected to pass; it passes from 0 downwards."""
        early = self.read(exits)
        if self.risk.risk in SET_METRICS:
            return self.risk.observe(self.full, early) - _LEFT_TO_CHANCE * self.tolerance
        mean, variance = self._moments(early)
        return mean - NormalDist().inv_cdf(self.risk.delta) * float(np.sqrt(variance / self.samples))

    def _moments(self, early: np.ndarray) -> tuple[float, float]:
        """Returns mean and variance of what a plan loses beyond the tolerance, per sample.

        The variance is at least that of a plan that loses just the tolerance in whole samples and wins none: with few
        samples to tune on, no loss among them does not mean that there will be none.
        """
        loss = (1 - self.tolerance) * self.full.astype(np.float64) - early
        least = self.tolerance * float(self.full.mean(dtype=np.float64))
        return float(loss.mean()), max(float(loss.var()), least)

    def worth_testing(self, path: Sequence[Exits]) -> Sequence[Exits]:
        """Returns the part of a path that may pass or fail; what is sure to pass or to fail is left out."""
        if self.risk.risk in SET_METRICS:  # whose test takes long
            return path[::_COARSE]
        both = 1 / len(self.full) + 1 / self.samples
        moments = [self._moments(self.read(exits)) for exits in path]
        scores = [mean / float(np.sqrt(variance * both)) if variance else 0.0 for mean, variance in moments]
        start = max(next((place for place, score in enumerate(scores) if score > _SURE), len(path)) - 1, 0)
        near = next((place for place, score in enumerate(scores) if score > _NEAR), len(path))
        end = next((place for place, score in enumerate(scores) if score > -_SURE), len(path))
        coarse, fine = range(start, near, _COARSE), range(max(near - 1, start), min(end + 1, len(path)))
        return [path[place] for place in sorted({*coarse, *fine})]


def _drop_equal(trace: Trace, path: Sequence[Exits]) -> tuple[Exits, ...]:
    """Returns the plans of a path less those under which every sample leaves where it does under the one before."""
    if not path:
        return ()
    rows = exit_rows(trace, path[0].cuts)
    thresholds = np.array([plan.thresholds for plan in path], np.float32).T
    confident = [
        len(found) - np.searchsorted(found, ascending) for found, ascending in zip(
            np.sort(trace.confidence[rows], axis=1), thresholds, strict=True
        )
    ]  # fmt: skip
    changes = np.flatnonzero(np.diff(np.array(confident), axis=1, prepend=-1).any(axis=0))
    return tuple(path[place] for place in changes.tolist())


def _keep_faster(tuning: SearchProblem, plans: Sequence[Exits]) -> tuple[Exits, ...]:
    faster: list[Exits] = []
    best_ms = tuning.expect_ms(NO_EXITS)
    for plan in plans:
        expected_ms = tuning.expect_ms(plan)
        if expected_ms < best_ms:
            faster.append(plan)
            best_ms = expected_ms
    return tuple(faster)
