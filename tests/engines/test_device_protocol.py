"""The ``Device`` protocol: the processor, and a GPU where there is one, through the same tests.

The host is the reference; ``test_host_device`` compares it with a naive one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts import InputError, TensorSpec, UsageError
from engines import Device, DeviceOptions, HostDevice, open_device

HOST = HostDevice()
CONFIDENCE = TensorSpec(name="confidence", dtype="float32", row_shape=())
TENSORS = (
    TensorSpec(name="features", dtype="float32", row_shape=(3, 5)),
    TensorSpec(name="mask", dtype="bool", row_shape=(3,)),
    TensorSpec(name="half", dtype="float16", row_shape=(8,)),
    TensorSpec(name="number", dtype="int64", row_shape=()),
    TensorSpec(name="long", dtype="float32", row_shape=(20_000,)),
    TensorSpec(name="nothing", dtype="float32", row_shape=(0,)),
)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = open_device("onnxruntime" if request.param == "cpu" else "onnxruntime-cuda")
    yield opened
    opened.close()


def random_rows(spec: TensorSpec, rows: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(-100, 100, (rows, *spec.row_shape))
    return (values % 2 == 0) if spec.dtype == "bool" else values.astype(spec.dtype)


def fill(device: Device, spec: TensorSpec, array: np.ndarray) -> object:
    buffer = device.allocate(spec, len(array))
    device.upload(array, buffer)
    return buffer


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    confidences=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, float("nan")]), max_size=12),
    padding=st.integers(0, 3),
    threshold=st.sampled_from([-math.inf, 0.0, 0.5, 0.75, 1.125, math.inf]),
    tensors=st.sets(st.sampled_from(TENSORS), max_size=3),
)
def test_rows_leave_and_the_others_close_ranks(
    device: Device, confidences: list[float], padding: int, threshold: float, tensors: set[TensorSpec]
) -> None:
    check_split(device, confidences, padding, threshold, sorted(tensors, key=lambda spec: spec.name))


def check_split(
    device: Device, confidences: list[float], padding: int, threshold: float, tensors: list[TensorSpec]
) -> None:
    count, rows = len(confidences), len(confidences) + padding
    confidence = np.array([*confidences, *[1.0] * padding], dtype=np.float32)
    arrays = [random_rows(spec, rows, seed) for seed, spec in enumerate(tensors)]
    expected = [array.copy() for array in arrays]
    reference = HOST.split_rows(count, confidence=confidence, threshold=threshold, carried=expected)
    carried = [fill(device, spec, array) for spec, array in zip(tensors, arrays, strict=True)]
    decision = fill(device, CONFIDENCE, confidence)
    departure = device.split_rows(count, confidence=decision, threshold=threshold, carried=carried)
    assert departure == reference
    for buffer, values in zip(carried, expected, strict=True):
        np.testing.assert_array_equal(device.download(buffer, range(rows)), values)
    np.testing.assert_array_equal(device.download(decision, range(rows)), confidence)


@pytest.mark.parametrize("count", [255, 256, 257, 700])
def test_more_rows_than_threads(device: Device, count: int) -> None:
    confidences = np.random.default_rng(count).random(count).tolist()
    check_split(device, confidences, 1, 0.3, [TENSORS[1]])


def test_more_tensors_than_one_launch_takes(device: Device) -> None:
    check_split(device, [1.0, 0.0, 1.0, 0.0, 0.0], 0, 0.5, [TENSORS[index % 4] for index in range(40)])


def test_the_same_buffers_are_split_again_and_again(device: Device) -> None:
    spec = TENSORS[0]
    rows = random_rows(spec, 8)
    carried, decision = fill(device, spec, rows), device.allocate(CONFIDENCE, 8)
    left: list[int] = []
    alive = list(range(8))
    while alive:
        device.upload(np.array([row % 3 == len(left) % 3 for row in alive], dtype=np.float32), decision)
        departure = device.split_rows(len(alive), confidence=decision, threshold=0.5, carried=[carried])
        if not departure.left:
            break
        left += [alive[row] for row in departure.left]
        alive = [alive[row] for row in departure.stayed]
        if alive:
            np.testing.assert_array_equal(device.download(carried, range(len(alive))), rows[alive])
    assert sorted([*left, *alive]) == list(range(8))


def test_views_are_split_where_they_are(device: Device) -> None:
    spec = TENSORS[0]
    rows = random_rows(spec, 9)
    buffer = fill(device, spec, rows)
    decision = fill(device, CONFIDENCE, np.array([9, 9, 9, 1, 0, 1, 0, 9, 9], dtype=np.float32))
    departure = device.split_rows(4, confidence=decision[3:7], threshold=0.5, carried=[buffer[3:7]])
    assert (departure.left, departure.stayed) == ([0, 2], [3, 1])
    np.testing.assert_array_equal(device.download(buffer, range(9)), rows[[0, 1, 2, 6, 4, 5, 6, 7, 8]])


@pytest.mark.parametrize("spec", TENSORS, ids=lambda spec: spec.name)
def test_rows_come_down_in_the_requested_order(device: Device, spec: TensorSpec) -> None:
    rows = random_rows(spec, 7)
    buffer = fill(device, spec, rows)
    for order in ([6, 0, 3], [], [2, 2], range(7), range(2, 5)):
        taken = device.download(buffer, order)
        np.testing.assert_array_equal(taken, rows[list(order)])
        assert taken.dtype == spec.dtype
        assert taken.flags.owndata
        assert taken.flags.writeable


def test_several_buffers_come_down_at_once(device: Device) -> None:
    arrays = [random_rows(TENSORS[index % len(TENSORS)], 6, index) for index in range(20)]
    buffers = [fill(device, TENSORS[index % len(TENSORS)], array) for index, array in enumerate(arrays)]
    for taken, array in zip(device.download_all(buffers, [5, 1]), arrays, strict=True):
        np.testing.assert_array_equal(taken, array[[5, 1]])
    for taken, array in zip(device.take(buffers, [0, 4]), arrays, strict=True):
        np.testing.assert_array_equal(device.download(taken, range(2)), array[[0, 4]])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), tensors=st.sets(st.sampled_from(TENSORS), min_size=1, max_size=3))
def test_rows_of_several_batches_are_joined(device: Device, data: st.DataObject, tensors: set[TensorSpec]) -> None:
    specs = sorted(tensors, key=lambda spec: spec.name)
    target = [device.allocate(spec, 12) for spec in specs]
    expected = [np.zeros((12, *spec.row_shape), spec.dtype) for spec in specs]
    for seed in range(data.draw(st.integers(0, 3), label="batches")):
        arrays = [random_rows(spec, 6, seed) for spec in specs]
        source = [fill(device, spec, array) for spec, array in zip(specs, arrays, strict=True)]
        rows = data.draw(st.lists(st.integers(0, 5), max_size=6) | st.just(range(2, 5)), label="rows")
        offset = data.draw(st.integers(0, 12 - len(rows)), label="offset")
        device.append_rows(source, rows, target, offset)
        for goal, array in zip(expected, arrays, strict=True):
            for place, row in enumerate(rows):
                goal[offset + place] = array[row]
        for buffer, array in zip(source, arrays, strict=True):
            np.testing.assert_array_equal(device.download(buffer, range(6)), array)
    for buffer, values in zip(target, expected, strict=True):
        np.testing.assert_array_equal(device.download(buffer, range(12)), values)


def test_joined_rows_go_to_a_view_where_it_is(device: Device) -> None:
    rows = random_rows(TENSORS[0], 4)
    target = device.allocate(TENSORS[0], 6)
    device.append_rows([fill(device, TENSORS[0], rows)[1:]], [2, 0], [target[2:5]], 1)
    found = device.download(target, range(6))
    np.testing.assert_array_equal(found[3:5], rows[[3, 1]])
    assert not found[[0, 1, 2, 5]].any()


def test_rows_that_cannot_be_joined_are_refused(device: Device) -> None:
    source, target = [device.allocate(TENSORS[0], 4)], [device.allocate(TENSORS[0], 6)]
    for rows, offset, message in (
        ([4], 0, r"rows \[4\] of a buffer with 4"),
        ([-1], 0, r"rows \[-1\] of a buffer with 4"),
        ([0, 1], 5, "2 rows from row 5 on: the target has 6"),
        ([0], -1, "from row -1 on"),
    ):
        with pytest.raises(InputError, match=message):
            device.append_rows(source, rows, target, offset)
    with pytest.raises(InputError, match="dtype and row shape must be equal"):
        device.append_rows(source, [0], [device.allocate(TENSORS[2], 6)], 0)
    with pytest.raises(InputError, match="one target per source"):
        device.append_rows(source, [0], [], 0)
    assert not device.download(target[0], range(6)).any()


def test_many_rows_come_down(device: Device) -> None:
    rows = random_rows(TENSORS[1], 1300)
    order = np.random.default_rng(1).permutation(1300).tolist()
    np.testing.assert_array_equal(device.download(fill(device, TENSORS[1], rows), order), rows[order])


def test_taken_rows_belong_to_the_caller(device: Device) -> None:
    buffer = fill(device, TENSORS[0], random_rows(TENSORS[0], 4))
    before = device.download(buffer, range(4))
    (taken,) = device.take([buffer], [1, 2])
    device.upload(random_rows(TENSORS[0], 4, seed=9), buffer)
    np.testing.assert_array_equal(device.download(taken, range(2)), before[1:3])


def test_an_upload_may_be_changed_at_once(device: Device) -> None:
    spec = TENSORS[0]
    array, buffers = random_rows(spec, 4), [device.allocate(spec, 4) for _ in range(6)]
    expected = []
    for number, buffer in enumerate(buffers):
        array[...] = number
        expected.append(array.copy())
        device.upload(array, buffer)
    array[...] = -1
    for buffer, values in zip(buffers, expected, strict=True):
        np.testing.assert_array_equal(device.download(buffer, range(4)), values)


def test_buffers_begin_with_zeros_and_any_memory_layout_goes_up(device: Device) -> None:
    spec = TENSORS[0]
    buffer = device.allocate(spec, 5)
    assert not device.download(buffer, range(5)).any()
    assert len(buffer) == 5
    turned = np.asfortranarray(random_rows(spec, 3))
    device.upload(turned, buffer)
    np.testing.assert_array_equal(device.download(buffer, range(3)), turned)
    assert not device.download(buffer, [3, 4]).any()


@pytest.mark.parametrize("array", [np.ones((2, 2)), np.ones((2, 3), np.float32), np.ones((4, 2), np.float32)])
def test_upload_refuses_what_does_not_fit(device: Device, array: np.ndarray) -> None:
    buffer = device.allocate(TensorSpec(name="x", dtype="float32", row_shape=(2,)), 3)
    with pytest.raises(InputError, match="cannot upload"):
        device.upload(array, buffer)


def test_numbers_out_of_range_are_refused(device: Device) -> None:
    decision = fill(device, CONFIDENCE, np.ones(3, dtype=np.float32))
    for count in (-1, 4):
        with pytest.raises(InputError, match="a buffer has 3"):
            device.split_rows(count, confidence=decision, threshold=0.5, carried=[])
    for rows in ([3], [0, 5]):
        with pytest.raises(InputError, match="a buffer with 3"):
            device.download(decision, rows)
    with pytest.raises(InputError, match="at least 0"):
        device.allocate(CONFIDENCE, -1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_that_are_not_finite_are_found(device: Device, dtype: str) -> None:
    spec = TensorSpec(name="x", dtype=dtype, row_shape=(300,))
    rows = np.full((6, 300), np.finfo(dtype).max, dtype)
    rows[1, 299], rows[3, 0], rows[4, 150], rows[5, 5] = np.nan, np.inf, -np.inf, -0.0
    assert device.find_nonfinite(fill(device, spec, rows)) == [1, 3, 4]
    assert device.find_nonfinite(rows) == [1, 3, 4]


@pytest.mark.parametrize("rows", [1, 7, 13])
def test_large_arrays_arrive_whole_and_are_searched_whole(device: Device, rows: int) -> None:
    """A GPU's device reads them in pieces, by several threads."""
    spec = TensorSpec(name="x", dtype="float32", row_shape=(3_000_000 // rows,))
    array = random_rows(spec, rows)
    buffer = device.allocate(spec, rows + 1)
    device.upload(array, buffer)
    wanted = array.copy()
    array[:] = np.nan  # may be changed at once
    np.testing.assert_array_equal(device.download(buffer, range(rows)), wanted)
    assert device.find_nonfinite(wanted) == []
    wanted[rows // 2, -1] = wanted[-1, 0] = np.inf
    assert device.find_nonfinite(wanted) == sorted({rows // 2, rows - 1})


def test_copies_are_independent(device: Device) -> None:
    spec = TENSORS[0]
    rows = random_rows(spec, 3)
    buffer = fill(device, spec, rows)
    copy = device.copy(buffer)
    device.upload(rows + 1, buffer)
    np.testing.assert_array_equal(device.download(copy, range(3)), rows)
    assert isinstance(device.copy(rows), np.ndarray)


def test_time_goes_forward(device: Device) -> None:
    marks = [device.mark() for _ in range(4)]
    assert device.seconds_between(marks[0], marks[1]) >= 0
    assert device.seconds_between(marks[2], marks[3]) >= 0
    device.synchronize()


def test_several_threads_use_buffers_of_their_own(device: Device) -> None:
    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(4):
            check_split(device, rng.random(6).tolist(), 1, 0.5, [TENSORS[0], TENSORS[1]])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("onnxruntime-cuda", marks=pytest.mark.gpu)])
def test_a_device_closes_twice(backend: str) -> None:
    device = open_device(backend)
    device.allocate(TENSORS[0], 2)
    device.close()
    device.close()


def test_the_processor_is_one() -> None:
    with pytest.raises(UsageError, match="device=1: engines of onnxruntime run on the processor"):
        open_device("onnxruntime", DeviceOptions(index=1))
