"""The host device against a naive reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import InputError, TensorSpec
from engines import HostDevice

DEVICE = HostDevice()
CONFIDENCES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, float("nan")]), min_size=0, max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    confidences=CONFIDENCES,
    padding=st.integers(0, 3),
    threshold=st.sampled_from([None, 0.0, 0.5, 0.75, 1.1]),
    wide=st.booleans(),
)
def test_split_rows_is_the_naive_split(
    confidences: list[float], padding: int, threshold: float | None, wide: bool
) -> None:
    count, rows = len(confidences), len(confidences) + padding
    rng = np.random.default_rng(count)
    confidence = np.array([*confidences, *[1.0] * padding], dtype=np.float32)
    answers: list[np.ndarray] = [rng.standard_normal((rows, 3)).astype(np.float32), np.arange(rows)]
    carried: list[np.ndarray] = [rng.standard_normal((rows, 700 if wide else 2)), rng.random((rows, 1, 2)) > 0.5]
    before = [buffer.copy() for buffer in (*answers, *carried)]

    departure = DEVICE.split_rows(count, confidence=confidence, threshold=threshold, answers=answers, carried=carried)

    left = [row for row in range(count) if threshold is None or confidences[row] >= threshold]
    stayed = [row for row in range(count) if row not in left]
    assert departure.left.tolist() == left
    assert departure.stayed.tolist() == stayed
    assert departure.left.dtype == departure.stayed.dtype == np.int64
    assert departure.confidence.dtype == np.float32
    np.testing.assert_array_equal(departure.confidence, confidence[left])
    for answer, was, now in zip(departure.answers, before, answers, strict=False):
        np.testing.assert_array_equal(answer, was[left])
        np.testing.assert_array_equal(now, was)
    for buffer, was in zip(carried, before[2:], strict=True):
        np.testing.assert_array_equal(buffer[: len(stayed)], was[stayed])
        assert buffer.dtype == was.dtype


def test_a_nan_confidence_never_leaves_unless_all_do() -> None:
    confidence = np.array([np.nan, 0.9], dtype=np.float32)
    for threshold, left in ((0.5, [1]), (-np.inf, [1]), (None, [0, 1])):
        departure = DEVICE.split_rows(2, confidence=confidence, threshold=threshold, answers=[], carried=[])
        assert departure.left.tolist() == left


def test_the_threshold_is_compared_in_float32() -> None:
    confidence = np.array([np.float32(0.9)])
    assert float(confidence[0]) < 0.9  # in float64 this row would stay
    departure = DEVICE.split_rows(1, confidence=confidence, threshold=0.9, answers=[], carried=[])
    assert departure.left.tolist() == [0]


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_answers_belong_to_the_caller(threshold: float | None) -> None:
    answer = DEVICE.allocate(TensorSpec(name="y", dtype="float32", row_shape=(2,)), 3)
    confidence = np.ones(3, dtype=np.float32)
    departure = DEVICE.split_rows(3, confidence=confidence, threshold=threshold, answers=[answer], carried=[])
    assert not np.shares_memory(departure.answers[0], answer)
    assert not np.shares_memory(departure.confidence, confidence)
    assert departure.answers[0].flags.owndata
    departure.answers[0][...] = 7
    assert not answer.any()


@pytest.mark.parametrize("threshold", [2.0, 0.5])
def test_nothing_moves_when_nobody_leaves_or_only_the_last_rows_do(threshold: float) -> None:
    carried = np.arange(8.0).reshape(4, 2)
    carried.setflags(write=False)  # any write raises
    confidence = np.array([0.1, 0.2, 0.3, 0.9], dtype=np.float32)
    departure = DEVICE.split_rows(4, confidence=confidence, threshold=threshold, answers=[], carried=[carried[:4]])
    assert departure.stayed.size == (4 if threshold == 2.0 else 3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
def test_buffers_are_zeroed_contiguous_and_aligned(dtype: str) -> None:
    buffer = DEVICE.allocate(TensorSpec(name="x", dtype=dtype, row_shape=(3, 5)), 7)
    assert buffer.shape == (7, 3, 5)
    assert buffer.dtype == dtype
    assert buffer.flags.c_contiguous
    assert buffer.flags.writeable
    assert buffer.ctypes.data % 64 == 0
    assert not buffer.any()
    assert DEVICE.allocate(TensorSpec(name="c", dtype=dtype, row_shape=()), 0).shape == (0,)


def test_upload_fills_the_first_rows() -> None:
    buffer = DEVICE.allocate(TensorSpec(name="x", dtype="float32", row_shape=(2,)), 3)
    DEVICE.upload(np.ones((2, 2), dtype=np.float32), buffer)
    assert buffer.tolist() == [[1, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize("array", [np.ones((2, 2)), np.ones((2, 3), np.float32), np.ones((4, 2), np.float32)])
def test_upload_refuses_what_does_not_fit(array: np.ndarray) -> None:
    buffer = DEVICE.allocate(TensorSpec(name="x", dtype="float32", row_shape=(2,)), 3)
    with pytest.raises(InputError, match="cannot upload"):
        DEVICE.upload(array, buffer)


def test_counts_out_of_range_are_refused() -> None:
    confidence = np.ones(3, dtype=np.float32)
    for count in (-1, 4):
        with pytest.raises(InputError, match="a buffer has 3"):
            DEVICE.split_rows(count, confidence=confidence, threshold=0.5, answers=[], carried=[])
    with pytest.raises(InputError, match="from 0"):
        DEVICE.allocate(TensorSpec(name="x", dtype="float32", row_shape=()), -1)


def test_close_may_be_called_twice() -> None:
    device = HostDevice()
    device.close()
    device.close()
    assert device.name == "cpu"
