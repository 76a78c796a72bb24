"""Covers against brute force over every list of runs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import InputError
from engines import Run, choose_branches, plan_covers
from engines.sets.covers import MARGIN

TIMES = st.dictionaries(st.integers(1, 7), st.floats(0.01, 10), min_size=1, max_size=4)


def run_times(median_ms: dict[int, float], *, fixed: bool) -> dict[int, float]:
    """Batch size -> time of everything that may run, spelled out."""
    if fixed:
        return median_ms
    points = sorted(median_ms.items())

    def interpolate(size: int) -> float:
        below = [point for point in points if point[0] <= size]
        if not below:
            return points[0][1]
        (a, ta), (b, tb) = below[-1], next(point for point in points if point[0] >= size)
        return ta if a == b else ta + (tb - ta) * (size - a) / (b - a)

    return {size: interpolate(size) for size in range(1, points[-1][0] + 1)}


def brute_force(times: dict[int, float], n: int) -> float:
    """The cost of the cover of n by the rule of the module, over all lists of at most n runs."""
    chosen = times[min(size for size in times if size >= n)] if max(times) >= n else math.inf
    for limit in range(1, n + 1):
        options = (
            sum(times[size] for size in sizes)
            for count in range(1, limit + 1)
            for sizes in itertools.combinations_with_replacement(sorted(times), count)
            if sum(sizes) >= n
        )
        best = min(options, default=math.inf)
        if best < (1 - MARGIN) * chosen:
            chosen = best
    return chosen


@settings(max_examples=150, deadline=None)
@given(median_ms=TIMES, largest=st.integers(1, 9), fixed=st.booleans())
def test_covers_are_those_of_brute_force(median_ms: dict[int, float], largest: int, fixed: bool) -> None:
    times = run_times(median_ms, fixed=fixed)
    covers = plan_covers(median_ms, largest=largest, fixed=fixed)
    assert covers.runs(0) == ()
    assert covers.cost_ms[0] == 0
    assert covers.cost_ms.shape == (largest + 1,)
    for n in range(1, largest + 1):
        assert covers.cost_ms[n] == pytest.approx(brute_force(times, n))


@settings(max_examples=150, deadline=None)
@given(median_ms=TIMES, largest=st.integers(1, 40), fixed=st.booleans())
def test_runs_lie_end_to_end_and_none_is_all_padding(median_ms: dict[int, float], largest: int, fixed: bool) -> None:
    times = run_times(median_ms, fixed=fixed)
    covers = plan_covers(median_ms, largest=largest, fixed=fixed)
    for n in range(1, largest + 1):
        runs = covers.runs(n)
        assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
        assert covers.padded_rows(n) == runs[-1].stop >= n > runs[-1].start
        assert {run.batch_size for run in runs} <= set(times)
        assert covers.cost_ms[n] == pytest.approx(sum(times[run.batch_size] for run in runs))
        assert covers.buffer_rows >= covers.padded_rows(n)
    assert covers.buffer_rows in {covers.padded_rows(n) for n in range(largest + 1)}


@settings(max_examples=100, deadline=None)
@given(slope=st.floats(0.1, 5), base=st.floats(0, 5), noise=st.lists(st.floats(0.996, 1.004), min_size=4, max_size=4))
def test_noise_below_the_margin_does_not_split(slope: float, base: float, noise: list[float]) -> None:
    median_ms = {size: (base + slope * size) * factor for size, factor in zip((1, 4, 8, 16), noise, strict=True)}
    covers = plan_covers(median_ms, largest=16, fixed=False)
    assert all(covers.runs(n) == (Run(start=0, batch_size=n),) for n in range(1, 17))


def test_exact_fit_padding_and_split_compete() -> None:
    covers = plan_covers({1: 1.0, 8: 4.0, 16: 7.0}, largest=17, fixed=True)
    assert covers.runs(8) == (Run(start=0, batch_size=8),)
    assert covers.runs(7) == (Run(start=0, batch_size=8),)
    assert covers.runs(2) == (Run(start=0, batch_size=1), Run(start=1, batch_size=1))
    assert covers.runs(9) == (Run(start=0, batch_size=8), Run(start=8, batch_size=1))
    assert covers.runs(17) == (Run(start=0, batch_size=16), Run(start=16, batch_size=1))
    assert covers.cost_ms[[2, 7, 9, 17]].tolist() == [2, 4, 5, 8]
    assert covers.batch_sizes == (1, 8, 16)


def test_a_dynamic_engine_is_split_where_that_is_truly_cheaper() -> None:
    falls_off_the_cache = plan_covers({1: 1.0, 8: 2.0, 16: 10.0}, largest=16, fixed=False)
    assert falls_off_the_cache.runs(16) == (Run(start=0, batch_size=8), Run(start=8, batch_size=8))
    linear = plan_covers({1: 1.0, 8: 8.0, 16: 15.8}, largest=16, fixed=False)
    assert linear.runs(16) == (Run(start=0, batch_size=16),)


def test_below_the_smallest_measured_size_the_time_is_that_of_the_smallest() -> None:
    covers = plan_covers({8: 4.0, 16: 8.0}, largest=16, fixed=False)
    assert covers.cost_ms[1] == covers.cost_ms[8] == 4.0
    assert covers.runs(3) == (Run(start=0, batch_size=3),)
    assert covers.cost_ms[12] == 6.0


def test_costs_cannot_be_changed_by_a_reader() -> None:
    covers = plan_covers({1: 1.0}, largest=3, fixed=True)
    with pytest.raises(ValueError, match="read-only"):
        covers.cost_ms[1] = 0


@pytest.mark.parametrize(
    ("median_ms", "largest", "message"),
    [
        ({}, 4, "no batch size was timed"),
        ({1: 1.0}, 0, "up to 0 rows"),
        ({0: 1.0}, 4, "batch size 0"),
        ({1: -1.0}, 4, "-1.0 ms is not a measurement"),
        ({1: float("nan")}, 4, "nan ms is not a measurement"),
        ({1: float("inf")}, 4, "inf ms is not a measurement"),
    ],
)
def test_bad_measurements_are_refused(median_ms: dict[int, float], largest: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_covers(median_ms, largest=largest, fixed=True)


@pytest.mark.parametrize("n", [-1, 5])
def test_rows_out_of_reach_are_refused(n: int) -> None:
    covers = plan_covers({4: 1.0}, largest=4, fixed=True)
    with pytest.raises(InputError, match="from 0 to 4"):
        covers.runs(n)


def test_large_batches_are_planned_quickly() -> None:
    covers = plan_covers({size: 0.2 + 0.1 * size for size in (1, 64, 512)}, largest=1024, fixed=False)
    assert np.all(np.diff(covers.cost_ms) > 0)
    assert len(covers.runs(1024)) == 2


@settings(max_examples=100, deadline=None)
@given(median_ms=TIMES, largest=st.integers(1, 80), fixed=st.booleans(), limit=st.integers(2, 16))
def test_branches_are_few_and_serve_every_number_of_rows(
    median_ms: dict[int, float], largest: int, fixed: bool, limit: int
) -> None:
    covers = plan_covers(median_ms, largest=largest, fixed=fixed)
    branches = choose_branches(covers, limit)
    assert list(branches) == sorted(set(branches))
    assert branches[-1] == largest
    assert len(branches) <= limit
    for rows in range(1, largest + 1):
        branch = next(most for most in branches if most >= rows)
        assert covers.padded_rows(branch) >= rows
    distinct = {covers.all_runs[rows] for rows in range(1, largest + 1)}
    if len(distinct) <= limit:
        assert {covers.all_runs[most] for most in branches} == distinct
