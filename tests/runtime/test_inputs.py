"""Inputs that are refused, each with the message that says the fix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from artifacts import InputError, TensorSpec, UsageError
from engines import HostDevice
from runtime.inputs import read_batch

HOST = HostDevice()

IMAGE = TensorSpec(name="image", dtype="float32", row_shape=(1, 2, 2))
TOKENS = TensorSpec(name="tokens", dtype="int64", row_shape=(3,))
MASK = TensorSpec(name="mask", dtype="bool", row_shape=(3,))
GOOD = np.zeros((4, 1, 2, 2), np.float32)


def with_bad_rows(*rows: int) -> np.ndarray:
    batch = np.zeros((9, 1, 2, 2), np.float32)
    for row in rows:
        batch[row, 0, 1, 1] = np.inf if row % 2 else np.nan
    return batch


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((4, 2, 2), np.float32), r"expected shape \(B, 1, 2, 2\), got \(4, 2, 2\)"),
        (np.zeros((1, 2, 2), np.float32), r"got \(1, 2, 2\).*single query.*row\[None\]"),
        (np.zeros((4, 1, 2, 3), np.float32), r"got \(4, 1, 2, 3\)"),
        (np.zeros((), np.float32), r"'image': expected shape \(B, 1, 2, 2\), got \(\)"),
        (GOOD.astype(np.float64), r"expected float32, got float64\. Convert it with \.astype\(np\.float32\)"),
        (GOOD.astype(">f4"), r"expected float32, got >f4"),
        (GOOD.astype(np.uint8), r"expected float32, got uint8"),
        (GOOD[:0], r"batch is empty"),
        (with_bad_rows(2), r"1 of 9 rows hold NaN or infinity \(rows 2\).*check_finite=False"),
        (with_bad_rows(1, 5), r"2 of 9 rows .* \(rows 1, 5\)"),
        (with_bad_rows(*range(1, 9)), r"8 of 9 rows .* \(rows 1, 2, 3, 4, 5, \.\.\.\)"),
        (None, r"a batch is a numpy array, got NoneType"),
        (1.5, r"a batch is a numpy array, got float"),
        ("abc", r"a batch is a numpy array, got str"),
        ([[1.0, 2.0]], r"'image': expected a numpy array \(B, 1, 2, 2\), got list.*np\.asarray"),
        (list(GOOD), r"takes 1 input.*got a list of 4.*np\.stack\(rows\)"),
        ({}, r"lacks the inputs \['image'\]"),
        ({"image": None}, r"expected a numpy array .*, got NoneType"),
    ],
)
def test_one_input(batch: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_batch(batch, [IMAGE], HOST)


def test_an_unknown_input_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'image'"):
        read_batch({"imege": GOOD}, [IMAGE], HOST)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((2, 3), np.int64), r"takes 2 inputs \('tokens', 'mask'\), got one array"),
        ((np.zeros((2, 3), np.int64),), r"takes 2 input\(s\).*got a tuple of 1"),
        (
            (np.zeros((2, 3), np.int64), np.zeros((3, 3), np.bool_)),
            r"different numbers of rows: 2 of 'tokens', 3 of 'mask'",
        ),
        ({"tokens": np.zeros((2, 3), np.int64)}, r"lacks the inputs \['mask'\]"),
        ((np.zeros((2, 3), np.int32), np.zeros((2, 3), np.bool_)), r"'tokens': expected int64.*astype\(np\.int64\)"),
    ],
)
def test_several_inputs(batch: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_batch(batch, [TOKENS, MASK], HOST)


def test_a_row_may_be_a_single_number() -> None:
    scalar = TensorSpec(name="level", dtype="float32", row_shape=())
    assert read_batch(np.zeros(3, np.float32), [scalar], HOST)[0].shape == (3,)
    with pytest.raises(InputError, match=r"1 of 3 rows .* \(rows 1\)"):
        read_batch(np.array([0, np.nan, 0], np.float32), [scalar], HOST)
    with pytest.raises(InputError, match=r"expected shape \(B,\), got \(\)\. For a single query"):
        read_batch(np.zeros((), np.float32), [scalar], HOST)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("rows", [9, 9000])
def test_every_value_that_is_not_finite_is_found_and_no_other(dtype: str, rows: int) -> None:
    spec = TensorSpec(name="x", dtype=dtype, row_shape=(2,))
    huge = np.full((rows, 2), np.finfo(dtype).max, dtype)
    huge[::2] *= -1
    assert read_batch(huge, [spec], HOST)[0] is huge, "squares and sums overflow, and yet all is finite"
    for value in (np.nan, np.inf, -np.inf):
        batch = np.zeros((rows, 2), dtype)
        batch[3, 1] = value
        for wrong in (batch, batch[::-1][::-1], np.asfortranarray(batch)):
            with pytest.raises(InputError, match=rf"1 of {rows} rows hold NaN or infinity \(rows 3\)"):
                read_batch(wrong, [spec], HOST)


def test_finite_checks_can_be_switched_off_and_nothing_is_copied() -> None:
    batch = with_bad_rows(0)
    assert read_batch(batch, [IMAGE], HOST, check_finite=False)[0] is batch
    assert read_batch({"image": GOOD}, [IMAGE], HOST)[0] is GOOD


def test_the_runtime_checks_before_it_runs(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), masked=False)
    with net.open() as runtime:
        for call in (runtime.run, runtime.stream):
            with pytest.raises(InputError, match="expected float32, got float64"):
                call(np.zeros((2, 3)))
            with pytest.raises(InputError, match="NaN"):
                call(np.full((2, 3), np.nan, np.float32))
            with pytest.raises(InputError, match=r"1 of 50 rows .* \(rows 49\)"):  # in the last of several parts
                call(np.concatenate([np.zeros((49, 3), np.float32), np.full((1, 3), np.inf, np.float32)]))
    assert all(fake.batches == [] for fake in net.fakes)
