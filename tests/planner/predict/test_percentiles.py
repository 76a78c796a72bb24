"""The latency distribution against brute force over all batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import Load, expect_times, latency_distribution, latency_quantile


def brute_force(leaves: list[int], costs: list[np.ndarray], load: Load) -> dict[float, float]:
    """Latency -> share of the queries, from every batch of every size, query by query."""
    found: dict[float, float] = {}
    for size, share in zip(load.batch_sizes, load.query_shares, strict=True):
        batches = list(itertools.product(leaves, repeat=size))
        for batch in batches:
            now = 0.0
            for stage, cost in enumerate(costs):
                now += float(cost[sum(at >= stage for at in batch)])
                weight = sum(at == stage for at in batch) / size * share / len(batches)
                found[round(now, 9)] = found.get(round(now, 9), 0.0) + weight
    return {ms: weight for ms, weight in found.items() if weight > 0}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=4), st.sampled_from([(1,), (4,), (1, 3), (2, 3, 4)]),
    st.integers(0, 1000), st.booleans(),
)  # fmt: skip
def test_distribution_equals_brute_force(leaves: list[int], sizes: tuple[int, ...], seed: int, coarse: bool) -> None:
    load = Load(batch_sizes=sizes, shares=tuple(range(1, len(sizes) + 1)))
    random = np.random.default_rng(seed)
    costs = [np.concatenate([[0.0], random.integers(1, 4, 4) if coarse else random.random(4)]) for _ in range(3)]
    survival = [float(np.mean([at >= stage for at in leaves])) for stage in range(3)]
    times, weights = latency_distribution(costs, survival, load)
    found: dict[float, float] = {}
    for ms, weight in zip(np.round(times, 9).tolist(), weights.tolist(), strict=True):
        if weight > 0:
            found[ms] = found.get(ms, 0.0) + weight
    expected = brute_force(leaves, costs, load)
    assert found == pytest.approx(expected, abs=1e-7)
    for quantile in (0.5, 0.9, 0.99):
        reached = np.cumsum([expected[ms] for ms in sorted(expected)])
        literal = sorted(expected)[int(np.searchsorted(reached, quantile - 1e-9))]
        assert latency_quantile(costs, survival, load, quantile=quantile) == pytest.approx(literal, abs=1e-8)


def test_mean_of_the_distribution_is_the_expected_mean() -> None:
    random = np.random.default_rng(3)
    costs = [np.concatenate([[0.0], np.sort(random.random(32))]) for _ in range(4)]
    survival = [1.0, 0.4, 0.2, 0.05]
    load = Load(batch_sizes=(4, 32), shares=(0.5, 0.5))
    times, weights = latency_distribution(costs, survival, load)
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert times @ weights == pytest.approx(expect_times(costs, survival, load).mean_ms, rel=1e-6)


def test_many_paths_are_merged_upwards_and_hardly_change_the_percentile(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    costs = [np.concatenate([[0.0], np.sort(random.random(24))]) for _ in range(5)]
    survival = [1.0, 0.7, 0.5, 0.3, 0.1]
    monkeypatch.setattr("planner.predict.percentiles._MOST_PATHS", 10**7)
    exact = latency_quantile(costs, survival, Load.of(24))
    monkeypatch.setattr("planner.predict.percentiles._MOST_PATHS", 100)
    merged = latency_quantile(costs, survival, Load.of(24))
    assert exact <= merged <= exact * 1.005


def test_no_row_left_costs_no_time() -> None:
    costs = [np.array([0.0, 1.0, 1.0]), np.array([0.0, 5.0, 9.0])]
    assert latency_quantile(costs, [1.0, 0.0], Load.of(2)) == 1.0
    assert latency_quantile(costs, [1.0, 1.0], Load.of(2)) == 10.0
