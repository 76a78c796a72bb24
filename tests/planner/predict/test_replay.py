"""Replay of exits on a trace: where samples leave, in float32, and the outcome."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import InputError, Trace, UsageError
from planner import NO_EXITS, Exits, evaluate_exits, evaluate_oracle, evaluate_plan
from tests.planner.planning_worlds import make_costs, make_trace, traces


@given(traces(), st.data())
def test_outcome_equals_a_loop_over_samples(trace: Trace, data: st.DataObject) -> None:
    cuts = tuple(cut for cut in trace.exits if data.draw(st.booleans()))
    thresholds = tuple(data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.55, 1.0])) for _ in cuts)
    outcome = evaluate_exits(trace, Exits(cuts=cuts, thresholds=thresholds))
    rows = [*(trace.exits.index(cut) for cut in cuts), len(trace.exits)]
    total = 0.0
    for sample in range(trace.sample_count):
        for at, row in enumerate(rows):
            if at == len(cuts) or trace.confidence[row, sample] >= np.float32(thresholds[at]):
                assert outcome.leaves_at[sample] == at
                total += float(trace.metric[row, sample])
                break
    assert outcome.metric == pytest.approx(total / trace.sample_count)
    assert sum(outcome.shares) == pytest.approx(1)
    assert outcome.survival[0] == 1
    np.testing.assert_allclose(outcome.survival, 1 - np.cumsum([0, *outcome.shares[:-1]]), atol=1e-12)
    kept = sum(share * metric for share, metric in zip(outcome.shares, outcome.metrics, strict=True) if metric)
    assert kept == pytest.approx(outcome.metric)


def test_thresholds_compare_as_float32() -> None:
    """0.1 in float64 is below float32(0.1): a sample exactly at the threshold must leave all the same."""
    confidence = np.array([[0.1, np.nextafter(np.float32(0.1), np.float32(0))], [1, 1]], np.float32)
    right, agrees = np.ones((2, 2), np.float32), np.ones((2, 2), bool)
    trace = Trace(exits=("a",), confidence=confidence, metric=right, agreement=agrees)
    chosen = Exits(cuts=("a",), thresholds=(0.1,))
    assert evaluate_exits(trace, chosen).leaves_at.tolist() == [0, 1]
    assert chosen.thresholds[0] == float(np.float32(0.1)) != 0.1


def test_no_exits_is_the_full_network() -> None:
    trace = make_trace(0)
    outcome = evaluate_exits(trace, NO_EXITS)
    assert outcome.metric == pytest.approx(trace.full_metric)
    assert (outcome.shares, outcome.survival) == ((1.0,), (1.0,))


def test_oracle_leaves_at_the_first_exit_that_agrees() -> None:
    trace = make_trace(4)
    found = evaluate_oracle(trace, Exits(cuts=("cut0", "cut2"), thresholds=(1.0, 1.0))).leaves_at
    for sample, at in enumerate(found):
        agrees = [trace.agreement[row, sample] for row in (0, 2)]
        assert at == (agrees.index(True) if True in agrees else 2)


def test_oracle_is_faster_than_a_plan_that_no_sample_leaves() -> None:
    trace, costs = make_trace(4), make_costs(4, head=0.01)
    priced = evaluate_plan(
        trace, Exits(cuts=("cut0",), thresholds=(1.0,)), costs.plan_costs(("cut0",)), full_ms=costs.full_ms
    )
    assert priced.oracle_mean_ms < priced.times.mean_ms
    planned = priced.planned_exits()
    assert [exit_.cut for exit_ in planned] == ["cut0"]
    assert planned[0].arrival_ms == priced.times.arrival_ms[0]
    assert priced.predicted_latency().full_ms == costs.full_ms


def test_unknown_and_disordered_exits_are_refused() -> None:
    trace = make_trace(0)
    with pytest.raises(UsageError, match="Did you mean 'cut1'"):
        evaluate_exits(trace, Exits(cuts=("cut11",), thresholds=(0.5,)))
    with pytest.raises(InputError, match="data flow"):
        evaluate_exits(trace, Exits(cuts=("cut1", "cut0"), thresholds=(0.5, 0.5)))
    with pytest.raises(InputError, match="belong together"):
        Exits(cuts=("cut1",), thresholds=())
