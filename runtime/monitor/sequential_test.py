"""Sequential test of frequencies by a betting martingale: evidence that may be watched all the time. Pure.

It bets against hypotheses of the form "this happens at most (or at least) so often".

A *capital process* starts at 1 and pays fair odds or worse as long as the hypothesis holds, so that it is a
supermartingale there, and by Ville's inequality (1939) it *ever* reaches ``1 / alpha`` with probability at most
``alpha``, however often it is looked at. Capital is evidence: there is no number of looks to correct for.

**One bet.** The hypothesis: given everything before it, a row is a *hit* with probability at most ``bound``. A bet is
an alternative ``q > bound``: a hit multiplies the capital by ``q / bound``, a miss by ``(1 - q) / (1 - bound)``. The
expected factor is 1 where the probability is ``bound`` and less below it. So rows need be neither independent nor
identically distributed, and for a block of rows the capital depends on the number of hits alone. Likewise for "at
least" with ``q < bound``. (Waudby-Smith, Ramdas: Estimating means of bounded random variables by betting, JRSS-B 2024.)

**Which alternative, and since when?** Neither is known, but an average of capital processes is a capital process. Each
hypothesis spreads its capital evenly over alternatives whose log odds lie ``ODDS_STEPS`` from the bound's. It is spread
over the starts too: after n rows ``reserve(n)`` of it has not been staked yet, and the rest was staked little by
little, block by block. A bet that starts at the change has lost nothing in the months before, so a late change is found
nearly as fast as an early one; a start after n rows costs about log(n) + 2 log log(n) of log capital, the price of
watching for ever. (Shin, Ramdas, Rinaldo: E-detectors, NEJSDS 2024, with a prior over the starts instead of a sum,
which turns their bound on the time between false alarms into one on the probability of any.)

The stake at the start of a block depends on the number of rows before it alone, and a block may end at any moment, as
long as that does not depend on the rows to come.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ODDS_STEPS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_PACE_ROWS = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The strongest bet.

    Attributes:
        index: of the hypothesis.
        hits, rows: since the start of this bet that pays most.
    """

    index: int
    hits: int
    rows: int


def reserve(rows: np.ndarray) -> np.ndarray:
    """Returns the share of the capital that is not staked after this many rows; falls from 1/2 towards 0."""
    held: np.ndarray = 0.5 / (1 + np.log1p(rows / _PACE_ROWS))
    return held


class Bets:
    """Capital against C hypotheses, and the capital of them all together."""

    def __init__(self, bounds: np.ndarray, at_most: np.ndarray, weights: np.ndarray) -> None:
        """Starts with a capital of 1.

        Args:
            bounds: (C,) float64, strictly between 0 and 1.
            at_most: (C,) bool; the probability of a hit is at most the bound, or else at least.
            weights: (C,) float64, the capital of each hypothesis; their sum is 1.
        """
        steps = np.where(at_most, 1.0, -1.0)[:, None] * np.array(ODDS_STEPS)
        bound = bounds[:, None]
        norm = np.log1p(bound * np.expm1(steps))  # of an alternative with the odds of the bound times exp(step)
        self._gains = np.stack([steps - norm, -norm])  # of a hit and of a miss: log of their factors
        self._weights = weights
        self._staked = np.full(steps.shape, -np.inf)  # log capital by hypothesis and alternative
        self._held = np.ones(len(bounds))  # what is not staked yet, of each hypothesis
        self._rows = np.zeros(len(bounds))
        self._best = np.full(steps.shape, -np.inf)  # log capital of the best start alone, and hits and misses since
        self._best_rows = np.zeros((2, *steps.shape))

    def update(self, hits: np.ndarray, rows: np.ndarray) -> None:
        """Takes a block of rows.

        Args:
            hits: (C,) how many of them were hits, per hypothesis.
            rows: (C,) how many rows there were for each.
        """
        held = reserve(self._rows)
        with np.errstate(divide="ignore"):
            stake = np.log((self._held - held) / len(ODDS_STEPS))[:, None]
        self._held = held
        self._rows = self._rows + rows
        counts = np.stack([hits, rows - hits]).astype(np.float64)[:, :, None]
        gain = (counts * self._gains).sum(axis=0)
        self._staked = np.logaddexp(self._staked, stake) + gain
        self._best_rows = np.where(stake > self._best, 0.0, self._best_rows) + counts
        self._best = np.maximum(self._best, stake) + gain

    @property
    def log_capital(self) -> float:
        """The natural logarithm of the capital of all hypotheses together."""
        if not len(self._weights):
            return 0.0
        parts = np.concatenate([self._staked, np.log(self._held)[:, None]], axis=1) + np.log(self._weights)[:, None]
        return float(np.logaddexp.reduce(parts, axis=None))

    @property
    def strongest(self) -> Evidence:
        """The strongest evidence against any hypothesis; there must be one."""
        place = np.argmax(self._best + np.log(self._weights)[:, None])
        index, step = (int(axis) for axis in np.unravel_index(place, self._best.shape))
        hits, misses = self._best_rows[:, index, step]
        return Evidence(index=index, hits=int(hits), rows=int(hits + misses))
