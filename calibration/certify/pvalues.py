"""p-values of "the mean loss is too high", exact or finite-sample, from i.i.d. samples.

A p-value ``P`` of a hypothesis H is valid when P(P <= u) <= u for every u under H, at the very sample size that was
drawn and without any assumption about the distribution. Losses lie in [0, 1]; H says ``E[loss] >= level``.

*Hoeffding-Bentkus* (Bates et al. 2021, arXiv:2101.02703; Angelopoulos et al. 2021, arXiv:2110.01052, prop. 3):
``min(exp(-n h(min(r, level), level)), e P(Bin(n, level) <= ceil(n r)))`` for the empirical mean ``r``, with ``h`` the
Bernoulli divergence. It knows the range of the losses only, not their variance.

*Betting* (Waudby-Smith and Ramdas 2020, arXiv:2010.09686; as a p-value in appendix B of arXiv:2110.01052). The capital

    K_t = prod_(i <= t) (1 + lambda_i (level - loss_i)),      0 <= lambda_i < 1 / (1 - level),

with ``lambda_i`` chosen before ``loss_i`` is seen, is a non-negative supermartingale under H, so by Ville's inequality
``1 / max_t K_t`` is a valid p-value. ``lambda_i = sqrt(2 log(1/delta) / (n v_(i-1)))`` bets the more the smaller the
variance ``v`` seen so far is.

*Exact binomial*: for losses in {0, 1}, ``P(Bin(n, level) <= losses)``. It is uniformly at least as tight as
Hoeffding-Bentkus, whose terms both bound it from above. Fractional losses are rounded up, which keeps it valid.

The exact paired test of ``calibration.certify.paired`` is the fourth.

The smaller of two such p-values is *not* a p-value. Which one to use must be settled without looking at the
samples that are tested; ``calibration.certify.risk_tests`` does.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from artifacts import InputError
from calibration.certify.binomials import binomial_cdf, log_factorial

_BISECTIONS = 45
_LARGEST_BET = 0.75  # of the bet that could lose everything in one sample; Waudby-Smith and Ramdas use 1/2 or 3/4
_LARGEST_VARIANCE = 0.25  # of a variable in [0, 1]: the first guess


def check_losses(losses: np.ndarray, level: float) -> np.ndarray:
    """Returns losses as float64 in [0, 1]; values, shapes and levels that are none are an ``InputError``."""
    values = np.asarray(losses, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"losses: expected (n,) with n >= 1, got shape {values.shape}")
    if not np.isfinite(values).all() or values.min() < -1e-9 or values.max() > 1 + 1e-9:
        raise InputError("losses must be finite and within [0, 1]")
    if not 0 <= level <= 1:
        raise InputError(f"level {level}: expected a mean loss from 0 to 1")
    return values.clip(0.0, 1.0)


@functools.lru_cache(maxsize=1024)
def upper_share(hits: int, trials: int, eta: float) -> float:
    """Returns the Clopper-Pearson upper limit: a share that the true one exceeds with probability at most ``eta``."""
    if hits >= trials:
        return 1.0
    if 2 * hits > trials:  # the other tail is the shorter one: P(X <= hits) = 1 - P(misses <= trials - hits - 1)
        k, swapped, aim = np.arange(trials - hits), True, 1 - eta
    else:
        k, swapped, aim = np.arange(hits + 1), False, eta
    log_choose = log_factorial(np.array(trials)) - log_factorial(k) - log_factorial(trials - k)
    low, high = hits / trials, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        yes, no = (math.log1p(-middle), math.log(middle)) if swapped else (math.log(middle), math.log1p(-middle))
        tail = float(np.exp(log_choose + k * yes + (trials - k) * no).sum())
        if (tail >= aim) if swapped else (tail <= aim):
            high = middle
        else:
            low = middle
    return high


def lower_share(hits: int, trials: int, eta: float) -> float:
    """Returns the Clopper-Pearson lower limit of a share."""
    return 1.0 - upper_share(trials - hits, trials, eta)


def hoeffding_bentkus(losses: np.ndarray, level: float) -> float:
    """Returns the Hoeffding-Bentkus p-value of ``E[loss] >= level``.

    Args:
        losses: (n,) in [0, 1].
        level: in [0, 1].

    Raises:
        InputError: no samples, or values outside [0, 1].
    """
    values = check_losses(losses, level)
    n, mean = len(values), float(values.mean())
    if mean >= level:
        return 1.0
    hoeffding = math.exp(-n * _bernoulli_divergence(mean, level))
    return min(1.0, hoeffding, math.e * binomial_cdf(math.ceil(n * mean - 1e-9), n, level))


def _bernoulli_divergence(a: float, b: float) -> float:
    if b >= 1:
        return math.inf
    first = 0.0 if a == 0 else a * math.log(a / b)
    second = 0.0 if a == 1 else (1 - a) * (math.log1p(-a) - math.log1p(-b))
    return first + second


def binomial_tail(losses: np.ndarray, level: float) -> float:
    """Returns the exact p-value of ``E[loss] >= level`` for 0/1 losses; fractional ones count as 1."""
    values = check_losses(losses, level)
    return binomial_cdf(int((values > 0).sum()), len(values), level)


def betting(losses: np.ndarray, level: float, *, delta: float) -> float:
    """Returns the betting p-value of ``E[loss] >= level``; it depends on the order of the samples.

    Args:
        losses: (n,) in [0, 1], in an order that was not chosen by looking at them.
        level: in [0, 1].
        delta: the p-value that the bets aim at, in (0, 1); the result is valid whatever it is.

    Raises:
        InputError: no samples, or values outside [0, 1].
    """
    values = check_losses(losses, level)
    if level >= 1:
        return 1.0 if values.min() >= 1 else 0.0  # one loss below 1 refutes a mean of 1
    n = len(values)
    before = np.arange(n, dtype=np.float64)  # how many samples each bet has seen
    mean = (level + np.concatenate([[0.0], np.cumsum(values)[:-1]])) / (1 + before)
    squares = np.concatenate([[0.0], np.cumsum((values - mean) ** 2)[:-1]])
    variance = (_LARGEST_VARIANCE + squares) / (1 + before)
    bets = np.minimum(np.sqrt(2 * math.log(1 / delta) / (n * variance)), _LARGEST_BET / (1 - level))
    best = float(np.cumsum(np.log1p(bets * (level - values))).max())
    return min(1.0, math.exp(-best))
