"""The expected times against brute force over all batches, and the prices of stages."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import UsageError
from engines import plan_covers
from planner import NetworkCosts, binomial_pmf, count_survivors, expect_times, price_stage, record_times
from planner.predict.costs import gather_row, head_row, segment_row
from planner.predict.traffic import Load
from tests.planner.planning_worlds import make_costs, make_itm


def brute_force(leaves: list[int], costs: list[list[float]], batch_size: int) -> tuple[float, float, list[float]]:
    """Runs every batch of B samples drawn with replacement, query by query."""
    stages = len(costs)
    means, wholes = [], []
    waited, gone = np.zeros(stages), np.zeros(stages)
    for batch in itertools.product(leaves, repeat=batch_size):
        now, latencies = 0.0, []
        for stage in range(stages):
            present = sum(at >= stage for at in batch)
            now += costs[stage][present]
            leaving = sum(at == stage for at in batch)
            latencies += [now] * leaving
            waited[stage] += now * leaving
            gone[stage] += leaving
        means.append(np.mean(latencies))
        wholes.append(max(latencies))
    return float(np.mean(means)), float(np.mean(wholes)), (waited / np.maximum(gone, 1)).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.integers(1, 4),
    st.lists(st.floats(0.1, 10), min_size=12, max_size=12),
)
def test_expected_times_equal_brute_force(leaves: list[int], batch_size: int, values: list[float]) -> None:
    costs = [[0.0, *values[4 * j : 4 * j + batch_size]] for j in range(3)]
    survival = [np.mean([at >= j for at in leaves]) for j in range(3)]
    found = expect_times([np.array(cost) for cost in costs], survival)
    mean, whole, arrival = brute_force(leaves, costs, batch_size)
    assert found.mean_ms == pytest.approx(mean, rel=1e-9)
    assert found.batch_ms == pytest.approx(whole, rel=1e-9)
    for stage in set(leaves):
        assert found.arrival_ms[stage] == pytest.approx(arrival[stage], rel=1e-9)


@given(st.integers(1, 32), st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(0, 1000))
def test_mean_query_is_the_size_weighted_stage_time(batch_size: int, drops: list[float], seed: int) -> None:
    """The two forms of the formula agree: (1/B) E[N c(N)] and s E[c(1 + Binomial(B - 1, s))]."""
    survival = np.cumprod([1.0, *drops])
    costs = np.random.default_rng(seed).random((len(survival), batch_size + 1))
    costs[:, 0] = 0
    rows = np.arange(batch_size + 1)
    direct = (binomial_pmf(batch_size, survival) * costs * rows).sum() / batch_size
    assert expect_times(list(costs), survival.tolist()).mean_ms == pytest.approx(direct, rel=1e-9)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 6), st.integers(0, 100))
def test_recorded_times_equal_a_literal_replay(leaves: list[int], batch_size: int, seed: int) -> None:
    costs = np.random.default_rng(seed).random((3, batch_size + 1))
    costs[:, 0] = 0
    found = record_times(list(costs), count_survivors(np.array(leaves), exit_count=2, batch_size=batch_size))
    padded = list(itertools.islice(itertools.cycle(leaves), -(-len(leaves) // batch_size) * batch_size))
    latencies, wholes, by_exit = [], [], {0: [], 1: [], 2: []}
    for start in range(0, len(padded), batch_size):
        batch, now = padded[start : start + batch_size], 0.0
        for stage in range(3):
            now += costs[stage][sum(at >= stage for at in batch)]
            by_exit[stage] += [now] * batch.count(stage)
        wholes.append(now)
    latencies = [ms for waited in by_exit.values() for ms in waited]
    assert found.mean_ms == pytest.approx(np.mean(latencies))
    assert found.batch_ms == pytest.approx(np.mean(wholes))
    for stage, waited in by_exit.items():
        if waited:
            assert found.arrival_ms[stage] == pytest.approx(np.mean(waited))


def test_stage_without_exits_costs_what_the_full_network_was_measured_to_take() -> None:
    costs = make_costs(0)
    full = dict(zip(costs.itm.batch_sizes, costs.itm.row_ms("full"), strict=True))
    np.testing.assert_array_equal(costs.stage_cost(None, None), plan_covers(full, largest=8, fixed=False).cost_ms)
    assert costs.full_ms == full[8]


def test_stage_is_priced_by_its_parts_less_what_merging_saves() -> None:
    seam = 0.05
    costs = make_costs(3, seam=seam)
    itm = costs.itm
    parts = [segment_row(1), segment_row(2), head_row("cut2"), gather_row("cut2")]
    at_4 = sum(itm.row_ms(row)[2] for row in parts) - 1.5 * seam
    assert costs.stage_cost("cut0", "cut2")[4] == pytest.approx(at_4)
    rest = itm.row_ms(segment_row(3))[2] + itm.row_ms("final_head")[2] - seam
    assert costs.stage_cost("cut2", None)[4] == pytest.approx(rest)
    assert costs.stage_cost("cut0", "cut2")[0] == 0


def test_staying_costs_the_full_network_and_what_each_exit_adds() -> None:
    """However the noise of the parts falls: here the sum of all segments is below the full network."""
    noisy = make_itm(1, exits=3, sizes=(1, 2, 4, 8), seam=-0.04)
    costs = NetworkCosts(itm=noisy, cuts=("cut0", "cut1", "cut2", "cut3"), batch_size=8)
    assert costs.stay_ms(()) == costs.full_ms == noisy.row_ms("full")[-1]
    added = [noisy.row_ms(head_row(f"cut{i}"))[-1] + noisy.row_ms(gather_row(f"cut{i}"))[-1] for i in range(3)]
    assert costs.stay_ms(("cut0",)) == pytest.approx(costs.full_ms + added[0])
    assert costs.stay_ms(("cut0", "cut2")) == pytest.approx(costs.full_ms + added[0] + added[2])
    mixed = NetworkCosts(itm=noisy, cuts=costs.cuts, batch_size=8, mixture=Load(batch_sizes=(2, 8), shares=(0.8, 0.2)))
    half = noisy.row_ms(head_row("cut1"))[1] + noisy.row_ms(gather_row("cut1"))[1]  # queries: 1.6 in 2s, 1.6 in 8s
    assert mixed.stay_ms(("cut1",)) == pytest.approx(mixed.full_ms + (half + added[1]) / 2)


def test_costs_follow_the_covers_of_fixed_batch_sizes() -> None:
    itm = make_itm(1, sizes=(1, 8), fixed=True)
    cost = price_stage([1.0, 2.0], (0.1, 0.8), itm, batch_size=8)
    assert cost[1] == pytest.approx(1.1)
    assert cost[5] == pytest.approx(2.0 + 0.5)  # padded to 8; the gather moves 5 rows
    assert not cost.flags.writeable


def test_negative_credit_never_makes_a_stage_free_of_time() -> None:
    itm = make_itm(0, seam=50.0, head=0.0)
    cheap = {**itm.median_ms, head_row("cut0"): (0.0,) * 4, segment_row(0): (0.0,) * 4}
    costs = NetworkCosts(itm=replace(itm, median_ms=cheap), cuts=("cut0", "cut1", "cut2", "cut3"), batch_size=8)
    assert (costs.stage_cost(None, "cut0") >= 0).all()


def test_exits_out_of_order_and_unknown_ones_are_refused() -> None:
    costs = make_costs(0)
    with pytest.raises(UsageError, match="data flow"):
        costs.plan_costs(("cut2", "cut1"))
    with pytest.raises(UsageError, match="Did you mean 'cut1'"):
        costs.plan_costs(("cutt1",))


def test_batch_beyond_what_was_timed_is_refused() -> None:
    with pytest.raises(UsageError, match="--batch-sizes"):
        NetworkCosts(itm=make_itm(0), cuts=("cut0",), batch_size=16)
