"""Messages of gRPC to a call, and an answer to a message. Knows the messages by their fields alone.

The classes of the messages are the caller's (``tritonclient.grpc.service_pb2``): a process may have one set of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from artifacts import InputError
from runtime.oip.calls import (
    TENSOR_LIMIT,
    InferAnswer,
    InferCall,
    InputTensor,
    ReadRegion,
    WantedOutput,
    region_of,
    whole_parameter,
)
from runtime.oip.datatypes import BYTES, NUMPY_NAMES, bytes_array, check_datatype, check_shape, from_binary, to_binary

_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", BYTES: "bytes_contents",
}  # fmt: skip


def read_call(message: Any, regions: ReadRegion | None) -> InferCall:
    """Reads a ``ModelInferRequest``.

    Args:
        message: of the client.
        regions: finds shared memory; ``None``: there is none.

    Raises:
        InputError: it contradicts itself.
    """
    if not 0 < len(message.inputs) <= TENSOR_LIMIT or len(message.outputs) > TENSOR_LIMIT:
        raise InputError(f"expected 1 to {TENSOR_LIMIT} inputs, and at most {TENSOR_LIMIT} outputs")
    raw = list(message.raw_input_contents)
    inputs = tuple(_read_input(stated, raw, regions) for stated in message.inputs)
    if raw:
        raise InputError(f"raw_input_contents has {len(raw)} entries more than there are inputs without shared memory")
    outputs = tuple(_read_wanted(stated) for stated in message.outputs) or None
    return InferCall(
        inputs=inputs, call_id=message.id, outputs=outputs, binary=True, parameters=read_parameters(message.parameters)
    )


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a message as plain values."""
    found = {}
    for name, parameter in parameters.items():
        chosen = parameter.WhichOneof("parameter_choice")
        found[name] = None if chosen is None else getattr(parameter, chosen)
    return found


def write_answer(answer: InferAnswer, messages: Any) -> Any:
    """Returns a ``ModelInferResponse``; ``messages`` is the module of the messages' classes."""
    response = messages.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.call_id)
    for name, value in answer.parameters.items():
        _state(response.parameters[name], value)
    for output in answer.outputs:
        stated = response.outputs.add(name=output.name, datatype=output.datatype, shape=output.values.shape)
        if (region := output.region) is None:
            response.raw_output_contents.append(bytes(to_binary(output.values)))
            continue
        stated.parameters["shared_memory_region"].string_param = region.name
        stated.parameters["shared_memory_byte_size"].int64_param = region.byte_size
        if region.offset:
            stated.parameters["shared_memory_offset"].int64_param = region.offset
    return response


def _state(parameter: Any, value: object) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    else:
        parameter.string_param = str(value)


def _read_input(stated: Any, raw: list[bytes], regions: ReadRegion | None) -> InputTensor:
    name = stated.name
    datatype, shape = check_datatype(name, stated.datatype), check_shape(name, list(stated.shape))
    region = region_of(read_parameters(stated.parameters))
    typed = stated.HasField("contents")
    if region is not None:
        if regions is None:
            raise InputError(f"input '{name}': this server has no shared memory; send the tensor itself")
        return InputTensor(name, datatype, from_binary(name, datatype, shape, regions(region)))
    if raw and not typed:
        return InputTensor(name, datatype, from_binary(name, datatype, shape, memoryview(raw.pop(0))))
    if not typed or raw:
        raise InputError(f"input '{name}': expected its values in raw_input_contents or, for all inputs, in contents")
    return InputTensor(name, datatype, _read_contents(name, datatype, shape, stated.contents))


def _read_contents(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> np.ndarray:
    if datatype not in _CONTENTS:
        raise InputError(f"input '{name}': {datatype} has no typed contents; send it in raw_input_contents")
    values: Sequence[Any] = getattr(contents, _CONTENTS[datatype])
    if len(values) != int(np.prod(shape, dtype=object)):
        raise InputError(
            f"input '{name}': {len(values)} values in {_CONTENTS[datatype]} do not fit shape {list(shape)}"
        )
    if datatype == BYTES:
        return bytes_array(list(values), shape)
    try:
        return np.array(values, NUMPY_NAMES[datatype]).reshape(shape)
    except OverflowError as error:
        raise InputError(f"input '{name}': a value is outside of {datatype}") from error


def _read_wanted(stated: Any) -> WantedOutput:
    parameters = read_parameters(stated.parameters)
    classes = whole_parameter(parameters, "classification")
    return WantedOutput(name=stated.name, binary=True, classes=classes, region=region_of(parameters))
