"""Level tables: survivors and loss of every combination of thresholds of some exits, from one pass over the trace.

Theory. For chosen exits ``1..K`` let exit ``k`` have ``Q_k`` thresholds to choose from, ascending, its *levels*.
Sample ``i`` reaches ``code_k(i)`` of them, so it leaves at level ``j`` exactly if ``code_k(i) > j`` and stays if
``code_k(i) <= j``. The samples that stay at levels ``(j_1 .. j_k)`` of the first ``k`` exits are those whose codes
are at most that in every coordinate: a cumulative distribution function. So with a histogram over the codes (one pass
over the samples) and a cumulative sum along every axis,

    survivors past exit k:   n_k(j_1 .. j_k) = sum of 1 over code_1 <= j_1, .., code_k <= j_k

for all ``Q_1 x .. x Q_k`` combinations together. Leaving at exit ``k`` loses ``d_k(i) = metric_final(i) -
metric_k(i)`` (which may be a gain), and with ``D_k`` the same cumulative sum of ``d_k`` instead of 1,

    loss(j_1 .. j_K) = sum_k [ D_k(j_1 .. j_(k-1), all) - D_k(j_1 .. j_k) ]

is exact: the metric that a plan loses against the full network on this trace, for every combination of levels. A
combination costs a few additions instead of a pass over the samples, and what belongs to the first exits is shared by
all combinations that begin with them.

Levels are ranks: confidences are compared in float32 at run time, so only the distinct values of the trace matter,
and a sample leaves exactly if its rank is at least the threshold's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from artifacts import Trace
from planner.predict.replay import Exits

_REACH = 5.0  # log-odds: quantiles from 0.7 % to 99.3 %

Levels = tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A combination of thresholds: some exits, each with one of its levels.

    Attributes:
        rows: the exits, as rows of the trace, ascending.
        ranks: their thresholds, as ranks.
        price_ms: milliseconds by the objective.
        loss: sum of the metric lost on the trace.
    """

    rows: tuple[int, ...]
    ranks: tuple[int, ...]
    price_ms: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankedTrace:
    """A trace with its confidences as ranks.

    Attributes:
        trace: the samples.
        values: per candidate the distinct confidences, ascending, float32.
        ranks: (E, N) int64: ``values[e][ranks[e, i]]`` is the confidence.
        falling: (E, N) int64: the samples in the order of falling confidence.
        losses: (E, N) float64: what the metric loses when a sample leaves there and not at the end.
    """

    trace: Trace
    values: tuple[np.ndarray, ...]
    ranks: np.ndarray
    falling: np.ndarray
    losses: np.ndarray

    @classmethod
    def of(cls, trace: Trace) -> RankedTrace:
        """Ranks a trace."""
        found = [np.unique(row, return_inverse=True) for row in trace.confidence[:-1]]
        metric = trace.metric.astype(np.float64)
        ranks = np.array([ranks for _, ranks in found], np.int64).reshape(len(found), trace.sample_count)
        return cls(
            trace=trace,
            values=tuple(values for values, _ in found),
            ranks=ranks,
            falling=np.argsort(-ranks, axis=1, kind="stable"),
            losses=metric[-1] - metric[:-1],
        )

    @property
    def most_ranks(self) -> int:
        """The number of distinct confidences of the candidate that has most."""
        return max(map(len, self.values), default=0)

    def choose(self, rows: Sequence[int], levels: Sequence[int]) -> Exits:
        """Returns the exits of some rows of the trace with the thresholds of the given ranks."""
        return Exits(
            cuts=tuple(self.trace.exits[row] for row in rows),
            thresholds=tuple(float(self.values[row][level]) for row, level in zip(rows, levels, strict=True)),
        )

    def rank_levels(self, rows: Sequence[int], thresholds: Sequence[float]) -> tuple[int, ...] | None:
        """Returns the ranks of thresholds, rounded up to those that there are; ``None`` if no sample reaches one."""
        found = []
        for row, threshold in zip(rows, thresholds, strict=True):
            rank = int(np.searchsorted(self.values[row], np.float32(threshold)))
            if rank == len(self.values[row]):
                return None
            found.append(rank)
        return tuple(found)


