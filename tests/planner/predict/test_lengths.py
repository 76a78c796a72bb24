"""Costs where rows have several lengths: against all batches there are, counted one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from artifacts import InferenceTimeMatrix, InputError, LengthTimes, Trace
from planner.predict.costs import (
    SERVING,
    ChainTimes,
    NetworkCosts,
    expect_mixture,
    expect_times,
    gather_row,
    head_row,
    segment_row,
)
from planner.predict.lengths import (
    LengthCosts,
    LengthMix,
    average_costs,
    batch_places,
    find_buckets,
    split_by_length,
    stay_by_length,
)
from planner.predict.replay import Exits, evaluate_exits, evaluate_plan, price_exits
from planner.predict.traffic import Load

LENGTHS = (4, 8, 16)
ROWS = np.array([2, 4, 6, 16])  # each sample is one kind of row
LEAVES = np.array([0, 0, 1, 2])  # long rows are harder: length and exit go together


def make_costs(stages: int, batch_size: int, seed: int = 0) -> LengthCosts:
    """Returns costs that rise with length and rows, as no formula would have them."""
    random = np.random.default_rng(seed)
    return LengthCosts(
        by_length={
            length: [
                np.concatenate([[0.0], np.cumsum(random.uniform(0.5, 1.5, batch_size))]) * length for _ in range(stages)
            ]
            for length in LENGTHS
        }
    )


def count_batches(costs: LengthCosts, load: Load) -> tuple[float, float, list[tuple[float, float]], np.ndarray]:
    """Goes through every batch of every size: mean of a query, of a batch, latencies with weights, arrival by exit."""
    mean = whole = 0.0
    latencies: list[tuple[float, float]] = []
    stages = len(costs.by_length[LENGTHS[0]])
    gone, waited = np.zeros(stages), np.zeros(stages)
    for size, batches, queries in zip(load.batch_sizes, load.shares, load.query_shares, strict=True):
        chance = 1 / len(ROWS) ** size
        for batch in itertools.product(range(len(ROWS)), repeat=size):
            members = np.array(batch)
            length = next(length for length in LENGTHS if ROWS[members].max() <= length)
            now = 0.0
            for stage, cost in enumerate(costs.by_length[length]):
                now += cost[int((LEAVES[members] >= stage).sum())]
                left = int((LEAVES[members] == stage).sum())
                weight = chance * queries * left / size
                latencies.append((now, weight))
                mean += weight * now
                gone[stage] += weight
                waited[stage] += weight * now
            whole += chance * batches * now
    return mean, whole, latencies, waited / gone


@pytest.mark.parametrize("load", [Load.of(1), Load.of(3), Load(batch_sizes=(1, 2, 4), shares=(0.2, 0.5, 0.3))])
def test_expectations_are_those_over_all_batches(load: Load) -> None:
    costs = make_costs(3, load.largest)
    found = expect_mixture(split_by_length(costs, LEAVES, ROWS, load), load, percentile=True)
    mean, whole, latencies, arrival = count_batches(costs, load)
    assert found.mean_ms == pytest.approx(mean)
    assert found.batch_ms == pytest.approx(whole)
    np.testing.assert_allclose(found.arrival_ms, arrival)
    values, weights = np.array(sorted(latencies)).T
    reached = np.cumsum(weights)
    assert reached[-1] == pytest.approx(1)
    assert found.p99_ms == pytest.approx(values[np.searchsorted(reached, 0.99 - 1e-9)])


def test_taking_length_and_exit_as_independent_would_be_wrong_here() -> None:
    load, costs = Load.of(3), make_costs(3, 3)
    mix = LengthMix.of(ROWS, LENGTHS)
    exact = expect_mixture(split_by_length(costs, LEAVES, ROWS, load), load).mean_ms
    survival = [(stage <= LEAVES).mean() for stage in range(3)]
    averaged = expect_times(average_costs(costs, mix, load), survival, load).mean_ms
    assert abs(averaged / exact - 1) > 0.02


def test_one_length_is_what_it_was() -> None:
    load = Load(batch_sizes=(2, 4), shares=(0.5, 0.5))
    stages = make_costs(3, 4).by_length[8]
    survival = [(stage <= LEAVES).mean() for stage in range(3)]
    only = LengthCosts(by_length={16: stages})
    found = expect_mixture(split_by_length(only, LEAVES, ROWS, load), load, percentile=True)
    assert_same(found, expect_times(stages, survival, load, percentile=True))
    mix = LengthMix.of(ROWS, (16,))
    for mine, theirs in zip(average_costs(only, mix, load), stages, strict=True):
        np.testing.assert_allclose(mine, theirs)


def assert_same(found: ChainTimes, expected: ChainTimes) -> None:
    assert (found.mean_ms, found.batch_ms) == pytest.approx((expected.mean_ms, expected.batch_ms))
    assert found.arrival_ms == pytest.approx(expected.arrival_ms)
    assert found.p99_ms == pytest.approx(expected.p99_ms)


def test_a_batch_is_as_long_as_its_longest_row() -> None:
    mix = LengthMix.of(ROWS, LENGTHS)
    assert mix.shares == (0.5, 0.25, 0.25)
    np.testing.assert_allclose(mix.batch_shares(1), mix.shares)
    np.testing.assert_allclose(mix.batch_shares(3), [0.125, 0.75**3 - 0.125, 1 - 0.75**3])
    assert batch_places(ROWS, LENGTHS, 3).tolist() == [1, 2]  # the second batch begins anew with the first rows
    assert stay_by_length(make_costs(2, 3), mix, Load.of(3)) > 0


def test_rows_that_are_too_long_or_unknown_are_refused() -> None:
    with pytest.raises(InputError, match="a sample of the trace is 17 long, the largest length is 16"):
        find_buckets(np.array([3, 17]), LENGTHS)
    with pytest.raises(InputError, match="does not say how long its samples are"):
        LengthMix.of(None, LENGTHS)


def make_matrix() -> InferenceTimeMatrix:
    rows = [segment_row(0), segment_row(1), head_row("a"), gather_row("a"), "final_head", "full", SERVING]

    def times(scale: float) -> dict[str, tuple[float, ...]]:
        sizes = {"full": 2.5, SERVING: 0.1, gather_row("a"): 0.05, head_row("a"): 0.2, "final_head": 0.3}
        return {row: tuple(scale * sizes.get(row, 1.2) * (1 + size) for size in (1, 2, 4)) for row in rows}

    shorter = {str(length): LengthTimes(median_ms=times(length), spread_ms=times(0)) for length in LENGTHS[:-1]}
    return InferenceTimeMatrix(
        backend="b", threads=1, batch_sizes=(1, 2, 4), median_ms=times(16), spread_ms=times(0), fixed=False,
        environment={}, largest_length=16, shorter=shorter,
    )  # fmt: skip


def make_trace() -> Trace:
    confidence = np.array([[0.9, 0.8, 0.4, 0.1], [1, 1, 1, 1]], np.float32)
    ones = np.ones((2, 4), np.float32)
    return Trace(exits=("a",), confidence=confidence, metric=ones, agreement=ones, lengths=ROWS.astype(np.int32))


def test_a_plan_is_priced_by_the_lengths_of_its_batches() -> None:
    itm, trace = make_matrix(), make_trace()
    costs = NetworkCosts(itm=itm, cuts=("a", "end"), batch_size=4, lengths=LengthMix.of(trace.lengths, LENGTHS))
    exits = Exits(cuts=("a",), thresholds=(0.5,))
    priced = price_exits(trace, exits, costs, percentile=True)
    by_length = {
        length: NetworkCosts(itm=itm.at_length(length), cuts=("a", "end"), batch_size=4).plan_costs(("a",))
        for length in LENGTHS
    }
    again = evaluate_plan(trace, exits, LengthCosts(by_length=by_length), full_ms=costs.full_ms, percentile=True)
    assert priced.times == again.times
    assert priced.oracle_mean_ms < priced.times.mean_ms < priced.full_ms
    assert evaluate_exits(trace, exits).leaves_at.tolist() == [0, 0, 1, 1]
    # the trace's only batch of four holds the longest row
    stages = by_length[16]
    assert priced.recorded.batch_ms == pytest.approx(stages[0][4] + stages[1][2])
    whole = {
        length: NetworkCosts(itm=itm.at_length(length), cuts=("a", "end"), batch_size=4).full_ms for length in LENGTHS
    }
    shares = LengthMix.of(trace.lengths, LENGTHS).batch_shares(4)
    assert costs.full_ms == pytest.approx(np.dot(shares, list(whole.values())))
    assert costs.stay_ms(("a",)) > costs.full_ms


def test_a_matrix_with_other_rows_or_lengths_is_refused() -> None:
    matrix = make_matrix()
    assert matrix.lengths == LENGTHS
    assert matrix.at_length(4).row_ms("full") == pytest.approx(tuple(x / 4 for x in matrix.row_ms("full")))
    with pytest.raises(Exception, match="no length of the inference time matrix .*'5'|'5'"):
        matrix.at_length(5)
    wrong = {"4": LengthTimes(median_ms={"full": (1, 2, 3)}, spread_ms={"full": (0, 0, 0)})}
    with pytest.raises(InputError, match="length 4 names other rows"):
        InferenceTimeMatrix(
            backend="b", threads=1, batch_sizes=(1, 2, 4), median_ms=matrix.median_ms, spread_ms=matrix.spread_ms,
            fixed=False, environment={}, largest_length=16, shorter=wrong,
        )  # fmt: skip


def test_a_trace_keeps_the_lengths_of_the_samples_it_is_reduced_to() -> None:
    lengths = make_trace().select(np.array([3, 0])).lengths
    assert lengths is not None
    assert lengths.tolist() == [16, 2]
