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

*Exact paired test*. Two systems, "full" and "early", answer the same samples right or wrong. H says that early loses
at least the share ``tolerance`` of what full gets right. With ``a`` samples that only full has right (probability
p10), ``b`` that only early has right (p01), and p1 the probability that full is right,

    H: p10 - p01 >= tolerance * p1.

``D = a - b`` is a sum of n independent draws from {-1, 0, 1}, whose law depends on the difference ``e = p10 - p01``
and on the share of discordant pairs ``psi = p10 + p01``. Both p1 and psi are nuisances: by Berger and Boos (1994) the
supremum of P(D <= d) may be taken over a confidence set of them, if the chance of leaving the set is added,

    p = sup {P_(e, psi)(D <= d): e >= tolerance * l, psi <= u} + 2 eta,

``l`` and ``u`` the Clopper-Pearson limits of p1 and psi at confidence ``1 - eta`` each. The supremum is attained at
the corner ``e = tolerance * l, psi = u``: P falls in ``e`` by stochastic order; and since

    dP_(e, psi)(D <= d) / dpsi = n/2 (P(S = d + 1) - P(S = d)),        S the sum of n - 1 draws,

P rises in ``psi`` wherever d + 1 is not beyond the mode of S. For ``psi <= 1/2`` the generating polynomial of a draw
has real roots only, S is a shifted sum of independent Bernoulli variables, and its mode is less than 1 away from its
mean (n - 1) e (Darroch 1964). So ``psi <= 1/2`` and ``d <= (n - 1) e - 2`` are enough; elsewhere p is 1. Fractional
metrics are rounded against the plan (full up, early down), which keeps the test valid for any metric in [0, 1].

The smaller of two of these p-values is *not* a p-value. Which one to use must be settled without looking at the
samples that are tested; ``calibration.certify.risk_tests`` does.
"""

from __future__ import annotations

import math

import numpy as np

from artifacts import InputError
from calibration.certify.binomials import binomial_cdf, binomial_pmf_at, log_factorial

_BISECTIONS = 45
_LARGEST_BET = 0.75  # of the bet that could lose everything in one sample; Waudby-Smith and Ramdas use 1/2 or 3/4
_LARGEST_VARIANCE = 0.25  # of a variable in [0, 1]: the first guess
_BEYOND = 7.0  # standard deviations after which the discordant count's own probability is not worth a row


def _check(losses: np.ndarray, level: float) -> np.ndarray:
    values = np.asarray(losses, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"losses: expected (n,) with n >= 1, got shape {values.shape}")
    if not np.isfinite(values).all() or values.min() < -1e-9 or values.max() > 1 + 1e-9:
        raise InputError("losses must be finite and within [0, 1]")
    if not 0 <= level <= 1:
        raise InputError(f"level {level}: expected a mean loss from 0 to 1")
    return values.clip(0.0, 1.0)


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
    values = _check(losses, level)
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
    values = _check(losses, level)
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
    values = _check(losses, level)
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


def paired_exact(full: np.ndarray, early: np.ndarray, *, tolerance: float, eta: float) -> float:
    """Returns the exact p-value of "early loses at least ``tolerance`` of what full gets right".

    Args:
        full: (n,) metric of the full network in [0, 1].
        early: (n,) metric of the plan on the same samples.
        tolerance: in [0, 1).
        eta: chance of leaving the confidence set of each nuisance; 1/20 of the aimed-at p-value is good.

    Raises:
        InputError: shapes differ, there are no samples, or values lie outside [0, 1].
    """
    right = _check(full, 0.0) > 0  # rounded up
    right_early = _check(early, 0.0) >= 1  # rounded down
    if right.shape != right_early.shape:
        raise InputError(f"paired test: {right.shape} and {right_early.shape} samples do not belong together")
    lost, won = int((right & ~right_early).sum()), int((right_early & ~right).sum())
    return paired_exact_counts(len(right), int(right.sum()), lost, won, tolerance=tolerance, eta=eta)


def paired_exact_counts(samples: int, right: int, lost: int, won: int, *, tolerance: float, eta: float) -> float:
    """Returns ``paired_exact`` from its counts.

    Args:
        samples: n.
        right: samples that full has right.
        lost: that only full has right.
        won: that only early has right.
        tolerance: in [0, 1).
        eta: as in ``paired_exact``.
    """
    difference = tolerance * lower_share(right, samples, eta)
    discordant = upper_share(lost + won, samples, eta)
    if discordant < difference:  # no law in the confidence set belongs to the hypothesis
        return min(1.0, 2 * eta)
    if discordant > 0.5 or lost - won > (samples - 1) * difference - 2:
        return 1.0
    return min(1.0, difference_cdf(lost - won, samples, discordant, difference) + 2 * eta)


def difference_cdf(d: int, samples: int, discordant: float, difference: float) -> float:
    """Returns P(D <= d) for the sum D of draws that are 1, -1 or 0.

    Args:
        d: where.
        samples: how many draws.
        discordant: probability that a draw is not 0.
        difference: its expectation; at most ``discordant``.

    Probability beyond ``_BEYOND`` standard deviations is not computed but added, so that the result is never too low.
    """
    if discordant == 0:
        return 1.0 if d >= 0 else 0.0
    centre, spread = samples * discordant, math.sqrt(samples * discordant * (1 - discordant))
    first = max(0, math.floor(centre - _BEYOND * spread - 10))
    count = np.arange(first, min(samples, math.ceil(centre + _BEYOND * spread + 10)) + 1)
    weight = binomial_pmf_at(count, samples, discordant)
    share = (1 + difference / discordant) / 2
    last = np.minimum(np.floor_divide(count + d, 2), count)  # a - b <= d and a + b = count
    reach = np.ceil(4.5 * np.sqrt(count)) + 1  # by Hoeffding less than 1e-17 lies further below the mean
    start = np.maximum(np.floor(count * share - reach), 0).astype(np.int64)
    width = max(int((last - start).max()) + 1, 1)
    a = start[:, None] + np.arange(width)
    inside = a <= last[:, None]
    b = np.where(inside, count[:, None] - a, 0)
    table = log_factorial(np.arange(int(count[-1]) + 1))
    log_share = (math.log(share), math.log1p(-share) if share < 1 else -math.inf)
    with np.errstate(invalid="ignore"):
        misses = np.where(b == 0, 0.0, b * log_share[1])
    log_pmf = table[count][:, None] - table[np.where(inside, a, 0)] - table[b] + a * log_share[0] + misses
    pmf = np.exp(np.where(inside, log_pmf, -np.inf))
    below = np.minimum(1.0, pmf.sum(axis=1) + 1e-17)
    return min(1.0, float(weight @ below) + max(0.0, 1.0 - float(weight.sum())))
