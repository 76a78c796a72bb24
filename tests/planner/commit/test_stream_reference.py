"""The counts that a live stream is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import Trace
from planner import Exits, evaluate_exits
from planner.commit.stream_reference import describe_reference
from runtime.monitor.stats import CONFIDENCE_BINS
from tests.planner.planning_worlds import traces


@given(traces(), st.data())
def test_the_reference_equals_a_loop_over_samples(trace: Trace, data: st.DataObject) -> None:
    cuts = tuple(cut for cut in trace.exits if data.draw(st.booleans()))
    chosen = Exits(cuts=cuts, thresholds=tuple(data.draw(st.sampled_from([0.0, 0.3, 0.55, 1.0])) for _ in cuts))
    reference = describe_reference(trace, chosen)
    outcome = evaluate_exits(trace, chosen)
    rows = [*(trace.exits.index(cut) for cut in cuts), -1]
    counts = np.zeros((len(rows), CONFIDENCE_BINS), int)
    agreements = [0] * len(rows)
    for sample, at in enumerate(outcome.leaves_at.tolist()):
        confidence = trace.confidence[rows[at], sample]
        counts[at, min(int(confidence * np.float32(CONFIDENCE_BINS)), CONFIDENCE_BINS - 1)] += 1
        agreements[at] += bool(trace.agreement[rows[at], sample])
    assert reference.samples == trace.sample_count
    assert reference.confidence_counts == tuple(tuple(row) for row in counts.tolist())
    assert reference.agreements == tuple(agreements)
    assert [sum(row) / trace.sample_count for row in reference.confidence_counts] == pytest.approx(outcome.shares)
