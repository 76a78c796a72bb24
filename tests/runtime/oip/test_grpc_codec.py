"""Messages of gRPC that contradict themselves: every one is an error of ours, or a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import PameError
from runtime.oip.calls import InferAnswer, OutputTensor
from runtime.oip.datatypes import BYTES, NUMPY_NAMES
from runtime.oip.grpc_codec import read_call, read_parameters, write_answer

messages = pytest.importorskip("tritonclient.grpc.service_pb2", reason="the messages: pip install 'pame[serve]'")

VALUES = {
    "bool_param": st.booleans(),
    "int64_param": st.integers(-(2**63), 2**63 - 1),
    "uint64_param": st.integers(0, 2**64 - 1),
    "string_param": st.text(max_size=4),
    "double_param": st.floats(),
}
PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "priority", "classification", "shared_memory_region", "shared_memory_byte_size"]),
    st.sampled_from(sorted(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind])),
    max_size=3,
)
ELEMENTS = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-200, 200),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.integers(0, 2**32 - 1),
    "fp32_contents": st.floats(width=32),
    "bytes_contents": st.binary(max_size=4),
}
CONTENTS = st.fixed_dictionaries(
    {}, optional={name: st.lists(element, max_size=4) for name, element in ELEMENTS.items()}
)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    request = messages.ModelInferRequest(model_name="m", id=draw(st.text(max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        tensor = request.inputs.add(
            name=draw(st.sampled_from(["x", "y", ""])),
            datatype=draw(st.sampled_from([*NUMPY_NAMES, BYTES, "BF16", ""])),
            shape=draw(st.lists(st.integers(-1, 4) | st.integers(-(2**63), 2**63 - 1), max_size=3)),
        )
        if draw(st.booleans()):
            tensor.contents.MergeFrom(messages.InferTensorContents(**draw(CONTENTS)))
        add(tensor.parameters, draw(PARAMETERS))
    for _ in range(draw(st.integers(0, 2))):
        add(request.outputs.add(name=draw(st.sampled_from(["o", ""]))).parameters, draw(PARAMETERS))
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=20), max_size=3)))
    add(request.parameters, draw(PARAMETERS))
    return request


def add(parameters: Any, stated: dict[str, tuple[str, Any]]) -> None:
    for name, (kind, value) in stated.items():
        setattr(parameters[name], kind, value)


@given(requests())
def test_hostile_messages_are_errors_of_ours(request: Any) -> None:
    try:
        call = read_call(request, None)
        _ = call.timeout_ms, call.priority
    except PameError:
        return
    for tensor, stated in zip(call.inputs, request.inputs, strict=True):
        assert tensor.values.shape == tuple(stated.shape)


def test_typed_contents_out_of_range_are_refused() -> None:
    request = messages.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype="INT8", shape=[2])
    tensor.contents.int_contents.extend([1, 300])
    with pytest.raises(PameError, match="outside of INT8"):
        read_call(request, None)


def test_an_answer_there_and_back() -> None:
    output = OutputTensor("o", "FP32", np.float32([[1, 2]]), binary=True)
    found = write_answer(InferAnswer("m", "1", "7", [output], {"last": True, "n": 3, "s": "x"}), messages)
    assert (found.model_name, found.model_version, found.id) == ("m", "1", "7")
    assert list(found.outputs[0].shape) == [1, 2]
    assert np.frombuffer(found.raw_output_contents[0], np.float32).tolist() == [1, 2]
    assert read_parameters(found.parameters) == {"last": True, "n": 3, "s": "x"}
