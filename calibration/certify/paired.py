"""Exact paired test of "the plan loses at least a share of what the full network gets right". Pure.

Two systems, "full" and "early", answer the same n samples right or wrong. With ``a`` samples that only full has right
(probability p10), ``b`` that only early has right (p01), and p1 the probability that full is right,

    H: p10 - p01 >= tolerance * p1.

The law of (a, b) depends on the difference ``e = p10 - p01`` and on the share of discordant pairs ``psi = p10 + p01``.
Tests of such a margin are unconditional, with ``psi`` and ``p1`` as nuisances (Tango 1998; Lloyd and Moldovan 2008).

*Statistic.* With m = n * centre, the difference expected at the margin,

    T(a, b) = (a - b - m) / sqrt(a + b + m / 2).

Its denominator grows with the standard deviation of a - b, about sqrt(n psi), which a + b estimates; so the law of T
hardly depends on psi, and little is lost by not knowing it. (m / 2 keeps few discordant pairs in a sensible order: to
have none is better than to have one lost and one won.) A test by a - b alone must assume the largest psi in its
confidence set: with 5,000 pairs, 93 % right, and 2 % discordant it passes losses of 0.56 % at a tolerance of 1 %, this
one of 0.60 %; and a plan that never errs passes with 340 samples instead of 475. ``centre`` is a constant that was
settled without these samples. The test is valid whatever it is, and the sharpest at ``tolerance * p1``.

*p-value.* By Berger and Boos (1994) the supremum over the nuisances may be taken over a confidence set of them if the
chance of leaving the set is added,

    p = sup {P_(e, psi)(T <= t): e >= tolerance * l, l_psi <= psi <= u_psi} + 2 eta,

``l``, the Clopper-Pearson limit of p1 at confidence ``1 - eta``, and ``l_psi``, ``u_psi`` those of psi at ``1 - eta /
2`` each. Given a + b = k, T <= t says a <= c_k, and ``a`` is Binomial(k, (1 + e / psi) / 2): the probability falls in
``e``, and the supremum over it is attained at ``e = tolerance * l``.

*Supremum over psi*, by branch and bound. At fixed ``e`` the law q of one draw is linear in psi, q' = (1/2, 1/2, -1), so
with the scores s = q'/q, whose mean is 0,

    d^2 P / dpsi^2 = E[1(T <= t) sum_(i != j) s_i s_j],     Var(sum_(i != j) s_i s_j) = 2 n (n - 1) I^2,
    I = E[s^2] = 1 / (4 p10) + 1 / (4 p01) + 1 / (1 - psi),

and by the Cauchy-Schwarz inequality |P''| <= sqrt(2 P) n I. A second bound needs no positive p01: the weights q'(x)
q'(y) of the draws i and j add up to 2 where they are positive and to -2 where they are negative, so |P''| <= 2 n^2.
Between two points at a distance h, P is at most the larger of its values there plus h^2 / 8 max |P''|. Intervals are
halved until this is close enough to the largest value found. What is returned is the upper bound, so the p-value is
valid and not merely approximated.

Fractional metrics are rounded against the plan (full up, early down), which keeps the test valid for any metric in
[0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from artifacts import InputError
from calibration.certify.binomials import log_factorial
from calibration.certify.pvalues import check_losses, lower_share, upper_share

_FIRST = 9  # values of psi to start with
_MOST_POINTS = 4000
_CLOSE = 0.01  # of the aim, and relative to the largest probability that was found
_ALL = 5.5  # standard deviations of a + b that are summed over; the rest is added
_REACH = 3.0  # by Hoeffding a is below its mean by more than this times sqrt(k) with probability exp(-18)
_ROUNDING = 1e-6


def paired_exact(full: np.ndarray, early: np.ndarray, *, tolerance: float, centre: float, aim: float) -> float:
    """Returns the exact p-value of "early loses at least ``tolerance`` of what full gets right".

    Args:
        full: (n,) metric of the full network in [0, 1].
        early: (n,) metric of the plan on the same samples.
        tolerance: in [0, 1).
        centre: about ``tolerance`` times the mean of full, settled without these samples; in (0, 1).
        aim: the p-value of interest, in (0, 1): around it the result is as sharp as may be.

    Raises:
        InputError: shapes differ, there are no samples, or values lie outside [0, 1].
    """
    right = check_losses(full, 0.0) > 0  # rounded up
    right_early = check_losses(early, 0.0) >= 1  # rounded down
    if right.shape != right_early.shape:
        raise InputError(f"paired test: {right.shape} and {right_early.shape} samples do not belong together")
    pairs = Pairs(
        samples=len(right), right=int(right.sum()), lost=int((right & ~right_early).sum()),
        won=int((right_early & ~right).sum()),
    )  # fmt: skip
    return pairs.p_value(tolerance=tolerance, centre=centre, aim=aim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Counts of paired answers.

    Attributes:
        samples: n.
        right: that full has right.
        lost: that only full has right.
        won: that only early has right.
    """

    samples: int
    right: int
    lost: int
    won: int

    def p_value(self, *, tolerance: float, centre: float, aim: float) -> float:
        """Returns the p-value of ``paired_exact``."""
        eta = aim / 50
        discordant = self.lost + self.won
        difference = tolerance * lower_share(self.right, self.samples, eta)
        low = max(lower_share(discordant, self.samples, eta / 2), difference)
        high = min(upper_share(discordant, self.samples, eta / 2), 1.0)
        if high < low:  # no law in the confidence set belongs to the hypothesis
            return min(1.0, 2 * eta)
        if self.lost - self.won >= self.samples * difference:
            return 1.0
        region = _Region.of(
            self, centre=max(centre, 1 / self.samples), difference=difference, low=low, high=high
        )  # fmt: skip
        return min(1.0, region.largest(low, high, aim=aim) + 2 * eta)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Region:
    """The counts (a, b) whose T is at most the observed one, and their probability by psi.

    Attributes:
        samples: n.
        difference: e.
        k: (K,) values of a + b; beyond them lies what is too improbable to sum up.
        log_draws: (K,) logarithm of n over k.
        a: (K, W) values of a, of every k up to the last one of the region.
        log_ways: (K, W) logarithm of k over a; minus infinity outside of the region.
    """

    samples: int
    difference: float
    k: np.ndarray
    log_draws: np.ndarray
    a: np.ndarray
    log_ways: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs, *, centre: float, difference: float, low: float, high: float) -> _Region:
        """Returns the region for psi from ``low`` to ``high``."""
        n, margin = pairs.samples, pairs.samples * centre
        first = max(0, math.floor(n * low - _ALL * math.sqrt(n * low * (1 - low))) - 10)
        k = np.arange(first, min(n, math.ceil(n * high + _ALL * math.sqrt(n * high * (1 - high))) + 10) + 1)
        observed = (pairs.lost - pairs.won - margin) / math.sqrt(pairs.lost + pairs.won + margin / 2)
        difference_there = margin + observed * np.sqrt(k + margin / 2)
        last = np.floor((k + difference_there) / 2 + _ROUNDING).clip(-1, k).astype(np.int64)
        least_share = (1 + difference / high) / 2
        start = np.floor(k * least_share - _REACH * np.sqrt(k)).clip(0).astype(np.int64)
        a = start[:, None] + np.arange(max(int((last - start).max()) + 1, 1))
        inside = a <= last[:, None]
        table = log_factorial(np.arange(int(k[-1]) + 1))
        won = np.where(inside, k[:, None] - a, 0)
        log_ways = np.where(inside, table[k][:, None] - table[np.where(inside, a, 0)] - table[won], -np.inf)
        log_draws = float(log_factorial(np.array(n))) - table[k] - log_factorial(n - k)
        return cls(samples=n, difference=difference, k=k, log_draws=log_draws, a=a, log_ways=log_ways)

    def largest(self, low: float, high: float, *, aim: float) -> float:
        """Returns an upper bound of the largest probability of the region for psi from ``low`` to ``high``."""
        points = np.linspace(low, high, _FIRST)
        values = np.array([self.probability(psi) for psi in points.tolist()])
        while True:
            bounds, found = self._bounds(points, values), float(values.max())
            wide = bounds > found + _CLOSE * max(aim, found)
            clear = found > 2 * aim or bounds.max() <= aim / 10
            if clear or not wide.any() or len(points) > _MOST_POINTS:
                return min(1.0, float(bounds.max()))
            middle = (points[:-1][wide] + points[1:][wide]) / 2
            points = np.concatenate([points, middle])
            values = np.concatenate([values, [self.probability(psi) for psi in middle.tolist()]])
            order = np.argsort(points)
            points, values = points[order], values[order]

    def _bounds(self, points: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Returns an upper bound of the probability between each two neighbouring points."""
        left, right, n = points[:-1], points[1:], self.samples
        with np.errstate(divide="ignore"):
            lost, won = (left + self.difference) / 2, np.maximum(left - self.difference, 0) / 2
            information = n * (1 / (4 * lost) + 1 / (4 * won) + 1 / np.maximum(1 - right, 0))
        ends, eighth = np.maximum(values[:-1], values[1:]), (right - left) ** 2 / 8
        finite = np.isfinite(information)
        c = eighth * np.where(finite, information, 0.0)  # P <= ends + c sqrt(2 P), to be solved for sqrt(P)
        root = (math.sqrt(2) * c + np.sqrt(2 * c**2 + 4 * ends)) / 2
        bounds: np.ndarray = np.minimum(np.where(finite, root**2, np.inf), ends + eighth * 2.0 * n**2)
        return bounds

    def probability(self, psi: float) -> float:
        """Returns P(T <= t), never too low."""
        share = (1 + self.difference / psi) / 2
        log_share = np.array([_log(share), _log(1 - share)])
        won = self.k[:, None] - self.a
        with np.errstate(invalid="ignore"):
            misses = np.where(won <= 0, 0.0, won * log_share[1])
        below = np.exp(self.log_ways + self.a * log_share[0] + misses).sum(axis=1) + math.exp(-2 * _REACH**2)
        rest = self.samples - self.k
        with np.errstate(invalid="ignore"):
            stays = np.where(rest == 0, 0.0, rest * _log(1 - psi))
            differs = np.where(self.k == 0, 0.0, self.k * _log(psi))
        weights = np.exp(self.log_draws + differs + stays)
        return min(1.0, float(weights @ np.minimum(below, 1.0)) + max(0.0, 1.0 - float(weights.sum())))


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
