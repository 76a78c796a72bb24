"""Bodies of HTTP: a JSON head with binary tensors behind it, to a call, and an answer to such a body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from artifacts import InputError
from runtime.oip.calls import (
    TENSOR_LIMIT,
    InferAnswer,
    InferCall,
    InputTensor,
    OutputTensor,
    ReadRegion,
    WantedOutput,
    flag_parameter,
    region_of,
    whole_parameter,
)
from runtime.oip.datatypes import BYTES, bytes_array, check_datatype, check_shape, from_binary, to_binary
from runtime.oip.json_tensors import from_json, to_json

HEADER_LENGTH = "inference-header-content-length"


def parse_call(body: bytes, header_length: str | None, *, json_limit: int, regions: ReadRegion | None) -> InferCall:
    """Reads the body of an inference request.

    Args:
        body: all of it; tensors are views of it.
        header_length: the header ``Inference-Header-Content-Length``; ``None``: all of it is JSON. 0: it is one row
            of the only input, which gets no name.
        json_limit: bytes that the JSON may have: parsed lists take many times the room of their text.
        regions: finds shared memory; ``None``: there is none.

    Raises:
        InputError: it is no such body.
    """
    length = _head_length(len(body), header_length)
    if length > json_limit:
        raise InputError(
            f"{length} bytes of JSON are more than {json_limit}; send tensors as binary data, or raise --max-json-mb"
        )
    if header_length is not None and length == 0:
        return InferCall(inputs=(InputTensor("", BYTES, bytes_array([body], (1,))),))
    view = memoryview(body)
    head = parse_object(view[:length])
    parameters = _mapping(head.get("parameters", {}), "parameters")
    binary = flag_parameter(parameters, "binary_data_output")
    reader = _TensorReader(view[length:], regions)
    inputs = tuple(reader.read(stated) for stated in _listed(head.get("inputs"), "inputs"))
    reader.check_end()
    outputs = None
    if head.get("outputs"):
        outputs = tuple(_read_wanted(stated, binary=binary) for stated in _listed(head["outputs"], "outputs"))
    call_id = head.get("id", "")
    if not isinstance(call_id, str):
        raise InputError("the id of a request is a string")
    return InferCall(inputs=inputs, call_id=call_id, outputs=outputs, binary=binary, parameters=parameters)


def format_answer(answer: InferAnswer) -> tuple[list[bytes | memoryview], int | None]:
    """Returns the parts of an answer's body, and the length of the JSON head where bytes follow it."""
    import orjson

    blobs: list[bytes | memoryview] = []
    head: dict[str, Any] = {"id": answer.call_id} if answer.call_id else {}
    head |= {"model_name": answer.model, "model_version": answer.version}
    if answer.parameters:
        head["parameters"] = answer.parameters
    head["outputs"] = [_state_output(output, blobs) for output in answer.outputs]
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    binary = any(output.binary and output.region is None for output in answer.outputs)
    return [text, *blobs], len(text) if binary else None


def parse_object(text: bytes | memoryview) -> Mapping[str, Any]:
    """Returns the object that a JSON text holds; ``InputError`` where it holds none."""
    import orjson

    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the request is no JSON: {error}") from error
    return _mapping(found, "request")


def _head_length(size: int, stated: str | None) -> int:
    if stated is None:
        return size
    if not (stated.isascii() and stated.isdigit() and len(stated) < 20):
        raise InputError(f"Inference-Header-Content-Length {stated[:50]!r}: expected the length of the JSON in bytes")
    if int(stated) > size:
        raise InputError(f"inference header size should be in range (0, {size}), got: {stated}")
    return int(stated)


class _TensorReader:
    """Reads inputs one after the other; those in binary follow each other behind the head."""

    def __init__(self, data: memoryview, regions: ReadRegion | None) -> None:
        self._data = data
        self._regions = regions
        self._at = 0

    def read(self, stated: object) -> InputTensor:
        tensor = _mapping(stated, "input")
        name = _name(tensor, "input")
        datatype, shape = check_datatype(name, tensor.get("datatype")), check_shape(name, tensor.get("shape"))
        parameters = _mapping(tensor.get("parameters", {}), f"parameters of '{name}'")
        data = self._find(name, tensor, parameters)
        if data is not None:
            return InputTensor(name, datatype, from_binary(name, datatype, shape, data))
        return InputTensor(name, datatype, from_json(name, datatype, shape, tensor["data"]))

    def _find(self, name: str, tensor: Mapping[str, Any], parameters: Mapping[str, Any]) -> memoryview | None:
        """Returns the bytes of a tensor; ``None`` for one in JSON."""
        sized, region = "binary_data_size" in parameters, region_of(parameters)
        if ("data" in tensor) + sized + (region is not None) != 1:
            raise InputError(f"input '{name}': expected one of data, binary_data_size and shared_memory_region")
        if region is not None:
            if self._regions is None:
                raise InputError(f"input '{name}': this server has no shared memory; send the tensor itself")
            return self._regions(region)
        if not sized:
            return None
        start, self._at = self._at, self._at + whole_parameter(parameters, "binary_data_size")
        if self._at > len(self._data):
            raise InputError(f"input '{name}': it states more bytes than follow the JSON, which are {len(self._data)}")
        return self._data[start : self._at]

    def check_end(self) -> None:
        if self._at != len(self._data):
            raise InputError(
                f"{len(self._data)} bytes follow the JSON, and its inputs state {self._at} as their binary_data_size"
            )


def _read_wanted(stated: object, *, binary: bool) -> WantedOutput:
    output = _mapping(stated, "output")
    name = _name(output, "output")
    parameters = _mapping(output.get("parameters", {}), f"parameters of '{name}'")
    return WantedOutput(
        name=name,
        binary=flag_parameter(parameters, "binary_data", default=binary),
        classes=whole_parameter(parameters, "classification"),
        region=region_of(parameters),
    )


def _state_output(output: OutputTensor, blobs: list[bytes | memoryview]) -> dict[str, Any]:
    stated: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.values.shape}
    if (region := output.region) is not None:
        stated["parameters"] = {"shared_memory_region": region.name, "shared_memory_byte_size": region.byte_size}
        if region.offset:
            stated["parameters"]["shared_memory_offset"] = region.offset
    elif output.binary:
        blobs.append(to_binary(output.values))
        stated["parameters"] = {"binary_data_size": len(blobs[-1])}
    else:
        stated["data"] = to_json(output.values)
    return stated


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


def _listed(value: object, what: str) -> Sequence[object]:
    if not isinstance(value, list) or not 0 < len(value) <= TENSOR_LIMIT:
        raise InputError(f"{what}: expected a list of 1 to {TENSOR_LIMIT} tensors")
    return value


def _name(tensor: Mapping[str, Any], what: str) -> str:
    name = tensor.get("name")
    if not isinstance(name, str):
        raise InputError(f"every {what} has a name, which is a string")
    return name
