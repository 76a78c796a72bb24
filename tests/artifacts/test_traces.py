"""The trace's helpers against plain Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import InputError, Reference, Trace, find_first_true


def test_the_first_true_row_of_each_column() -> None:
    flags = np.array([[True, False, False, True], [False, True, False, True]])
    assert find_first_true(flags).tolist() == [0, 1, 2, 0]
    assert find_first_true(np.empty((0, 3), np.bool_)).tolist() == [0, 0, 0]


@given(rows=st.integers(0, 5), columns=st.integers(0, 9), seed=st.integers(0, 99))
def test_it_is_what_a_loop_finds(rows: int, columns: int, seed: int) -> None:
    flags = np.random.default_rng(seed).random((rows, columns)) < 0.4
    expected = [next((row for row in range(rows) if flags[row, column]), rows) for column in range(columns)]
    assert find_first_true(flags).tolist() == expected


def test_a_trace_keeps_the_answers_of_the_network_that_tolerances_refer_to(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    agreement = (random.random((3, 6)) < 0.5).astype(np.float32)
    own = np.vstack([agreement[:2], np.ones((1, 6), np.float32)])
    reference = Reference(
        metric=np.ones(6, np.float32), agreement=agreement, predictions=np.arange(6, dtype=np.int32),
        counts=random.random((6, 2)),
    )  # fmt: skip
    trace = Trace(
        exits=("a", "b"), confidence=random.random((3, 6)).astype(np.float32), metric=own, agreement=own,
        labelled=False, reference=reference,
    )  # fmt: skip
    assert trace.full_metric == 1
    assert replace(trace, metric=agreement).labelled is False, "the agreement with the reference is a metric too"
    trace.save(tmp_path / "trace.npz")
    kept = Trace.load(tmp_path / "trace.npz").select(np.array([4, 1]))
    assert kept.reference is not None
    np.testing.assert_array_equal(kept.reference.agreement, agreement[:, [4, 1]])
    np.testing.assert_array_equal(kept.reference.predictions, [4, 1])
    np.testing.assert_array_equal(kept.reference.counts, reference.counts[[4, 1]])
    with pytest.raises(InputError, match="metric of the reference has shape"):
        replace(trace, reference=replace(reference, metric=np.ones(5, np.float32)))
    with pytest.raises(InputError, match="within"):
        replace(trace, reference=replace(reference, metric=np.full(6, 2, np.float32)))
