"""Tensors of the protocol as bytes and JSON, there and back; wrong and hostile bytes; compression; classification."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from artifacts import InputError, PameError, RefusedError
from runtime.oip.calls import InferAnswer, OutputTensor
from runtime.oip.classification import classify
from runtime.oip.compression import choose_encoding, compress, decompress
from runtime.oip.datatypes import BYTES, NUMPY_NAMES, bytes_array, check_shape, datatype_of, from_binary, to_binary
from runtime.oip.http_codec import format_answer, parse_call
from runtime.oip.json_tensors import from_json, to_json

pytest.importorskip("orjson", reason="reads JSON: pip install 'pame[serve]'")

LIMIT = 1 << 20


def any_tensor(*, finite: bool = False) -> st.SearchStrategy[tuple[str, np.ndarray]]:
    shapes = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)

    def strings(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
        count = math.prod(shape)
        items = st.lists(st.binary(max_size=9), min_size=count, max_size=count)
        return items.map(lambda found: bytes_array(found, shape))

    def of(datatype: str) -> st.SearchStrategy[tuple[str, np.ndarray]]:
        if datatype == BYTES:
            return st.tuples(st.just(datatype), shapes.flatmap(strings))
        bounded = finite and datatype.startswith("FP")
        elements = {"allow_nan": False, "allow_infinity": False} if bounded else None
        return st.tuples(st.just(datatype), arrays(NUMPY_NAMES[datatype], shapes, elements=elements))

    return st.sampled_from([*NUMPY_NAMES, BYTES]).flatmap(of)


@given(any_tensor())
def test_binary_there_and_back(tensor: tuple[str, np.ndarray]) -> None:
    datatype, array = tensor
    found = from_binary("t", datatype, array.shape, memoryview(bytes(to_binary(array))))
    np.testing.assert_array_equal(found, array)
    assert found.shape == array.shape
    if datatype != BYTES:
        assert datatype_of(str(array.dtype)) == datatype


@given(any_tensor(finite=True), st.booleans())
def test_json_there_and_back(tensor: tuple[str, np.ndarray], nested: bool) -> None:
    import orjson

    datatype, array = tensor
    if datatype == BYTES:
        array = bytes_array([item.hex().encode() for item in array.flat], array.shape)
    if nested and datatype != BYTES and array.ndim:
        text = json.dumps(array.tolist()).encode()
    else:
        text = orjson.dumps(to_json(array), option=orjson.OPT_SERIALIZE_NUMPY)
    np.testing.assert_array_equal(from_json("t", datatype, array.shape, orjson.loads(text)), array)


@given(st.sampled_from([*NUMPY_NAMES, BYTES]), st.lists(st.integers(-1, 1 << 50), max_size=4), st.binary(max_size=64))
def test_whatever_a_shape_claims_no_more_is_taken_than_the_bytes_that_are_there(
    datatype: str, shape: list[int], data: bytes
) -> None:
    tracemalloc.start()
    try:
        found = from_binary("t", datatype, check_shape("t", shape), memoryview(data))
    except InputError:
        found = None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    assert found is None or found.size <= len(data)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "classification", "timeout", "priority",
                     "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"]),
    PLAIN | st.integers(0, 40), max_size=3,
)  # fmt: skip
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y"]) | PLAIN,
        "datatype": st.sampled_from([*NUMPY_NAMES, BYTES]) | PLAIN,
        "shape": st.lists(st.integers(0, 5), max_size=3) | PLAIN,
        "data": PLAIN | st.lists(st.integers(0, 300) | st.floats() | st.text(max_size=3), max_size=8),
        "parameters": PARAMETERS | PLAIN,
    },
)
HEAD = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=3) | PLAIN},
    optional={"id": PLAIN, "outputs": st.lists(TENSOR, max_size=3) | PLAIN, "parameters": PARAMETERS | PLAIN},
)
BODY = st.tuples(HEAD.map(lambda head: json.dumps(head, allow_nan=True).encode()), st.binary(max_size=60))


def parse(body: bytes, stated: str | None) -> Any:
    """Reads everything of a call, as the server does; an error is ours or none."""
    try:
        call = parse_call(body, stated, json_limit=LIMIT, regions=None)
        return (
            call.timeout_ms,
            call.priority,
            [tensor.values.sum() for tensor in call.inputs if tensor.datatype != BYTES],
        )
    except PameError:
        return None


@given(BODY, st.none() | st.integers(-3, 3).map(str) | st.text(max_size=4))
def test_hostile_bodies_are_errors_of_ours(body: tuple[bytes, bytes], stated: str | None) -> None:
    head, blob = body
    with np.errstate(all="ignore"):
        parse(head + blob, str(len(head)) if stated is None else stated)
        parse(head, None)


@given(BODY, st.data())
def test_damaged_bodies_are_errors_of_ours(body: tuple[bytes, bytes], data: st.DataObject) -> None:
    whole = bytearray(body[0] + body[1])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    with np.errstate(all="ignore"):
        parse(bytes(whole[:cut]), data.draw(st.none() | st.just(str(len(body[0])))))


def test_a_long_string_among_numbers_does_not_make_all_values_as_long() -> None:
    data = ["x" * 100_000, *([1] * 10_000)]
    tracemalloc.start()
    with pytest.raises(InputError, match="got str"):
        from_json("t", "FP32", (10_001,), data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("UINT8", [300]),
        ("INT8", [-129]),
        ("INT64", [1.0]),
        ("UINT64", [-1]),
        ("BOOL", [1]),
        ("FP32", ["1"]),
        ("FP32", [True]),
    ],
)
def test_values_are_not_bent_to_a_type(datatype: str, data: list[Any]) -> None:
    with pytest.raises(InputError, match="expected|outside"):
        from_json("t", datatype, (1,), data)


def test_a_bool_is_0_or_1() -> None:
    with pytest.raises(InputError, match="0 or 1"):
        from_binary("t", "BOOL", (2,), memoryview(b"\x01\x02"))


def test_strings_must_fill_their_bytes() -> None:
    whole = bytes(to_binary(bytes_array([b"ab", b""], (2,))))
    assert from_binary("t", BYTES, (2,), memoryview(whole)).tolist() == [b"ab", b""]
    for wrong in (whole[:-1], whole + b"\0", b"\xff" * 4 + whole[4:], whole[:3]):
        with pytest.raises(InputError, match="string|left"):
            from_binary("t", BYTES, (2,), memoryview(wrong))


def test_an_answer_of_both_kinds() -> None:
    binary = OutputTensor("b", "INT64", np.arange(3), binary=True)
    listed = OutputTensor("j", "FP32", np.float32([[0.1], [2]]), binary=False)
    parts, length = format_answer(InferAnswer("m", "1", "7", [binary, listed], {"last": True}))
    body = b"".join(parts)
    assert length is not None
    assert json.loads(body[:length]) == {
        "id": "7", "model_name": "m", "model_version": "1", "parameters": {"last": True},
        "outputs": [
            {"name": "b", "datatype": "INT64", "shape": [3], "parameters": {"binary_data_size": 24}},
            {"name": "j", "datatype": "FP32", "shape": [2, 1], "data": [0.1, 2.0]},
        ],
    }  # fmt: skip
    assert body[length:] == np.arange(3).tobytes()
    assert format_answer(InferAnswer("m", "1", "", [listed]))[1] is None


@given(st.binary(max_size=5000), st.sampled_from(["gzip", "deflate"]))
def test_compression_there_and_back(data: bytes, encoding: str) -> None:
    packed = compress([data[:100], memoryview(data)[100:]], encoding)
    assert decompress(packed, encoding, 5000) == data
    for wrong in (packed[:-1], packed + b"x"):
        with pytest.raises(InputError):
            decompress(wrong, encoding, 5000)
    if data:
        with pytest.raises(RefusedError):
            decompress(packed, encoding, len(data) - 1)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (None, None),
        ("", None),
        ("br", None),
        ("gzip", "gzip"),
        ("deflate, GZIP", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
    ],
)
def test_the_encoding_of_an_answer(accepted: str | None, chosen: str | None) -> None:
    assert choose_encoding(accepted) == chosen


def test_classification_names_the_largest_first_and_of_equal_ones_the_first() -> None:
    values = np.float32([[0.5, 2, 2], [np.nan, -1, 0]])
    assert classify(values, 2, ("a", "b", "c")).tolist() == [
        [b"2.000000:1:b", b"2.000000:2:c"], [b"0.000000:2:c", b"-1.000000:1:b"],
    ]  # fmt: skip
    assert classify(np.int64([[3, 7]]), 9, ("wrong number",)).tolist() == [[b"7:1", b"3:0"]]
    assert classify(values.reshape(2, 3, 1), 1).shape == (2, 1)
    with pytest.raises(InputError, match="several numbers"):
        classify(np.float32([1, 2]), 1)
