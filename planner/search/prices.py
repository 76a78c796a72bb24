"""Prices of all combinations of thresholds at once, by any objective.

Theory. ``planner.predict.costs`` shows that the mean latency is a sum over the stages in which stage ``j`` depends
on nothing but the share ``s_(j-1)`` of the samples that enter it:

    E[mean] = sum_j g_j(s_(j-1)),   g_j(s) = sum_b q_b / b * sum_n P(Binomial(b, s) = n) n c_j(n),

with ``q_b`` the share of the queries in batches of ``b``; the batch time likewise with ``p_b sum_n P(..) c_j(n)``,
where ``p_b`` is the share of the batches. On a trace of ``N`` samples ``s`` is one of ``0, 1/N .. 1``. So every
``g_j`` is tabulated once, a product of one matrix (survivor distributions by number of samples) with the stage's
measured covers, and the price of a combination is a look-up per stage. Beyond ``_FINEST`` samples the tables have
that many steps; the plans that a search ends with are priced exactly all the same.

The 99th percentile of query latency is no such sum. Combinations are ranked by a surrogate: the exit ``k`` where the
99th percentile of the queries leaves, and the time of stages ``1..k`` at survivor counts as far above their means as
that percentile lies in the group of the rows that leave there (a logistic curve stands in for the normal one). The best
by the surrogate are then evaluated exactly (``planner.predict.percentiles``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration import binomial_pmf
from planner.predict.costs import NetworkCosts
from planner.predict.objectives import BATCH, P99, TIE
from planner.predict.percentiles import TAIL_QUANTILE, latency_quantile
from planner.search.level_tables import LevelTable

_FINEST = 16_384
_LOGISTIC = 1.702  # the logistic distribution that is nearest to the normal one


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
        total = self.stage_ms(*first, self.samples)
        for bounds, survivors in zip(others, table.survivors, strict=True):
            total = total[..., None] + self.stage_ms(*bounds, survivors)
        return total

    def plan_ms(self, rows: Sequence[int], survivors: Sequence[int]) -> float:
        """Returns the price of one combination; for the 99th percentile the mean latency.

        Args:
            rows: its exits.
            survivors: how many samples go on past each of them.
        """
        entering = (self.samples, *survivors)
        return sum(
            float(self.stage_ms(*bounds, count)) for bounds, count in zip(self._bounds(rows), entering, strict=True)
        )

    def first_stage_ms(self, row: int) -> float:
        """Returns what every plan with this first exit costs at least."""
        if self.objective == P99:
            return float(min(self.costs.stage_cost(None, self.exits[row])[list(self.costs.load.batch_sizes)]))
        return float(self.stage_ms(-1, row, self.samples))

    def exact_p99_ms(self, rows: Sequence[int], survivors: Sequence[int]) -> float:
        """Returns the 99th percentile for one combination, ties broken by the mean latency.

        Args:
            rows: its exits.
            survivors: how many samples go on past each of them.
        """
        survival = [1.0, *(count / self.samples for count in survivors)]
        costs = self.costs.plan_costs([self.exits[row] for row in rows])
        return latency_quantile(costs, survival, self.costs.load) + TIE * self.plan_ms(rows, survivors)

    def _bounds(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        return list(zip((-1, *rows), (*rows, -1), strict=True))

    def stage_ms(self, after: int, until: int, samples: int | np.ndarray) -> np.ndarray:
        """Returns what a stage adds to the price, in milliseconds.

        Args:
            after: the row of the exit behind which it starts; -1 for the network's input.
            until: the row of the exit that ends it; -1 for the final head.
            samples: how many of the trace's samples enter it; the result has its shape.
        """
        steps = min(self.samples, _FINEST)
        if (after, until) not in self._stages:
            self._stages[after, until] = self._shares(steps) @ self._stage(after, until)
        index = samples if steps == self.samples else (samples * steps + self.samples // 2) // self.samples
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
        shares = [(grid / self.samples).reshape(grid.shape + (1,) * (len(table.shape) - grid.ndim))
                  for grid in table.survivors]  # fmt: skip
        entering = [np.ones((1,) * len(table.shape)), *shares]
        late, costs = 1 - TAIL_QUANTILE, [self._stage(*bounds) for bounds in self._bounds(table.rows)]
        total = np.zeros(table.shape)
        for last, (before, after) in enumerate(zip(entering, [*shares, np.zeros(())], strict=True)):
            odds = np.clip((before - late) / np.maximum(late - after, 1e-9), 1e-3, 1e3)
            spread = np.log(odds) / _LOGISTIC
            waited = sum(
                self._spend(cost, share, spread)
                for cost, share in zip(costs[: last + 1], entering[: last + 1], strict=True)
            )
            total = np.where((before > late) & (after <= late), waited, total)
        return total

    def _spend(self, cost: np.ndarray, share: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Interpolates the cost of a stage at ``spread`` standard deviations above the mean count of its rows."""
        others = self.costs.load.largest - 1
        rows = 1 + others * share + spread * np.sqrt(others * share * (1 - share))
        found: np.ndarray = np.interp(np.clip(rows, 1, others + 1), np.arange(others + 2), cost)
        return found

    def _stage(self, after: int, until: int) -> np.ndarray:
        return self.costs.stage_cost(*(self.exits[row] if row >= 0 else None for row in (after, until)))