def spread_levels(ranks: np.ndarray, count: int) -> np.ndarray:
    """Returns up to ``count`` ranks as levels: quantiles of the samples, dense at both ends; ascending int64.

    The quantiles are equally spaced in their log-odds: behind an exit that most samples leave, those that are left are
    at the low end of every later exit, and a tight tolerance needs the high end.

    Args:
        ranks: (N,) of the samples.
        count: how many levels at most; all ranks where there are no more.
    """
    present = np.bincount(ranks)
    distinct = np.flatnonzero(present)
    if len(distinct) <= count:
        return distinct
    shares = 1 / (1 + np.exp(-np.linspace(-_REACH, _REACH, count - 2)))
    between = np.searchsorted(np.cumsum(present), shares * len(ranks))
    return np.unique(np.concatenate([distinct[:1], between, distinct[-1:]]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelTable:
    """Survivors and loss of every combination of levels of ``K`` exits.

    Attributes:
        rows: the exits, as rows of the trace, ascending.
        levels: K int64 arrays of ranks, ascending.
        survivors: K int64 arrays; the k-th of shape (Q_1, .., Q_k): how many samples go on past exit k.
        loss: (Q_1, .., Q_K) float64: sum of the metric lost; (Q_1 .. Q_k) while there are k exits only.
    """

    rows: tuple[int, ...]
    levels: Levels
    survivors: tuple[np.ndarray, ...]
    loss: np.ndarray
    _samples: np.ndarray = field(repr=False)  # those that stay at some combination of levels
    _cell: np.ndarray = field(repr=False)  # of each of them: its codes as one number

    @classmethod
    def start(cls, ranked: RankedTrace) -> LevelTable:
        """Returns the table of no exits."""
        samples = np.arange(ranked.trace.sample_count)
        return cls(rows=(), levels=(), survivors=(), loss=np.zeros(()), _samples=samples, _cell=np.zeros_like(samples))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(levels) for levels in self.levels)

    def extended(self, ranked: RankedTrace, row: int, levels: np.ndarray) -> LevelTable:
        """Returns the table with one more exit behind the others.

        Args:
            ranked: the trace that the table was started with.
            row: the exit, behind ``rows``.
            levels: its ranks to choose from, ascending.
        """
        shape, count = self.shape, len(levels)
        reached = np.zeros(len(ranked.values[row]), np.int64)
        reached[levels] = 1
        codes = reached.cumsum()[ranked.ranks[row, self._samples]]
        cell = self._cell * (count + 1) + codes
        size = int(np.prod(shape, dtype=np.int64)) * (count + 1)
        lost = _sum_up(np.bincount(cell, ranked.losses[row, self._samples], size).reshape(*shape, count + 1))
        going = _sum_up(np.bincount(cell, minlength=size).reshape(*shape, count + 1))[..., :count]
        stays = codes < count
        return LevelTable(
            rows=(*self.rows, row),
            levels=(*self.levels, levels),
            survivors=(*self.survivors, going),
            loss=self.loss[..., None] + (lost[..., count:] - lost[..., :count]),
            _samples=self._samples[stays],
            _cell=(self._cell * count + codes)[stays],
        )

    def at(self, cell: Sequence[int]) -> tuple[int, ...]:
        """Returns the ranks of a combination of levels."""
        return tuple(int(levels[position]) for levels, position in zip(self.levels, cell, strict=True))

    def combination(self, cell: Sequence[int], price_ms: float) -> Combination:
        """Returns a combination of levels with its price."""
        return Combination(rows=self.rows, ranks=self.at(cell), price_ms=price_ms, loss=float(self.loss[tuple(cell)]))


def _sum_up(histogram: np.ndarray) -> np.ndarray:
    """Cumulative sums along every axis."""
    for axis in range(histogram.ndim):
        histogram = histogram.cumsum(axis=axis)
    return histogram


def make_table(ranked: RankedTrace, rows: Sequence[int], levels: Sequence[np.ndarray]) -> LevelTable:
    """Returns the table of some exits at once."""
    table = LevelTable.start(ranked)
    for row, choices in zip(rows, levels, strict=True):
        table = table.extended(ranked, row, choices)
    return table
