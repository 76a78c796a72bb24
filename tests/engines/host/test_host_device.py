"""The host device against a naive reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import InputError, TensorSpec
from engines import HostDevice
from engines.host.host_device import close_ranks

DEVICE = HostDevice()
CONFIDENCES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, float("nan")]), min_size=0, max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    confidences=CONFIDENCES,
    padding=st.integers(0, 3),
    threshold=st.sampled_from([-math.inf, 0.0, 0.5, 0.75, 1.125]),
    wide=st.booleans(),
)
def test_split_rows_is_the_naive_split(confidences: list[float], padding: int, threshold: float, wide: bool) -> None:
    count, rows = len(confidences), len(confidences) + padding
    rng = np.random.default_rng(count)
    confidence = np.array([*confidences, *[1.0] * padding], dtype=np.float32)
    carried: list[np.ndarray] = [rng.standard_normal((rows, 700 if wide else 2)), rng.random((rows, 1, 2)) > 0.5]
    before = [buffer.copy() for buffer in carried]

    departure = DEVICE.split_rows(count, confidence=confidence, threshold=threshold, carried=carried)

    left = [row for row in range(count) if confidences[row] >= threshold]
    stayed = [row for row in range(count) if row not in left]
    assert departure.left == left
    assert sorted(departure.stayed) == stayed
    moved = sum(now != was for now, was in enumerate(departure.stayed))
    assert moved == sum(row < len(stayed) for row in left)
    for buffer, was in zip(carried, before, strict=True):
        np.testing.assert_array_equal(buffer[: len(stayed)], was[departure.stayed])
        assert buffer.dtype == was.dtype


@settings(max_examples=300, deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_closed_ranks_are_the_naive_ones(leaves: list[bool]) -> None:
    left = [row for row, leaving in enumerate(leaves) if leaving]
    survivors = [row for row, leaving in enumerate(leaves) if not leaving]
    stayed, movers, holes = close_ranks(left, survivors)
    behind = iter(row for row in survivors if row >= len(survivors))
    assert stayed == [row if row in survivors else next(behind) for row in range(len(survivors))]
    assert next(behind, None) is None
    assert holes == [row for row in left if row < len(survivors)]
    assert movers == [stayed[hole] for hole in holes]


def test_a_nan_confidence_never_leaves() -> None:
    confidence = np.array([np.nan, 0.9], dtype=np.float32)
    for threshold in (0.5, -np.inf):
        departure = DEVICE.split_rows(2, confidence=confidence, threshold=threshold, carried=[])
        assert departure.left == [1]


def test_downloaded_rows_come_in_the_requested_order_and_belong_to_the_caller() -> None:
    answer = DEVICE.allocate(TensorSpec(name="y", dtype="float32", row_shape=(2,)), 3)
    answer[...] = np.arange(6).reshape(3, 2)
    rows = DEVICE.download(answer, [2, 0])
    assert rows.tolist() == [[4, 5], [0, 1]]
    assert rows.flags.owndata
    rows[...] = 7
    assert answer.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert DEVICE.download(answer, range(3)).shape == (3, 2)
    with pytest.raises(InputError, match="a buffer with 3"):
        DEVICE.download(answer, [3])


@pytest.mark.parametrize("threshold", [2.0, 0.5])
def test_no_row_moves_when_none_leaves_or_only_the_last_rows_do(threshold: float) -> None:
    carried = np.arange(8.0).reshape(4, 2)
    carried.setflags(write=False)  # any write raises
    confidence = np.array([0.1, 0.2, 0.3, 0.9], dtype=np.float32)
    departure = DEVICE.split_rows(4, confidence=confidence, threshold=threshold, carried=[carried[:4]])
    assert departure.stayed == list(range(4 if threshold == 2.0 else 3))


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
            DEVICE.split_rows(count, confidence=confidence, threshold=0.5, carried=[])
    with pytest.raises(InputError, match="at least 0"):
        DEVICE.allocate(TensorSpec(name="x", dtype="float32", row_shape=()), -1)


def test_close_may_be_called_twice() -> None:
    device = HostDevice()
    device.close()
    device.close()
    assert device.name == "cpu"
