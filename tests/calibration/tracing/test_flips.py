"""Decisions that differ between two networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import InputError, Trace
from calibration.tracing.flips import count_flips

EXITS = ("a", "b")


def make_trace(confidence: np.ndarray, metric: np.ndarray | None = None) -> Trace:
    shape = confidence.shape
    metric = np.ones(shape, np.float32) if metric is None else metric
    agreement = np.ones(shape, np.bool_)
    return Trace(exits=EXITS, confidence=confidence.astype(np.float32), metric=metric, agreement=agreement)


def test_flips_by_hand() -> None:
    before = make_trace(np.array([[0.9, 0.4, 0.6], [0.9, 0.9, 0.2], [1, 1, 1]]))
    metric = np.ones((3, 3), np.float32)
    metric[1, 0] = 0
    after = make_trace(np.array([[0.9, 0.6, 0.6], [0.9, 0.9, 0.7], [1, 1, 0.9]]), metric)
    report = count_flips(before, after, {"a": 0.5, "b": 0.5})
    a, b, final = report.exits
    assert (a.decisions, a.metrics, b.decisions, b.metrics) == (1, 0, 1, 1)
    assert (final.exit, final.threshold, final.decisions) == ("final", None, None)
    assert a.confidence_change == pytest.approx(0.2)
    assert (b.metric_before, b.metric_after) == pytest.approx((1, 2 / 3))
    assert report.moved == 1  # the third sample leaves at a in both, whatever b says
    assert count_flips(before, after, {}).moved is None
    assert count_flips(before, after, {}).exits[0].decisions is None


def test_a_threshold_is_compared_in_float32() -> None:
    at = np.float32(0.7)
    before, after = make_trace(np.full((3, 1), at)), make_trace(np.full((3, 1), np.nextafter(at, np.float32(0))))
    assert count_flips(before, after, {"a": 0.7}).exits[0].decisions == 1


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_moved_samples_as_counted_one_by_one(seed: int, first: float, second: float) -> None:
    random = np.random.default_rng(seed)
    traces = [make_trace(random.integers(0, 5, (3, 12)) / 4) for _ in range(2)]

    def leave(trace: Trace, sample: int) -> str:
        for row, (name, threshold) in enumerate((("a", first), ("b", second))):
            if trace.confidence[row, sample] >= np.float32(threshold):
                return name
        return "final"

    report = count_flips(*traces, {"a": first, "b": second})
    assert report.moved == sum(leave(traces[0], sample) != leave(traces[1], sample) for sample in range(12))
    assert count_flips(traces[0], traces[0], {"a": first}).moved == 0


def test_what_does_not_belong_together_is_refused() -> None:
    one, two = make_trace(np.ones((3, 2))), make_trace(np.ones((3, 3)))
    with pytest.raises(InputError, match="do not belong together: 2 samples at a, b, and 3"):
        count_flips(one, two, {})
    with pytest.raises(InputError, match="the plan leaves at c"):
        count_flips(one, one, {"c": 0.5})


def test_traces_without_labels_are_compared_with_their_like() -> None:
    known = make_trace(np.full((3, 4), 0.5))
    blind = replace(known, labelled=False)
    assert count_flips(known, known, {}).labelled
    assert not count_flips(blind, blind, {}).labelled
    with pytest.raises(InputError, match="one of the traces has labels"):
        count_flips(known, blind, {})
