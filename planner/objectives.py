"""What a plan is to be good at, and its price for all combinations of thresholds at once.

Theory. ``planner.costs`` shows that the mean latency is a sum over the stages in which stage ``j`` depends on nothing
but the share ``s_(j-1)`` of the samples that enter it:

    E[mean] = sum_j g_j(s_(j-1)),   g_j(s) = sum_b q_b / b * sum_n P(Binomial(b, s) = n) n c_j(n),

with ``q_b`` the share of the queries in batches of ``b``; the batch time likewise with ``p_b sum_n P(..) c_j(n)``, where
``p_b`` is the share of the batches. On a trace of ``N`` samples ``s`` is one of ``0, 1/N .. 1``. So every ``g_j`` is
tabulated once, a product of one matrix (survivor distributions by number of samples) with the stage's measured covers,
and the price of a combination is a look-up per stage. Beyond ``_FINEST`` samples the tables have that many steps; the
plans that a search ends with are priced exactly all the same.

The 99th percentile of query latency is no such sum. Combinations are ranked by a surrogate: the exit ``k`` where the
99th percentile of the queries leaves, and the time of stages ``1..k`` at survivor counts as far above their means as
that percentile lies in the group of those who leave there (a logistic curve stands in for the normal one). The best by
the surrogate are then evaluated exactly (``planner.tails``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from artifacts import unknown_name
from planner.costs import ChainTimes, NetworkCosts
from planner.patterns import binomial_pmf
from planner.tables import LevelTable
from planner.tails import TAIL_QUANTILE, latency_quantile

MEAN, P99, BATCH = "mean", "p99", "batch"
OBJECTIVES = (MEAN, P99, BATCH)
_FINEST = 16_384
_LOGISTIC = 1.702  # the logistic distribution that is nearest to the normal one
_WIDEST = 3.0  # standard deviations
_TIE = 1e-6  # of equal percentiles the smaller mean latency decides


def check_objective(objective: str) -> None:
    """Refuses an objective that does not exist."""
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)


def objective_ms(times: ChainTimes, objective: str) -> float:
    """Returns what the objective makes small, in milliseconds."""
    if objective == P99:
        return times.p99_ms + _TIE * times.mean_ms
    return times.batch_ms if objective == BATCH else times.mean_ms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """Prices combinations of thresholds of any exits on one trace.

    Attributes:
        costs: the stages' prices.
        exits: the candidates, the rows of the trace.
        samples: N, of the trace.
        objective: one of ``OBJECTIVES``.
    """

    costs: NetworkCosts
    exits: tuple[str, ...]
    samples: int
    objective: str
    _basis: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _stages: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def totals(self, table: LevelTable) -> np.ndarray:
        """Returns the price of every combination of a table: float64 of its shape, in milliseconds.

        For the 99th percentile these are the surrogate's.
        """
        if self.objective == P99:
            return self._surrogate(table)
        first, *others = self._bounds(table.rows)
        total = self._price(first, np.array(self.samples))
        for bounds, survivors in zip(others, table.survivors, strict=True):
            total = total[..., None] + self._price(bounds, survivors)
        return total

    def first_stage_ms(self, row: int) -> float:
        """Returns what every plan with this first exit costs at least."""
        if self.objective == P99:
            return float(min(self.costs.stage_cost(None, self.exits[row])[list(self.costs.load.batch_sizes)]))
        return float(self._price((-1, row), np.array(self.samples)))

    def exact_p99_ms(self, rows: Sequence[int], survivors: Sequence[int]) -> float:
        """Returns the 99th percentile for one combination, ties broken by the mean latency.

        Args:
            rows: its exits.
            survivors: how many samples go on past each of them.
        """
        survival = [1.0, *(count / self.samples for count in survivors)]
        costs = self.costs.plan_costs([self.exits[row] for row in rows])
        mean = sum(
            float(self._price(bounds, np.array(count)))
            for bounds, count in zip(self._bounds(rows), (self.samples, *survivors), strict=True)
        )
        return latency_quantile(costs, survival, self.costs.load) + _TIE * mean

    def _bounds(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        return list(zip((-1, *rows), (*rows, -1), strict=True))

    def _price(self, bounds: tuple[int, int], survivors: np.ndarray) -> np.ndarray:
        """Prices a stage, given by the rows of the exits before and behind it (-1: none), by the samples entering."""
        steps = min(self.samples, _FINEST)
        after, until = bounds
        if (after, until) not in self._stages:
            cost = self.costs.stage_cost(*(self.exits[row] if row >= 0 else None for row in (after, until)))
            self._stages[after, until] = self._shares(steps) @ cost
        index = survivors if steps == self.samples else (survivors * steps + self.samples // 2) // self.samples
        priced: np.ndarray = self._stages[after, until][index]
        return priced

    def _shares(self, steps: int) -> np.ndarray:
        """Returns (steps + 1, B + 1): the weight of a stage's cost at n rows, by the share of samples entering."""
        if not self._basis:
            load, share = self.costs.load, np.arange(steps + 1) / steps
            basis = np.zeros((steps + 1, load.largest + 1))
            for size, batches, queries in zip(load.batch_sizes, load.shares, load.query_shares, strict=True):
                weight = batches if self.objective == BATCH else queries * np.arange(size + 1) / size
                basis[:, : size + 1] += binomial_pmf(size, share) * weight
            self._basis["shares"] = basis
        return self._basis["shares"]

    def _surrogate(self, table: LevelTable) -> np.ndarray:
        load, shape = self.costs.load, table.shape
        going = [np.ones(shape)]
        for position, survivors in enumerate(table.survivors):
            going.append(np.broadcast_to(survivors.reshape(*shape[: position + 1], *[1] * (len(shape) - position - 1)),
                                         shape) / self.samples)  # fmt: skip
        total, done = np.zeros(shape), np.zeros(shape, bool)
        shares = [*going[1:], np.zeros(shape)]
        spread = np.zeros(shape)
        for before, after in zip(going, shares, strict=True):
            here = ~done & (after <= 1 - TAIL_QUANTILE)
            within = (TAIL_QUANTILE - (1 - before)) / np.maximum(before - after, 1e-12)
            odds = np.clip(within, 1e-3, 1 - 1e-3)
            spread = np.where(here, np.log(odds / (1 - odds)) / _LOGISTIC, spread)
            done |= here
        past = np.zeros(shape, bool)
        for bounds, before, after in zip(self._bounds(table.rows), going, shares, strict=True):
            cost = self.costs.stage_cost(*(self.exits[row] if row >= 0 else None for row in bounds))
            rows = 1 + (load.largest - 1) * before
            rows += spread * np.sqrt((load.largest - 1) * before * (1 - before))
            spent = np.interp(np.clip(rows, 1, load.largest), np.arange(load.largest + 1), cost)
            total += np.where(past, 0.0, spent)
            past |= after <= 1 - TAIL_QUANTILE
        return total
