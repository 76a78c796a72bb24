"""Binomial distributions from logarithms of factorials, so that nothing overflows at any number of trials in use."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike

from artifacts import InputError

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_SMALL = np.array([math.lgamma(k + 1.0) for k in range(16)])


def log_factorial(k: np.ndarray) -> np.ndarray:
    """Returns log(k!) for non-negative integers: exact to rounding below 16, Stirling's series from there on."""
    k = np.asarray(k, np.float64)
    x = np.maximum(k, 16.0)
    series = 1 / (12 * x) - 1 / (360 * x**3) + 1 / (1260 * x**5) - 1 / (1680 * x**7)
    large = (x + 0.5) * np.log(x) - x + _HALF_LOG_TWO_PI + series
    result: np.ndarray = np.where(k < 16, _SMALL[np.minimum(k, 15).astype(np.int64)], large)
    return result


def binomial_pmf(trials: int, share: ArrayLike) -> np.ndarray:
    """Returns P(Binomial(trials, share) = k) for k = 0..trials: shape (..., trials + 1) for shares of shape (...).

    Raises:
        InputError: a share lies outside [0, 1], or ``trials`` is negative.
    """
    p = np.asarray(share, np.float64)[..., None]
    if trials < 0 or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"binomial distribution of {trials} trials: shares must lie within [0, 1], got {p[..., 0]}")
    k = np.arange(trials + 1, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 * log(0) is 0 here
        hits = np.where(k == 0, 0.0, k * np.log(p))
        misses = np.where(k == trials, 0.0, (trials - k) * np.log1p(-p))
    pmf: np.ndarray = np.exp(_log_choose(trials) + hits + misses)
    return pmf


@functools.lru_cache(maxsize=64)
def _log_choose(trials: int) -> np.ndarray:
    """Logarithms of the binomial coefficients (trials, k) for k = 0..trials."""
    factorial = log_factorial(np.arange(trials + 1))
    choose: np.ndarray = factorial[trials] - factorial - factorial[::-1]
    return choose


def binomial_pmf_at(k: np.ndarray, trials: np.ndarray | int, share: float) -> np.ndarray:
    """Returns P(Binomial(trials, share) = k), 0 where k lies outside 0..trials; ``k`` and ``trials`` broadcast."""
    k, trials = np.broadcast_arrays(np.asarray(k, np.float64), np.asarray(trials, np.float64))
    inside = (k >= 0) & (k <= trials)
    k = np.where(inside, k, 0.0)
    if share <= 0 or share >= 1:
        certain = 0.0 if share <= 0 else trials
        return np.where(inside & (k == certain), 1.0, 0.0)
    log_choose = log_factorial(trials) - log_factorial(k) - log_factorial(trials - k)
    pmf: np.ndarray = np.exp(log_choose + k * math.log(share) + (trials - k) * math.log1p(-share))
    return np.where(inside, pmf, 0.0)


def binomial_cdf(k: int, trials: int, share: float) -> float:
    """Returns P(Binomial(trials, share) <= k)."""
    if k < 0:
        return 0.0
    if k >= trials:
        return 1.0
    if 2 * k > trials and k > trials * share:  # the other tail is the shorter and the smaller one
        return max(0.0, 1.0 - binomial_cdf(trials - k - 1, trials, 1.0 - share))
    return min(1.0, float(binomial_pmf_at(np.arange(k + 1), trials, share).sum()))
