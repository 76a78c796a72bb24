"""Certified tolerances: Learn then Test for exit plans. Pure.

Theory. A plan that was tuned on some samples looks better on them than it is. *Learn then Test* (Angelopoulos, Bates,
Candes, Jordan, Lei 2021, arXiv:2110.01052) takes a family of plans that was fixed beforehand, tests for each, on
samples that played no part in fixing it, the hypothesis "its risk is above the tolerance", and keeps those for which
the hypothesis is rejected with the family-wise error controlled. Then, with probability at least ``1 - delta`` over
the samples, *every* plan that is kept meets the tolerance, so that any of them may be taken, for whatever reason: the
fastest by measurement, for instance.

*Fixed sequence.* The plans are put in order from safe to bold by the tuning samples alone, and tested one after the
other at the full level ``delta`` until the first that fails. The family-wise error is at most ``delta``: an error
needs the first plan in the sequence whose hypothesis is true to be rejected, which happens with probability at most
``delta``. No correction for the number of plans is paid.

*The risk is paired and relative.* A plan may lose the share ``tolerance`` of the full network's metric. Both metrics
are estimated from the same samples, so the hypothesis is put as one mean of one bounded variable per sample,

    H: E[L] >= 0,        L = (1 - tolerance) m_full - m_early        in [-1, 1 - tolerance],

which accounts for the uncertainty of the full network's metric by itself. Most samples are answered alike by both, so
L has little variance, which a test must use to be of any power: scaled to [0, 1], ``Z = (1 + L) / (2 - tolerance)``
against the level ``1 / (2 - tolerance)``, Hoeffding-Bentkus would need a hundred times the samples of the betting or
the exact paired test. For 0/1 metrics the exact paired test is the tightest of the three near the boundary.

*Without labels* the risk is disagreement with the final head: a 0/1 loss against the level ``tolerance``, for which
the exact binomial test is uniformly at least as tight as Hoeffding-Bentkus. *Set metrics* (F1, mIoU) are no means
and have a bootstrap instead of a guarantee, see ``calibration.certify.set_metrics``.

*Which test?* The smaller of two p-values from the same samples is not a p-value. Here the tuning samples decide: every
test that fits the risk is tried on them, the one that passes the most plans is applied to the other samples (of equals
the first listed), and its p-values on the tuning samples put the plans in order. Given the tuning samples this is one
fixed valid test in one fixed sequence, so nothing is paid for the choice. On the tuning samples the p-values are too
small, but for all tests alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import InputError, UsageError, array_digest, unknown_name
from calibration.certify.paired import Pairs, paired_exact
from calibration.certify.pvalues import betting, binomial_tail, hoeffding_bentkus
from calibration.certify.set_metrics import (
    COUNTED,
    SET_METRICS,
    bootstrap_p_value,
    check_counts,
    check_evidence,
    set_metric,
)

RISKS = ("metric", "agreement", *SET_METRICS)
TUNING_SHARE = 0.2
_LEAST_TUNING = 100  # samples, or a half where there are fewer than twice as many
_MOST_TUNING = 20_000  # samples; more hardly make better plans, and the searches take longer
_TESTS = {
    "metric": ("paired-exact", "betting", "hoeffding-bentkus"),
    "agreement": ("binomial", "betting"),  # the binomial test is never less tight than Hoeffding-Bentkus
    **dict.fromkeys(SET_METRICS, ("bootstrap",)),
}
_SHORTEST = 1e-4  # precision of an offered tolerance
_MOST_SAMPLES = 2**20  # beyond that, "more samples" is no advice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuningSplit:
    """Samples for tuning and samples for the test: disjoint, together all.

    Attributes:
        tuning: (n,) int64 indices.
        certification: (m,) int64 indices, in random order.
        seed: of the split.
    """

    tuning: np.ndarray
    certification: np.ndarray
    seed: int

    @property
    def tuning_digest(self) -> str:
        """SHA-256 of the sorted indices."""
        return array_digest(np.sort(self.tuning))

    @property
    def certification_digest(self) -> str:
        """SHA-256 of the sorted indices."""
        return array_digest(np.sort(self.certification))


def split_for_tuning(samples: int, *, seed: int, share: float = TUNING_SHARE) -> TuningSplit:
    """Splits samples at random into some to tune plans on and, most of them, some to test plans on.

    Tuning settles which exits there are and which thresholds go together; how bold they are is left to the test, whose
    power grows with its samples. So a fifth is enough to tune on, and 20,000 samples at most.

    Args:
        samples: how many there are.
        seed: of the draw.
        share: to tune on, in (0, 1); at least 100 samples are, or a half of fewer than 200.

    Raises:
        InputError: there are fewer than two samples.
    """
    if samples < 2:
        raise InputError(f"{samples} samples cannot be split into some to tune on and some to test on")
    order = np.random.default_rng(seed).permutation(samples)
    count = count_tuning(samples, share)
    return TuningSplit(tuning=order[:count], certification=order[count:], seed=seed)


def count_tuning(samples: int, share: float = TUNING_SHARE) -> int:
    """Returns how many of some samples are for tuning, see ``split_for_tuning``; the others are for the test."""
    return min(max(round(share * samples), min(_LEAST_TUNING, samples // 2)), _MOST_TUNING)


def count_in_all(tested: int) -> int:
    """Returns how many samples there must be for so many to be tested on."""
    found = max(tested, 2)
    while found - count_tuning(found) < tested:
        found += max(1, tested - (found - count_tuning(found)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskTest:
    """One test of "this plan's risk is above the tolerance".

    Attributes:
        name: ``paired-exact``, ``betting``, ``hoeffding-bentkus``, ``binomial`` or ``bootstrap``.
        risk: ``metric``, ``agreement``, or a set metric.
        delta: the level that the sequence is tested at.
        full_metric: about the mean metric of the full network, settled without the samples of the test; the exact
            paired test is the sharpest where it is right, and valid whatever it is.

    A test reads the *evidence* of the samples: for ``metric`` (n,) values in [0, 1]; for ``agreement`` (n,) whether
    the plan answers what the full network answers, for the full network all 1; for a set metric as ``set_metric``.
    """

    name: str
    risk: str
    delta: float
    full_metric: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in tests_for(self.risk):
            raise unknown_name(f"test of the risk '{self.risk}'", self.name, tests_for(self.risk))
        if not 0 < self.delta < 1:
            raise InputError(f"delta {self.delta}: expected a probability between 0 and 1")

    @property
    def finite_sample(self) -> bool:
        """Whether the p-value is valid at any number of samples, or in the limit only."""
        return self.name != "bootstrap"

    def observe(self, full: np.ndarray, early: np.ndarray) -> float:
        """Returns the risk on these samples, the share of the metric that is lost; negative when the plan is better.

        Raises:
            InputError: the full network's metric is 0.
        """
        if self.risk not in SET_METRICS:
            return relative_loss(full, early)
        (check_counts if self.risk in COUNTED else check_evidence)(full, early)
        whole, remaining = (set_metric(self.risk, evidence) for evidence in (full, early))
        if whole <= 0:
            raise InputError(f"the full network's {self.risk} is {whole:g} on these samples: no relative loss of it")
        return 1 - remaining / whole

    def p_value(self, full: np.ndarray, early: np.ndarray, *, tolerance: float) -> float:
        """Returns the p-value of the hypothesis that the plan's risk is above the tolerance.

        Args:
            full: evidence of the full network.
            early: evidence of the plan on the same samples.
            tolerance: in [0, 1).

        Raises:
            InputError: values or shapes are not those of metrics.
        """
        if full.shape != early.shape:
            raise InputError(f"paired metrics: shapes {full.shape} and {early.shape} differ")
        if not 0 <= tolerance < 1:
            raise InputError(f"tolerance {tolerance}: expected from 0 to below 1")
        if self.name == "bootstrap":
            return bootstrap_p_value(self.risk, full, early, tolerance=tolerance)
        if self.name == "paired-exact":
            return paired_exact(full, early, tolerance=tolerance, centre=tolerance * self.full_metric, aim=self.delta)
        losses, level = bounded_losses(full, early, tolerance=tolerance, risk=self.risk)
        if self.name == "binomial":
            return binomial_tail(losses, level)
        if self.name == "betting":
            return betting(losses, level, delta=self.delta)
        return hoeffding_bentkus(losses, level)


def tests_for(risk: str) -> tuple[str, ...]:
    """Returns the names of the tests that fit a risk; an unknown risk is a ``UsageError``."""
    if risk not in _TESTS:
        raise unknown_name("risk", risk, RISKS)
    return _TESTS[risk]


def check_labels(risk: str, *, labelled: bool, where: str) -> None:
    """Refuses a risk that needs labels where there are none.

    Args:
        risk: one of ``RISKS``.
        labelled: whether there are.
        where: the data or the trace, for the message.
    """
    if not labelled and risk != "agreement":
        raise UsageError(
            f"--risk {risk}: {where} has no labels, so the loss of a metric cannot be measured; the disagreement with "
            "the final head can be bounded instead: --risk agreement. Or name labelled data with --data"
        )


def bounded_losses(full: np.ndarray, early: np.ndarray, *, tolerance: float, risk: str) -> tuple[np.ndarray, float]:
    """Returns losses (n,) in [0, 1] and the level that their mean reaches when the risk is above the tolerance."""
    full, early = np.asarray(full, np.float64), np.asarray(early, np.float64)
    if risk == "agreement":
        return 1 - early, tolerance
    return (1 + (1 - tolerance) * full - early) / (2 - tolerance), 1 / (2 - tolerance)


def relative_loss(full: np.ndarray, early: np.ndarray) -> float:
    """Returns the share of the full network's metric that is lost on these samples; negative when the plan is better.

    Raises:
        InputError: the full network's metric is 0.
    """
    whole = float(full.mean(dtype=np.float64))
    if whole == 0:
        raise InputError("the full network's metric is 0 on these samples: a relative loss has no meaning")
    return 1 - float(early.mean(dtype=np.float64)) / whole


def choose_test(
    full: np.ndarray, plans: Sequence[np.ndarray], *, tolerance: float, risk: str, delta: float, samples: int
) -> RiskTest:
    """Chooses the test that is expected to pass the most plans, by the tuning samples.

    Args:
        full: evidence of the full network on the tuning samples.
        plans: evidence of each plan on them.
        tolerance: in [0, 1).
        risk: one of ``RISKS``.
        delta: in (0, 1).
        samples: of the test, which are taken to be like those for tuning.
    """
    metric = 1.0 if risk in SET_METRICS else float(full.mean(dtype=np.float64))
    tests = [RiskTest(name=name, risk=risk, delta=delta, full_metric=metric) for name in tests_for(risk)]
    if len(tests) == 1:
        return tests[0]
    return max(
        tests, key=lambda test: sum(_extrapolate(test, full, early, tolerance)(samples) <= delta for early in plans)
    )


def run_sequence(
    test: RiskTest, full: np.ndarray, plans: Iterable[np.ndarray], *, tolerance: float
) -> tuple[tuple[float, float], ...]:
    """Tests plans one after the other until the first that fails.

    Args:
        test: chosen without these samples.
        full: evidence of the full network.
        plans: evidence of each plan, from safe to bold; the order was chosen without these samples.
        tolerance: in [0, 1).

    Returns:
        The p-values with the observed risks up to the first p-value above ``test.delta``, that one included; plans
        behind it are not tested.
    """
    found: list[tuple[float, float]] = []
    for early in plans:
        p_value = test.p_value(full, early, tolerance=tolerance)
        found.append((p_value, test.observe(full, early)))
        if not p_value <= test.delta:
            break
    return tuple(found)


def find_tolerance(test: RiskTest, full: np.ndarray, early: np.ndarray, *, above: float) -> float | None:
    """Returns the smallest tolerance that a plan passes at, up to 0.0001; ``None`` when it passes at none below 1.

    For the first plan of a sequence that fails, this is an upper confidence limit of its risk at the same ``delta``
    (the stepwise intervals of Hsu and Berger 1999).

    Args:
        test: the test that it failed.
        full: evidence of the full network.
        early: evidence of the plan.
        above: a tolerance at which it failed.
    """
    low, high = above, 1 - _SHORTEST
    if test.p_value(full, early, tolerance=high) > test.delta:
        return None
    while high - low > _SHORTEST:
        middle = (low + high) / 2
        if test.p_value(full, early, tolerance=middle) <= test.delta:
            high = middle
        else:
            low = middle
    return high


def count_needed(test: RiskTest, full: np.ndarray, early: np.ndarray, *, tolerance: float) -> int | None:
    """Estimates how many samples a plan needs to pass, if further ones are like these; ``None``: a million do not do.

    Args:
        test: the test that it failed.
        full: evidence of the full network.
        early: evidence of the plan.
        tolerance: the one asked for.
    """
    p_value = _extrapolate(test, full, early, tolerance)
    low = high = len(full)
    while p_value(high) > test.delta:
        low, high = high, 2 * high
        if high > _MOST_SAMPLES:
            return None
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if p_value(middle) <= test.delta else (middle, high)
    return high


def _extrapolate(test: RiskTest, full: np.ndarray, early: np.ndarray, tolerance: float) -> Callable[[int], float]:
    if test.observe(full, early) >= tolerance:
        return lambda _: 1.0
    if test.name != "paired-exact":
        return lambda n: test.p_value(
            np.resize(full, (n, *full.shape[1:])), np.resize(early, (n, *full.shape[1:])), tolerance=tolerance
        )
    right, right_early = full > 0, early >= 1
    counts = np.array([right.sum(), (right & ~right_early).sum(), (right_early & ~right).sum()]) / len(full)

    def scaled(n: int) -> float:
        some, lost, won = round(counts[0] * n), math.ceil(counts[1] * n - 1e-9), int(counts[2] * n)
        pairs = Pairs(samples=n, right=some, lost=lost, won=won)
        return pairs.p_value(tolerance=tolerance, centre=tolerance * test.full_metric, aim=test.delta)

    return scaled


def least_samples(*, tolerance: float, delta: float) -> int:
    """Returns the samples below which no test can pass, not even a plan that never errs: log(delta) / log(1 - tol)."""
    return int(np.ceil(np.log(delta) / np.log1p(-tolerance))) if tolerance > 0 else 0
