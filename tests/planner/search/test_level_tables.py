"""Level tables against one evaluation per combination."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import Trace
from planner import evaluate_exits
from planner.search.level_tables import RankedTrace, make_table, spread_levels
from tests.planner.planning_worlds import make_trace, traces


@settings(max_examples=60, deadline=None)
@given(traces(max_exits=4, max_samples=25), st.data())
def test_every_combination_equals_its_own_evaluation(trace: Trace, data: st.DataObject) -> None:
    ranked = RankedTrace.of(trace)
    rows = [row for row in range(len(trace.exits)) if data.draw(st.booleans())]
    levels = [
        np.array(sorted(data.draw(st.sets(st.integers(0, len(ranked.values[row]) - 1), min_size=1, max_size=3))))
        for row in rows
    ]
    table = make_table(ranked, rows, levels)
    assert table.shape == tuple(map(len, levels))
    for cell in itertools.product(*(range(len(choices)) for choices in levels)):
        outcome = evaluate_exits(trace, ranked.choose(rows, table.at(cell)))
        lost = (trace.full_metric - outcome.metric) * trace.sample_count
        np.testing.assert_allclose(table.loss[cell], lost, atol=1e-5)
        for position, survivors in enumerate(table.survivors):
            entering = outcome.survival[position + 1] * trace.sample_count
            np.testing.assert_allclose(survivors[cell[: position + 1]], entering, atol=1e-6)


@given(traces(max_exits=3))
def test_ranks_stand_for_confidences(trace: Trace) -> None:
    ranked = RankedTrace.of(trace)
    for row in range(len(trace.exits)):
        np.testing.assert_array_equal(ranked.values[row][ranked.ranks[row]], trace.confidence[row])
        assert (np.diff(ranked.ranks[row][ranked.falling[row]]) <= 0).all()


def test_thresholds_between_confidences_become_the_next_rank() -> None:
    trace = make_trace(0, exits=1, samples=5)
    ranked = RankedTrace.of(trace)
    middle = float(ranked.values[0][1:3].mean())
    assert ranked.rank_levels([0], [middle]) == (2,)
    assert ranked.rank_levels([0], [float(ranked.values[0][-1])]) == (len(ranked.values[0]) - 1,)
    assert ranked.rank_levels([0], [2.0]) is None
    assert evaluate_exits(trace, ranked.choose([0], [2])).shares[0] == 3 / 5


@given(st.lists(st.integers(0, 400), min_size=1, max_size=400), st.integers(3, 50))
def test_spread_levels_ascend_and_reach_both_ends(values: list[int], count: int) -> None:
    ranks = np.unique(values, return_inverse=True)[1]
    levels = spread_levels(ranks, count)
    assert len(levels) <= count
    assert (np.diff(levels) > 0).all()
    assert (levels[0], levels[-1]) == (0, ranks.max())
    if ranks.max() < count:
        np.testing.assert_array_equal(levels, np.arange(ranks.max() + 1))
