"""Bucket sets against every set there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import UsageError
from engines import plan_covers
from planner import Load, binomial_pmf
from planner.commit.buckets import StageDemand, plan_buckets, weigh_rows
from planner.predict.objectives import BATCH, MEAN

LARGEST = 8


@st.composite
def demands(draw: st.DrawFn) -> StageDemand:
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    sizes = sorted({*draw(st.sets(st.integers(1, LARGEST), max_size=3)), LARGEST})
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    times = random.random(len(sizes)) if draw(st.booleans()) else 1 + np.array(sizes) * random.random()
    return StageDemand(
        weights=weigh_rows(share, Load.of(LARGEST), draw(st.sampled_from([MEAN, BATCH]))),
        times_ms=dict(zip(sizes, times.tolist(), strict=True)),
        memory_mb=dict(zip(sizes, random.integers(1, 5, len(sizes)).astype(float).tolist(), strict=True)),
    )


def padded_cost(stage: StageDemand, sizes: tuple[int, ...]) -> float:
    return sum(
        weight * stage.times_ms[min(size for size in sizes if size >= n)]
        for n, weight in enumerate(stage.weights)
        if n > 0
    )


def every_choice(stage: StageDemand) -> list[tuple[int, ...]]:
    smaller = [size for size in stage.times_ms if size < LARGEST]
    return [
        (*chosen, LARGEST)
        for count in range(len(smaller) + 1)
        for chosen in itertools.combinations(sorted(smaller), count)
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(demands(), min_size=1, max_size=3), st.none() | st.integers(0, 8),
    st.none() | st.sampled_from([2.0, 5.0, 9.0, 15.0]),
)  # fmt: skip
def test_choice_is_the_best_of_all(stages: list[StageDemand], max_engines: int | None, memory_mb: float | None) -> None:
    best = np.inf
    for choice in itertools.product(*map(every_choice, stages)):
        engines = sum(map(len, choice))
        memory = sum(stage.memory_mb[size] for stage, sizes in zip(stages, choice, strict=True) for size in sizes)
        if (max_engines is None or engines <= max_engines) and (memory_mb is None or memory <= memory_mb):
            best = min(best, sum(padded_cost(*pair) for pair in zip(stages, choice, strict=True)))
    if best == np.inf:
        with pytest.raises(UsageError, match="at least"):
            plan_buckets(stages, max_engines=max_engines, memory_mb=memory_mb)
        return
    found = plan_buckets(stages, max_engines=max_engines, memory_mb=memory_mb)
    assert found.cost_ms == pytest.approx(best)
    assert found.engines == sum(map(len, found.sizes))
    assert max_engines is None or found.engines <= max_engines
    literal = sum(padded_cost(*pair) for pair in zip(stages, found.sizes, strict=True))
    assert found.cost_ms == pytest.approx(literal)
    for stage, sizes in zip(stages, found.sizes, strict=True):
        taken = {size: stage.times_ms[size] for size in sizes}
        real = plan_covers(taken, largest=LARGEST, fixed=True).cost_ms
        assert np.dot(stage.weights, real) <= padded_cost(stage, sizes) + 1e-12


def test_engines_go_where_the_survivors_are() -> None:
    times = {size: 1.0 + size for size in (1, 2, 4, 8, 16, 32)}
    few = StageDemand(weights=weigh_rows(0.1, Load.of(32), MEAN), times_ms=times, memory_mb={})
    all_rows = StageDemand(weights=weigh_rows(1.0, Load.of(32), MEAN), times_ms=times, memory_mb={})
    found = plan_buckets([all_rows, few], max_engines=4)
    assert found.sizes == ((32,), (4, 8, 32))


def test_weights_are_those_of_the_expected_cost() -> None:
    load = Load(batch_sizes=(2, 4), shares=(0.5, 0.5))
    cost = np.array([0.0, 3.0, 4.0, 9.0, 11.0])
    by_batch = 0.5 * (binomial_pmf(2, 0.3) @ cost[:3] + binomial_pmf(4, 0.3) @ cost)
    assert np.dot(weigh_rows(0.3, load, BATCH), cost) == pytest.approx(by_batch)
    by_query = 1 / 3 * (binomial_pmf(2, 0.3) * np.arange(3) / 2) @ cost[:3]
    by_query += 2 / 3 * (binomial_pmf(4, 0.3) * np.arange(5) / 4) @ cost
    assert np.dot(weigh_rows(0.3, load, MEAN), cost) == pytest.approx(by_query)


def test_many_stages_and_sizes_are_quick_enough() -> None:
    sizes = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
    stages = [
        StageDemand(
            weights=weigh_rows(share, Load.of(64), MEAN), times_ms={size: 1 + size**0.9 for size in sizes},
            memory_mb={size: 10 + size * 0.37 for size in sizes},
        )
        for share in (1.0, 0.5, 0.3, 0.2, 0.1)
    ]  # fmt: skip
    found = plan_buckets(stages, max_engines=15, memory_mb=250.0)
    assert found.engines <= 15
    assert found.memory_mb <= 250.0
