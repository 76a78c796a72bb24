"""Covers: which engine runs serve n rows at the least measured time.

After an exit n survivors go on, and the next stage has engines for some batch sizes only (*fixed*), or an engine that
takes any batch size up to the largest that was timed (*dynamic*). A **cover** of n is a list of runs, laid end to end
over the rows, whose batch sizes add up to at least n; the rows from n on are padding. Its cost is the sum of the runs'
times. So three things compete: the exact fit, padding to a larger size, and a split into several runs.

**Times.** The time of a fixed engine was measured. A dynamic engine was measured at a sample of batch sizes: between
two of them its time is interpolated linearly, below the smallest it equals that of the smallest (a small batch is
bounded by the fixed cost of a run, and extrapolating a line could go below zero).

**The program.** Let t(s) be the time of a run of s rows and C(k, n) the least cost of covering n rows with at most k
runs:

    C(1, n) = min { t(s) : s >= n }
    C(k, n) = min ( C(k - 1, n),  min { t(s) + C(k - 1, n - s) : s < n } )

It is an unbounded knapsack with a covering constraint, solved for all n up to ``largest`` at once. Rows of the table
are added until another run no longer improves any cost.

**The margin.** The times are medians of noisy measurements; the least of many sums of noisy numbers is biased towards
lucky ones, and each run of a split is one more call and one more chance of a late thread. So the plain cover (a single
run of the smallest size that fits) stands until another cover is cheaper by more than ``MARGIN`` (2 %, about the spread
of a median of a few dozen runs on a quiet machine), and likewise every further run must pay for itself by that margin.
Hence no cover costs more than ``1 / (1 - MARGIN)`` times the optimum, and noise below the margin never splits a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from artifacts import InputError

MARGIN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An engine run of a cover: rows ``start`` to ``start + batch_size`` of every buffer."""

    start: int
    batch_size: int

    @property
    def stop(self) -> int:
        return self.start + self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Covers:
    """The cover of every number of rows from 0 to ``largest``.

    Attributes:
        largest: the most rows that are covered.
        cost_ms: (largest + 1,) float64, expected milliseconds to run n rows; ``cost_ms[0]`` is 0.
        all_runs: ``all_runs[n]`` is the cover of n rows, largest run first, so that padding lies in the smallest.
    """

    largest: int
    cost_ms: np.ndarray
    all_runs: tuple[tuple[Run, ...], ...]

    def runs(self, n: int) -> tuple[Run, ...]:
        """Returns the runs that cover ``n`` rows; none for 0.

        Raises:
            InputError: ``n`` is negative or more than ``largest``.
        """
        if not 0 <= n <= self.largest:
            raise InputError(f"no cover for {n} rows: these covers go from 0 to {self.largest}; plan larger covers")
        return self.all_runs[n]

    def padded_rows(self, n: int) -> int:
        """Returns how many rows the cover of ``n`` reads, padding included; errors as ``runs``."""
        runs = self.runs(n)
        return runs[-1].stop if runs else 0

    @property
    def buffer_rows(self) -> int:
        """How many rows a buffer needs so that every cover fits."""
        return max(self.padded_rows(n) for n in range(self.largest + 1))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that some cover uses, ascending."""
        return tuple(sorted({run.batch_size for runs in self.all_runs for run in runs}))


def plan_covers(median_ms: Mapping[int, float], *, largest: int, fixed: bool) -> Covers:
    """Finds the cheapest cover of every number of rows; the theory is at the top of this module.

    Args:
        median_ms: batch size -> measured time of one engine run, in milliseconds.
        largest: the most rows to cover; may exceed the largest batch size, which then runs several times.
        fixed: True where only these batch sizes exist, False where every batch size up to the largest of them does.

    Raises:
        InputError: nothing was measured, a batch size or ``largest`` is below 1, or a time is not a finite number >= 0.
    """
    _check_times(median_ms, largest)
    sizes, times = _available_runs(median_ms, fixed=fixed)
    costs, firsts = _cheapest_by_run_count(sizes, times, largest)
    cost_ms = np.zeros(largest + 1)
    covers: list[tuple[Run, ...]] = [()]
    for n in range(1, largest + 1):
        chosen = _choose_cover(n, sizes, times, costs, firsts)
        cost_ms[n] = sum(times[sizes == size].item() for size in chosen)
        covers.append(_lay_out(chosen))
    cost_ms.setflags(write=False)
    return Covers(largest=largest, cost_ms=cost_ms, all_runs=tuple(covers))


def choose_branches(covers: Covers, limit: int) -> tuple[int, ...]:
    """Chooses numbers of rows whose covers serve all others: a batch runs the cover of the next larger one.

    Args:
        covers: of a stage.
        limit: how many at most, at least 2.

    Returns:
        Ascending, the last is ``covers.largest``. As many as there are different covers, if these are few enough, each
        with the most rows that it serves; otherwise about evenly spread in the logarithm, so that a batch is padded by
        about the same share wherever it lies.
    """
    largest = covers.largest
    distinct = [n for n in range(1, largest + 1) if n == largest or covers.all_runs[n] != covers.all_runs[n + 1]]
    if len(distinct) <= limit:
        return tuple(distinct)
    wanted = {math.ceil(largest ** (step / (limit - 1)) - 1e-9) for step in range(limit)}
    return tuple(sorted({next(n for n in distinct if n >= rows) for rows in wanted}))


def _check_times(median_ms: Mapping[int, float], largest: int) -> None:
    if not median_ms:
        raise InputError("cannot plan covers: no batch size was timed; time the engine for at least one")
    if largest < 1:
        raise InputError(f"cannot plan covers for up to {largest} rows: expected a number from 1")
    for size, ms in median_ms.items():
        if size < 1 or not math.isfinite(ms) or ms < 0:
            raise InputError(f"cannot plan covers: batch size {size} with {ms} ms is not a measurement; time it again")


def _available_runs(median_ms: Mapping[int, float], *, fixed: bool) -> tuple[np.ndarray, np.ndarray]:
    measured = np.array(sorted(median_ms), dtype=np.int64)
    times = np.array([median_ms[int(size)] for size in measured], dtype=np.float64)
    if fixed:
        return measured, times
    sizes = np.arange(1, measured[-1] + 1)
    return sizes, np.interp(sizes, measured, times)


def _cheapest_by_run_count(
    sizes: np.ndarray, times: np.ndarray, largest: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Fills the table of the dynamic program.

    Returns:
        Per run limit k = 1, 2, ...: (largest + 1,) least costs (inf where k runs do not reach), and (largest + 1,)
        sizes of the first run of such a cover, 0 where k - 1 runs cost no more.
    """
    cost, first = np.zeros(largest + 1), np.zeros(largest + 1, dtype=np.int64)
    for n in range(1, largest + 1):
        fits = np.flatnonzero(sizes >= n)
        best = fits[np.argmin(times[fits])] if fits.size else None
        cost[n], first[n] = (np.inf, 0) if best is None else (times[best], sizes[best])
    costs, firsts = [cost], [first]
    while True:
        cost, first = costs[-1].copy(), np.zeros(largest + 1, dtype=np.int64)
        for n in range(2, largest + 1):
            smaller = int(np.searchsorted(sizes, n))
            if smaller == 0:
                continue
            totals = times[:smaller] + costs[-1][n - sizes[:smaller]]
            best = int(np.argmin(totals))
            if totals[best] < cost[n]:
                cost[n], first[n] = totals[best], sizes[best]
        if not first.any():
            return costs, firsts
        costs.append(cost)
        firsts.append(first)


def _choose_cover(
    n: int, sizes: np.ndarray, times: np.ndarray, costs: list[np.ndarray], firsts: list[np.ndarray]
) -> tuple[int, ...]:
    """Returns the batch sizes of the cover of ``n``: the plain cover unless another is cheaper by the margin."""
    position = int(np.searchsorted(sizes, n))
    chosen: tuple[int, ...] = (int(sizes[position]),) if position < len(sizes) else ()
    chosen_ms = times[position] if chosen else np.inf
    for limit, cost in enumerate(costs):
        if cost[n] < (1 - MARGIN) * chosen_ms:
            chosen, chosen_ms = _backtrack(n, limit, firsts), cost[n]
    return chosen


def _backtrack(n: int, limit: int, firsts: list[np.ndarray]) -> tuple[int, ...]:
    found = []
    while n > 0:
        while firsts[limit][n] == 0:
            limit -= 1
        size = int(firsts[limit][n])
        found.append(size)
        n -= size
        limit -= 1
    return tuple(found)


def _lay_out(sizes: tuple[int, ...]) -> tuple[Run, ...]:
    runs, start = [], 0
    for size in sorted(sizes, reverse=True):
        runs.append(Run(start=start, batch_size=size))
        start += size
    return tuple(runs)
